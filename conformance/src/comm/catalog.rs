//! The cases: data in `cases/comm.toml`.

use halyard_core::{DType, ReduceOp};
use serde::Deserialize;

use crate::catalog::CatalogError;

const FILE: &str = "comm.toml";
const TEXT: &str = include_str!("../../cases/comm.toml");

/// One case, ready to run.
#[derive(Clone, Debug)]
pub(crate) struct CommCase {
    /// Unique; entry name and what varies.
    pub(crate) name: String,
    /// What it is for.
    pub(crate) why: String,
    pub(crate) call: Call,
    pub(crate) world: u32,
    pub(crate) dtype: DType,
    pub(crate) reduce: ReduceOp,
    /// Elements or rows a rank.
    pub(crate) sizes: Vec<usize>,
}

/// What a case does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub(crate) enum Call {
    /// Moves data.
    Data(Data),
    /// Shows how ranks wait, fail and part.
    Conduct(Conduct),
}

/// Calls that move data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Data {
    AllReduce,
    AllGather,
    ReduceScatter,
    Broadcast,
    AllToAllV,
    Messages,
    Ring,
    Group,
}

/// How ranks wait, fail and part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Conduct {
    Barrier,
    Split,
    TwoAtOnce,
    Refusals,
    Abort,
    Late,
    Absent,
    DifferentCalls,
}

impl CommCase {
    /// What the report calls the op: the entry's call.
    pub(crate) fn op(&self) -> String {
        let text = match self.call {
            Call::Data(kind) => format!("{kind:?}"),
            Call::Conduct(kind) => format!("{kind:?}"),
        };
        snake(&text)
    }

    /// The call in one line.
    pub(crate) fn descriptor(&self) -> String {
        let reduce = match self.reduce.name() {
            Some(name) => format!("({name})"),
            None => String::new(),
        };
        let dtype = match self.dtype {
            DType::NONE => String::new(),
            dtype => format!(" {dtype} {:?}", self.sizes),
        };
        format!("{}{reduce} of {} ranks{dtype}", self.op(), self.world)
    }
}

fn snake(camel: &str) -> String {
    let mut text = String::new();
    for c in camel.chars() {
        if c.is_uppercase() && !text.is_empty() {
            text.push('_');
        }
        text.push(c.to_ascii_lowercase());
    }
    text
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    case: Vec<Entry>,
}

/// An entry: every combination of world, dtype and reduction is a case.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    name: String,
    call: Call,
    why: String,
    world: Vec<u32>,
    #[serde(default)]
    dtype: Vec<String>,
    #[serde(default)]
    reduce: Vec<String>,
    #[serde(default)]
    sizes: Vec<usize>,
}

/// Every case, in the order of the file.
pub(crate) fn cases() -> Result<Vec<CommCase>, CatalogError> {
    parse(TEXT)
}

fn parse(text: &str) -> Result<Vec<CommCase>, CatalogError> {
    let bad = |reason: String| CatalogError { file: FILE.to_owned(), reason };
    let file: File = toml::from_str(text).map_err(|e| bad(e.to_string()))?;
    let mut all = Vec::new();
    for entry in &file.case {
        let cases = expand(entry);
        all.extend(cases.map_err(|reason| bad(format!("case {}: {reason}", entry.name)))?);
    }
    Ok(all)
}

fn expand(entry: &Entry) -> Result<Vec<CommCase>, String> {
    let dtypes = known(&entry.dtype, "dtype", DType::from_name)?;
    let reduces = known(&entry.reduce, "reduction", ReduceOp::from_name)?;
    if matches!(entry.call, Call::Data(_)) && (entry.dtype.is_empty() || entry.sizes.is_empty()) {
        return Err("a call that moves data needs dtypes and sizes".into());
    }
    let mut all = Vec::new();
    for &world in &entry.world {
        for &dtype in &dtypes {
            for &reduce in &reduces {
                let mut name = format!("{}/world={world}", entry.name);
                for varied in [dtype.name().filter(|n| *n != "none"), reduce.name()] {
                    name.extend(varied.into_iter().flat_map(|v| ["/", v]));
                }
                let (why, call, sizes) = (entry.why.clone(), entry.call, entry.sizes.clone());
                all.push(CommCase { name, why, call, world, dtype, reduce, sizes });
            }
        }
    }
    Ok(all)
}

/// Identifiers by name; the default, which is none, if there are no names.
fn known<T: Default>(
    names: &[String],
    what: &str,
    of: impl Fn(&str) -> Option<T>,
) -> Result<Vec<T>, String> {
    if names.is_empty() {
        return Ok(vec![T::default()]);
    }
    names.iter().map(|n| of(n).ok_or_else(|| format!("no {what} is called {n}"))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn names_are_unique_and_say_what_varies() {
        let cases = cases().unwrap();
        let names: HashSet<&str> = cases.iter().map(|c| c.name.as_str()).collect();
        assert_eq!(names.len(), cases.len());
        assert!(names.contains("all_reduce/world=4/bf16/avg"));
        let case = cases.iter().find(|c| c.name == "abort/world=2").unwrap();
        assert_eq!(case.descriptor(), "abort of 2 ranks");
        let case = cases.iter().find(|c| c.name == "all_to_all_v/world=2/u8").unwrap();
        assert_eq!(case.op(), "all_to_all_v");
    }

    #[test]
    fn mistakes_are_named() {
        let case = "[[case]]\nname = \"x\"\nwhy = \"?\"\nworld = [1]\ncall = ";
        let error = parse(&format!("{case}\"all_reduce\"\n")).unwrap_err().to_string();
        assert!(error.contains("case x") && error.contains("dtypes"), "{error}");
        assert!(parse(&format!("{case}\"all_produce\"\n")).is_err());
        let error = parse(&format!("{case}\"abort\"\ndtype = [\"f31\"]\n")).unwrap_err();
        assert!(error.reason.contains("f31"), "{error}");
    }
}
