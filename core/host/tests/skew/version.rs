//! Another version of the boundary: a workspace of edited copies, with a backend and a host.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use super::fixture::{Fixture, chmod};

/// A change of a file, which must be possible exactly once.
pub(crate) enum Edit<'a> {
    /// Text for text.
    Replace(&'a str, &'a str, &'a str),
    /// A method with its comments and attributes.
    Remove(&'a str, &'a str),
}

/// What differs from this tree.
pub(crate) struct Version {
    pub(crate) name: &'static str,
    pub(crate) edits: &'static [&'static [Edit<'static>]],
}

/// What a version is made of: from this tree, and to where.
const FILES: [(&str, &str); 6] = [
    ("core/abi", "core/abi"),
    ("core/sdk", "core/sdk"),
    ("core/host/src", "core/host/src"),
    ("core/host/fixtures/examples/good.rs", "plugin/src/lib.rs"),
    ("core/host/fixtures/skew/host.rs", "plugin/src/main.rs"),
    ("core/host/tests/fixture/add.rs", "plugin/src/add.rs"),
];

impl Version {
    /// The backend `good` of this version, whose id is the version's name.
    pub(crate) fn plugin(&self) -> Fixture {
        let built = self.build().join(format!("libskew_{}.so", self.name));
        let fixture = Fixture::empty(self.name);
        fs::copy(built, &fixture.path).unwrap();
        chmod(&fixture.path, 0o755);
        fixture
    }

    /// What this version's host says of a backend.
    pub(crate) fn host_loads(&self, backend: &Fixture) -> String {
        let host = self.build().join(format!("skew-{}", self.name));
        let done = Command::new(host).arg(&backend.path).output().unwrap();
        let said = String::from_utf8_lossy(&done.stdout).into_owned();
        let errors = String::from_utf8_lossy(&done.stderr);
        assert!(done.status.success(), "{said}\n{errors}");
        said
    }

    /// Writes and builds the workspace; returns where the artifacts are.
    fn build(&self) -> PathBuf {
        // This test is at target/<profile>/deps/<name>-….
        let exe = std::env::current_exe().unwrap();
        let target = exe.ancestors().nth(3).unwrap();
        let folder = target.join("skew").join(self.name);
        fs::create_dir_all(&folder).unwrap();
        // Tests are processes of their own, and several want the same version.
        let turn = fs::File::create(folder.join("turn")).unwrap();
        turn.lock().unwrap();
        let mut files = self.sources();
        Edit::Replace("plugin/src/lib.rs", "\"good\"", &format!("\"{}\"", self.name))
            .apply(&mut files);
        for edit in self.edits.iter().copied().flatten() {
            edit.apply(&mut files);
        }
        write_if_changed(&folder.join("Cargo.toml"), &workspace(self.name));
        fs::copy(root().join("Cargo.lock"), folder.join("Cargo.lock")).unwrap();
        for (path, text) in files {
            write_if_changed(&folder.join(self.name).join(path), &text);
        }
        let mut build = Command::new(env!("CARGO"));
        build
            .args(["build", "--quiet", "--offline", "--package"])
            .arg(format!("skew-{}", self.name));
        // What is the same as in the tree is built once. Cargo tells packages apart by their names and by their paths in the
        // workspace, so those of each version are in a folder that the tree does not have.
        build.current_dir(&folder).env("CARGO_TARGET_DIR", target);
        let done = build.output().unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        target.join("debug")
    }

    fn sources(&self) -> Vec<(PathBuf, String)> {
        let root = root();
        let mut files = Vec::new();
        for (from, to) in FILES {
            read(&root.join(from), Path::new(to), &mut files);
        }
        let manifest = |path: &str| fs::read_to_string(root.join(path)).unwrap();
        let host = manifest("core/host/Cargo.toml");
        let (host, _tests) = host.split_once("[dev-dependencies]").unwrap();
        files.push(("core/host/Cargo.toml".into(), host.to_owned()));
        let plugin = include_str!("../../fixtures/skew/plugin.toml");
        files.push(("plugin/Cargo.toml".into(), plugin.replace("NAME", self.name)));
        files
    }
}

impl Edit<'_> {
    fn apply(&self, files: &mut [(PathBuf, String)]) {
        let (&Self::Replace(path, what, _) | &Self::Remove(path, what)) = self;
        let (_, text) = files.iter_mut().find(|(p, _)| p == Path::new(path)).unwrap();
        let found = match *self {
            Self::Replace(_, from, to) => {
                let count = text.matches(from).count();
                *text = text.replace(from, to);
                count
            }
            Self::Remove(_, method) => remove(text, &format!("    fn {method}(")),
        };
        assert_eq!(
            found, 1,
            "{path}: `{what}` is to be edited once; the test must follow the tree"
        );
    }
}

/// Removes methods that begin so, with what stands above; returns how many.
fn remove(text: &mut String, start: &str) -> usize {
    let lines: Vec<&str> = text.lines().collect();
    let mut keep = vec![true; lines.len()];
    let mut count = 0;
    for at in (0..lines.len()).filter(|&i| lines[i].starts_with(start)) {
        let above = |line: &&&str| line.trim().starts_with("///") || line.trim().starts_with("#[");
        let first = at - lines[..at].iter().rev().take_while(above).count();
        let end = lines[at..].iter().position(|line| *line == "    }").unwrap();
        keep[first..=at + end].fill(false);
        count += 1;
    }
    let kept = lines.iter().zip(&keep).filter(|(_, keep)| **keep).map(|(line, _)| *line);
    *text = kept.collect::<Vec<_>>().join("\n") + "\n";
    count
}

fn read(from: &Path, to: &Path, files: &mut Vec<(PathBuf, String)>) {
    if !from.is_dir() {
        files.push((to.to_owned(), fs::read_to_string(from).unwrap()));
        return;
    }
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        if entry.file_name() != "tests" {
            read(&entry.path(), &to.join(entry.file_name()), files);
        }
    }
}

/// The tree's workspace with the members of this version: equal profiles, lints and dependencies.
fn workspace(name: &str) -> String {
    let manifest = fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let start = manifest.find("members = [").unwrap();
    let end = manifest.find("[workspace.package]").unwrap();
    let members = ["core/abi", "core/sdk", "core/host", "plugin"].map(|m| format!("{name}/{m}"));
    let (head, rest) = (&manifest[..start], &manifest[end..]);
    let manifest = format!("{head}members = {members:?}\n\n{rest}");
    let manifest = manifest.replace("path = \"core/", &format!("path = \"{name}/core/"));
    // Few calls, so compiling is what takes time.
    let manifest = manifest.replacen("opt-level = 1", "opt-level = 0", 1);
    // Profiles of packages that this workspace lacks go, each to the next head.
    let mut lacking = false;
    let kept = manifest.lines().filter(|line| {
        if line.starts_with('[') {
            lacking = line.starts_with("[profile.dev.package.halyard-");
        }
        !lacking
    });
    kept.collect::<Vec<_>>().join("\n") + "\n"
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Leaves an unchanged file alone, so that cargo does not build again.
fn write_if_changed(path: &Path, text: &str) {
    if fs::read_to_string(path).is_ok_and(|old| old == text) {
        return;
    }
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}
