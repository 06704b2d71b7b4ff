//! The libraries of a CANN release: small shared objects with the vendor's names, whose functions jump into this one.
//!
//! A release differs from another by which library has which symbol, and by what it lacks. A function that a release lacks is not
//! there: `dlsym` fails as it would with the vendor's library.

use crate::api::operators::{MATH, NN, TRANSFORMER};
use crate::api::{dcmi, format, hccl, object, process};
use halyard_sim_ascend_ops::{Kind, Since, find};
use std::fs;
use std::io::{Error, Result, Write};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// What the exported names of this library begin with.
const PREFIX: &str = "halyard_sim_ascend_";

/// The name of this library where the others look for it.
const CORE: &str = "libhalyard_sim_ascend.so";

/// A CANN release.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Profile {
    /// 8.0: as 8.1, without what came with that. Halyard does not run on it.
    Cann80,
    /// 8.1.RC1: one library of operators.
    Cann81,
    /// 8.5: operators and HCCL are split.
    Cann85,
    /// 9.1: everything that is simulated.
    Cann91,
}

impl Profile {
    /// All of them, the oldest first.
    pub const ALL: [Self; 4] = [Self::Cann80, Self::Cann81, Self::Cann85, Self::Cann91];

    /// Its name, such as `cann-8.1`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Cann80 => "cann-8.0",
            Self::Cann81 => "cann-8.1",
            Self::Cann85 => "cann-8.5",
            Self::Cann91 => "cann-9.1",
        }
    }

    /// The profile with this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|profile| profile.name() == name)
    }

    /// The suffix of entries that there are once for each release.
    fn suffix(self) -> &'static str {
        match self {
            Self::Cann80 => "_8_0",
            Self::Cann81 => "_8_1",
            Self::Cann85 => "_8_5",
            Self::Cann91 => "_9_1",
        }
    }
}

/// Operators that came with 8.1.RC1: the vendor's own plug-in for PyTorch asks for that release before it calls them. No header of an older
/// release was read, so more may be missing there.
const NEW_IN_8_1: [&str; 2] = ["FusedInferAttentionScoreV3", "PromptFlashAttentionV3"];

/// One of the vendor's libraries.
struct Library {
    name: &'static str,
    /// Libraries that it needs: their symbols are found through its handle, too.
    needs: &'static [&'static str],
    /// Each symbol, and the name of its code here without the prefix.
    symbols: Vec<(String, String)>,
}

impl Library {
    fn new(name: &'static str, symbols: Vec<(String, String)>) -> Self {
        Self { name, needs: &[], symbols }
    }
}

fn same(sets: &[&[&str]]) -> Vec<(String, String)> {
    let names = sets.iter().flat_map(|set| set.iter());
    names.map(|name| ((*name).to_owned(), (*name).to_owned())).collect()
}

/// AscendCL's symbols.
fn runtime(profile: Profile) -> Vec<(String, String)> {
    use crate::api::{callback, context, convert, device, event, graph, memory, stream};
    let mut all = same(&[
        process::ENTRIES,
        process::VALUES,
        device::ENTRIES,
        context::ENTRIES,
        stream::ENTRIES,
        event::ENTRIES,
        memory::ENTRIES,
        callback::ENTRIES,
        graph::ENTRIES,
        convert::VALUES,
    ]);
    if profile >= Profile::Cann91 {
        all.extend(same(&[
            process::ENTRIES_9,
            device::ENTRIES_9,
            callback::ENTRIES_9,
            graph::ENTRIES_9,
        ]));
    }
    let own = process::VERSIONS.iter().filter_map(|name| {
        Some((name.strip_suffix(profile.suffix())?.to_owned(), (*name).to_owned()))
    });
    all.extend(own);
    all
}

/// The functions of those operators that the release has.
fn operators(profile: Profile, set: &[(&str, &[Kind])]) -> Vec<(String, String)> {
    let newest = match profile {
        Profile::Cann80 | Profile::Cann81 => Since::V8_1,
        Profile::Cann85 => Since::V8_5,
        Profile::Cann91 => Since::V9_1,
    };
    let late = |name: &str| profile == Profile::Cann80 && NEW_IN_8_1.contains(&name);
    let there = set
        .iter()
        .filter(|(name, _)| find(name).is_some_and(|op| op.since <= newest) && !late(name));
    let names = there
        .flat_map(|(name, _)| [format!("aclnn{name}GetWorkspaceSize"), format!("aclnn{name}")]);
    names.map(|name| (name.clone(), name)).collect()
}

fn communicators(profile: Profile) -> Vec<(String, String)> {
    let groups: &[&str] = if profile >= Profile::Cann91 { hccl::GROUPS } else { &[] };
    same(&[hccl::COMMUNICATORS, hccl::VALUES, groups])
}

/// What the operators' library has, or those of each repository from 8.5 on.
fn operator_libraries(profile: Profile) -> Vec<Library> {
    let mut math = operators(profile, MATH);
    math.extend(same(&[format::ENTRIES]));
    if profile >= Profile::Cann91 {
        math.extend(same(&[format::ENTRIES_9]));
    }
    let (nn, transformer) = (operators(profile, NN), operators(profile, TRANSFORMER));
    if profile < Profile::Cann85 {
        return vec![Library::new("libopapi.so", [math, nn, transformer].concat())];
    }
    vec![
        Library::new("libopapi_math.so", math),
        Library::new("libopapi_nn.so", nn),
        Library::new("libopapi_transformer.so", transformer),
    ]
}

/// What HCCL's library has; from 8.5 on communicators are another's.
fn collective_libraries(profile: Profile) -> Vec<Library> {
    let calls = same(&[hccl::COLLECTIVES]);
    if profile < Profile::Cann85 {
        return vec![Library::new("libhccl.so", [communicators(profile), calls].concat())];
    }
    let own = Library::new("libhcomm.so", communicators(profile));
    vec![own, Library { needs: &["libhcomm.so"], ..Library::new("libhccl.so", calls) }]
}

fn libraries(profile: Profile) -> Vec<Library> {
    let objects = same(&[process::NNOP, object::CREATE, object::ENTRIES]);
    let mut all = vec![
        Library::new("libascendcl.so", runtime(profile)),
        Library::new("libnnopbase.so", objects),
        Library::new("libdcmi.so", same(&[dcmi::ENTRIES])),
    ];
    if profile >= Profile::Cann85 {
        all.push(Library::new("libacl_rt.so", runtime(profile)));
    }
    all.extend(operator_libraries(profile));
    all.extend(collective_libraries(profile));
    all
}

/// Makes the libraries of `profile` in `folder`, which may be there; `core` is the built `libhalyard_sim_ascend.so`. `cc` links them.
///
/// # Errors
/// The folder cannot be written, `core` is not there, or `cc` fails, with its message.
pub fn install(profile: Profile, core: &Path, folder: &Path) -> Result<()> {
    install_without(&[], profile, core, folder)
}

/// The same of a release that lacks some functions.
///
/// # Errors
/// As [`install`].
pub fn install_without(
    lacking: &[&str],
    profile: Profile,
    core: &Path,
    folder: &Path,
) -> Result<()> {
    let core = core.canonicalize().map_err(|e| Error::other(format!("{}: {e}", core.display())))?;
    fs::create_dir_all(folder)?;
    let link = folder.join(CORE);
    if link.symlink_metadata().is_ok() {
        fs::remove_file(&link)?;
    }
    symlink(core, link)?;
    for mut library in libraries(profile) {
        library.symbols.retain(|(name, _)| !lacking.contains(&&name[..]));
        make(&library, folder)?;
    }
    Ok(())
}

/// The core beside the running program or in the folder above, where cargo puts it.
///
/// # Errors
/// It is not built.
pub fn built_core() -> Result<PathBuf> {
    let program = std::env::current_exe()?;
    let folders = program.ancestors().skip(1).take(2);
    let mut places = folders.map(|folder| folder.join(CORE));
    places.find(|place| place.exists()).ok_or_else(|| {
        Error::other(format!(
            "{CORE} is not beside {}: build halyard-sim-ascend",
            program.display()
        ))
    })
}

fn make(library: &Library, folder: &Path) -> Result<()> {
    let mut linker = Command::new("cc");
    linker.args(["-shared", "-nostdlib", "-x", "assembler", "-", "-x", "none"]);
    linker.arg(format!("-Wl,-soname,{}", library.name));
    // Of the old kind, which comes before `LD_LIBRARY_PATH`: another core that lies there has another state.
    linker.args(["-Wl,--disable-new-dtags", "-Wl,-rpath,$ORIGIN"]);
    linker.arg("-Wl,--no-as-needed").arg(format!("-L{}", folder.display()));
    linker.arg(format!("-l:{CORE}")).args(library.needs.iter().map(|name| format!("-l:{name}")));
    linker.arg("-o").arg(folder.join(library.name));
    linker.stdin(Stdio::piped()).stderr(Stdio::piped());
    let mut linking = linker.spawn().map_err(|e| Error::other(format!("cannot start cc: {e}")))?;
    if let Some(input) = &mut linking.stdin {
        input.write_all(jumps(&library.symbols).as_bytes())?;
    }
    let done = linking.wait_with_output()?;
    if !done.status.success() {
        let said = String::from_utf8_lossy(&done.stderr);
        return Err(Error::other(format!("cc could not make {}: {said}", library.name)));
    }
    Ok(())
}

/// Functions of nothing but a jump: arguments and the stack stay as they are.
fn jumps(symbols: &[(String, String)]) -> String {
    let mut text = ".text\n".to_owned();
    for (name, code) in symbols {
        let code = format!("{PREFIX}{code}");
        let jump = if cfg!(target_arch = "aarch64") {
            format!("adrp x16, :got:{code}\nldr x16, [x16, :got_lo12:{code}]\nbr x16")
        } else {
            format!("jmp *{code}@GOTPCREL(%rip)")
        };
        text += &format!(".globl {name}\n.type {name}, %function\n{name}:\n{jump}\n");
    }
    text + ".section .note.GNU-stack,\"\",%progbits\n"
}
