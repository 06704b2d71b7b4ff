//! From the line as people type it to the line that clap parses: spellings, files of flags, and flags
//! of other servers.

use std::{collections::BTreeMap, ffi::OsString, path::PathBuf};

use clap::Command;

use super::{
    config_file::{self, ConfigError},
    foreign::{FOREIGN, Foreign, SHORT, Values, Verdict},
};

/// A line that clap can parse, and what to tell about the flags that were dropped from it.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Line {
    /// The arguments, the program's name first.
    pub args: Vec<OsString>,
    /// To be logged once logging is set up.
    pub warnings: Vec<String>,
}

/// A line that cannot run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UsageError {
    /// No such flag, here or elsewhere.
    #[error("unknown flag {flag}{}", nearest.as_ref().map(|name| format!("; did you mean --{name}?")).unwrap_or_default())]
    Unknown {
        /// As given.
        flag: String,
        /// The closest name, if any is close.
        nearest: Option<String>,
    },
    /// A shortened flag that several flags begin with.
    #[error("{flag} may be any of {}", candidates.join(", "))]
    Ambiguous {
        /// As given.
        flag: String,
        /// The flags that begin so.
        candidates: Vec<String>,
    },
    /// A flag that is known and not supported.
    #[error("{flag}: not supported yet: {note}")]
    Unsupported {
        /// With its value.
        flag: String,
        /// Why, and what to do instead.
        note: &'static str,
    },
    /// A flag without its value.
    #[error("{0} needs a value")]
    NoValue(String),
    /// The file of `--config`.
    #[error(transparent)]
    Config(#[from] ConfigError),
}

/// Rewrites the arguments of commands that load a model; others are left as they are.
///
/// # Errors
/// See [`UsageError`].
pub fn normalize(args: Vec<OsString>, mut root: Command) -> Result<Line, UsageError> {
    root.build();
    let mut line = Line { args, warnings: Vec::new() };
    if let Some(start) = line.args.iter().skip(1).position(|arg| arg == "start") {
        let before_any_command = line.args[1..=start].iter().all(|arg| arg != "serve");
        if before_any_command {
            line.args[start + 1] = "serve".into();
            line.warnings.push("`start` is an old name: the command is `serve`".into());
        }
    }
    let Some((command, first_flag)) = find_command(&root, &line.args) else { return Ok(line) };
    let flags = Flags::of(command);
    if !flags.own.contains_key("gpu-memory-utilization") {
        return Ok(line);
    }
    let given = line.args.split_off(first_flag);
    let given = expand_config(given, &flags)?;
    rewrite(given, &flags, &mut line)?;
    Ok(line)
}

/// The deepest subcommand that the line names, and where its flags begin.
fn find_command<'a>(root: &'a Command, args: &[OsString]) -> Option<(&'a Command, usize)> {
    let (at, mut command) =
        args.iter().enumerate().skip(1).find_map(|(at, arg)| {
            root.find_subcommand(arg.to_str()?).map(|command| (at, command))
        })?;
    let mut next = at + 1;
    while let Some(deeper) = args.get(next).and_then(|arg| command.find_subcommand(arg.to_str()?)) {
        command = deeper;
        next += 1;
    }
    Some((command, next))
}

/// The names that may stand in a line.
pub(super) struct Flags {
    /// Name or alias to whether it takes values.
    own: BTreeMap<String, bool>,
    /// Letters of ours, which mean what they mean here.
    letters: Vec<char>,
}

/// What a name stands for.
pub(super) enum Meaning<'a> {
    Own {
        name: &'a str,
        takes_values: bool,
    },
    Foreign(&'static Foreign),
    /// The negation of a flag of others.
    Negated,
}

impl Flags {
    fn of(command: &Command) -> Self {
        let mut own = BTreeMap::new();
        let mut letters = Vec::new();
        for arg in command.get_arguments() {
            letters.extend(arg.get_short());
            let takes_values = arg.get_action().takes_values();
            let aliases = arg.get_all_aliases().unwrap_or_default();
            for name in arg.get_long().into_iter().chain(aliases) {
                own.insert(name.to_owned(), takes_values);
            }
        }
        Self { own, letters }
    }

    /// Finds a flag by its name without dashes before it, or by a beginning that only it has.
    pub(super) fn resolve(&self, name: &str) -> Result<Meaning<'_>, UsageError> {
        let name = name.replace('_', "-");
        if let Some(meaning) = self.exact(&name) {
            return Ok(meaning);
        }
        if name.strip_prefix("no-").is_some_and(|rest| foreign(rest).is_some()) {
            return Ok(Meaning::Negated);
        }
        let candidates: Vec<&str> = self.names().filter(|known| known.starts_with(&name)).collect();
        match candidates.as_slice() {
            [only] => self.exact(only).ok_or_else(|| self.unknown(&name)),
            [] => Err(self.unknown(&name)),
            _ => Err(UsageError::Ambiguous {
                flag: format!("--{name}"),
                candidates: candidates.iter().map(|name| format!("--{name}")).collect(),
            }),
        }
    }

    /// `--name=value`, `--name`, `-tp=2`, `-tp`; `None` for what is no flag or a letter of ours.
    fn split(&self, text: &str) -> Option<(String, Option<String>)> {
        let (flag, value) = match text.split_once('=') {
            Some((flag, value)) => (flag, Some(value.to_owned())),
            None => (text, None),
        };
        if let Some(name) = flag.strip_prefix("--") {
            return Some((name.to_owned(), value));
        }
        let mut letters = flag.strip_prefix('-')?.chars();
        if let (Some(letter), None) = (letters.next(), letters.next())
            && self.letters.contains(&letter)
        {
            return None;
        }
        // `-O3`: the level stands in the flag.
        if let Some(level) = flag.strip_prefix("-O").filter(|level| !level.is_empty()) {
            return Some(("optimization-level".into(), Some(level.to_owned())));
        }
        let (_, long) = SHORT.iter().find(|(short, _)| *short == flag)?;
        Some((long.trim_start_matches('-').to_owned(), value))
    }

    pub(super) fn is_own(&self, name: &str) -> bool {
        self.own.contains_key(name)
    }

    fn exact(&self, name: &str) -> Option<Meaning<'_>> {
        let own = self.own.get_key_value(name);
        own.map(|(name, &takes_values)| Meaning::Own { name, takes_values })
            .or_else(|| foreign(name).map(Meaning::Foreign))
    }

    fn names(&self) -> impl Iterator<Item = &str> {
        self.own.keys().map(String::as_str).chain(FOREIGN.iter().map(|flag| flag.name))
    }

    fn unknown(&self, name: &str) -> UsageError {
        let score = |known: &str| strsim::jaro_winkler(name, known);
        let nearest = self.names().max_by(|a, b| score(a).total_cmp(&score(b)));
        let nearest = nearest.filter(|known| score(known) > 0.8).map(str::to_owned);
        UsageError::Unknown { flag: format!("--{name}"), nearest }
    }
}

fn foreign(name: &str) -> Option<&'static Foreign> {
    FOREIGN.iter().find(|flag| flag.name == name)
}

/// Puts the flags of `--config FILE` before the others, so that the line wins.
fn expand_config(args: Vec<OsString>, flags: &Flags) -> Result<Vec<OsString>, UsageError> {
    let mut path = None;
    let mut rest = Vec::with_capacity(args.len());
    let mut args = args.into_iter();
    while let Some(arg) = args.next() {
        match arg.to_str() {
            Some("--config") => {
                let value = args.next().ok_or_else(|| UsageError::NoValue("--config".into()))?;
                path = Some(PathBuf::from(value));
            }
            Some(text) if text.starts_with("--config=") => {
                path = Some(PathBuf::from(&text["--config=".len()..]));
            }
            _ => rest.push(arg),
        }
    }
    let Some(path) = path else { return Ok(rest) };
    let mut expanded = config_file::read(&path, flags)?;
    expanded.append(&mut rest);
    Ok(expanded)
}

fn rewrite(args: Vec<OsString>, flags: &Flags, line: &mut Line) -> Result<(), UsageError> {
    let mut args = args.into_iter().peekable();
    while let Some(arg) = args.next() {
        let Some(text) = arg.to_str() else {
            line.args.push(arg);
            continue;
        };
        if text == "--" {
            line.args.push(arg);
            line.args.extend(args);
            return Ok(());
        }
        let Some((name, inline)) = flags.split(text) else {
            line.args.push(arg);
            continue;
        };
        match flags.resolve(&name)? {
            Meaning::Own { name, .. } => line.args.push(match inline {
                Some(value) => format!("--{name}={value}").into(),
                None => format!("--{name}").into(),
            }),
            Meaning::Negated => {}
            Meaning::Foreign(flag) => {
                let mut values: Vec<String> = inline.into_iter().collect();
                while values.len() < flag.values.at_most() {
                    let is_value = |next: &OsString| !next.to_string_lossy().starts_with("--");
                    let Some(value) = args.next_if(is_value) else { break };
                    values.push(value.to_string_lossy().into_owned());
                }
                judge(flag, &values, &mut line.warnings)?;
            }
        }
    }
    Ok(())
}

impl Values {
    fn at_most(self) -> usize {
        match self {
            Self::None => 0,
            Self::One => 1,
            Self::Many => usize::MAX,
        }
    }
}

fn judge(flag: &Foreign, values: &[String], warnings: &mut Vec<String>) -> Result<(), UsageError> {
    let written = format!("--{} {}", flag.name, values.join(" "));
    match flag.verdict {
        Verdict::Accepted => {}
        Verdict::Old(note) => {
            warnings.push(format!("{} is an old flag and has no effect: {note}", written.trim()));
        }
        Verdict::Unsupported(note, harmless) => {
            let is_harmless =
                !values.is_empty() && values.iter().all(|value| harmless.contains(&value.as_str()));
            if !is_harmless {
                return Err(UsageError::Unsupported { flag: written.trim().to_owned(), note });
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn run(line: &[&str]) -> Result<(Vec<String>, Vec<String>), String> {
        let args = ["halyard"].iter().chain(line).map(OsString::from).collect();
        let line = normalize(args, super::super::Cli::command()).map_err(|e| e.to_string())?;
        let args = line.args.iter().skip(1).map(|arg| arg.to_string_lossy().into_owned());
        Ok((args.collect(), line.warnings))
    }

    fn args(line: &[&str]) -> Vec<String> {
        run(line).expect("a good line").0
    }

    #[test]
    fn spellings_of_tutorials() {
        let expected = ["serve", "M", "--max-model-len", "4k", "--dtype=half"];
        assert_eq!(args(&["serve", "M", "--max_model_len", "4k", "--dtyp=half"]), expected);
        let expected = ["serve", "M", "--tensor-parallel-size", "2"];
        assert_eq!(args(&["serve", "M", "-tp", "2", "--pipeline_parallel_size=1"]), expected);
        assert_eq!(args(&["serve", "M", "--tp", "2"]), ["serve", "M", "--tp", "2"]);
        assert_eq!(args(&["serve", "M", "-O3", "--seed", "-1"]), ["serve", "M", "--seed", "-1"]);
        let (line, warnings) = run(&["serve", "M", "--num-scheduler-steps", "20"]).expect("old");
        assert_eq!(line, ["serve", "M"]);
        assert!(warnings[0].contains("--num-scheduler-steps 20 is an old flag"), "{warnings:?}");
        let line = ["bench", "M", "-r", "3", "-p", "8", "-n", "1"];
        assert_eq!(args(&line), ["bench", "M", "-r", "3", "-p", "8"]);
        let (line, warnings) = run(&["start", "M"]).expect("old");
        assert_eq!((line, warnings.len()), (vec!["serve".to_owned(), "M".into()], 1));
        assert_eq!(args(&["serve", "M", "-q", "awq"]), ["serve", "M", "--quantization", "awq"]);
    }

    #[test]
    fn what_is_not_there_says_so() {
        let error = run(&["serve", "M", "--pipeline-parallel-size", "2"]).expect_err("refused");
        assert!(error.starts_with("--pipeline-parallel-size 2: not supported yet"), "{error}");
        let error = run(&["serve", "M", "--enable-lora"]).expect_err("refused");
        assert!(error.contains("merge them"), "{error}");
    }

    #[test]
    fn unknown_flags_name_the_nearest() {
        let error = run(&["serve", "M", "--max-modle-len", "5"]).expect_err("unknown");
        assert_eq!(error, "unknown flag --max-modle-len; did you mean --max-model-len?");
        let error = run(&["serve", "M", "--zzz"]).expect_err("unknown");
        assert_eq!(error, "unknown flag --zzz");
        let error = run(&["serve", "M", "--max-num", "5"]).expect_err("ambiguous");
        assert!(error.contains("--max-num-seqs"), "{error}");
    }

    #[test]
    fn names_are_unique() {
        let mut root = super::super::Cli::command();
        root.build();
        let flags = Flags::of(root.find_subcommand("serve").expect("there"));
        for flag in FOREIGN {
            assert!(!flags.own.contains_key(flag.name), "--{} is ours", flag.name);
            assert_eq!(FOREIGN.iter().filter(|other| other.name == flag.name).count(), 1);
        }
        for (short, long) in SHORT {
            assert!(flags.exact(&long[2..]).is_some(), "{short}");
        }
    }
}
