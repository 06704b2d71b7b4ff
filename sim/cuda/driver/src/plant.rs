//! A bug planted on request, to show that tests find it: `HALYARD_SIM_CUDA_PLANT`.
//!
//! - `KERNEL; NTH; FIND; drop`: the line of the kernel with the `NTH` line that contains `FIND` is left out when its module is loaded
//! - `KERNEL; NTH; FIND; replace TEXT`: `TEXT` takes the place of `FIND` in it
//! - `KERNEL; NTH; FIND; shift BYTES`: its address is so much further on
//! - `skip ENTRY`: calls of an entry of the driver's do nothing and succeed, as if the caller had left them out
//!
//! A plant that has no place in a module with its kernel, or is none of these, fails the load.

use std::sync::OnceLock;

const PLANT: &str = "HALYARD_SIM_CUDA_PLANT";

/// A bug.
#[derive(Debug, PartialEq, Eq)]
enum Plant {
    Edit { kernel: String, nth: usize, find: String, change: Change },
    Skip(String),
}

/// What becomes of a line.
#[derive(Debug, PartialEq, Eq)]
enum Change {
    Drop,
    Replace(String),
    Shift(i64),
}

/// The plant of the environment; the message if it is none.
fn plant() -> &'static Result<Option<Plant>, String> {
    static KNOWN: OnceLock<Result<Option<Plant>, String>> = OnceLock::new();
    KNOWN.get_or_init(|| {
        let Ok(text) = std::env::var(PLANT) else { return Ok(None) };
        Plant::parse(&text).map(Some).map_err(|what| format!("{PLANT}={text}: {what}"))
    })
}

/// Whether calls of an entry are left out.
pub(crate) fn skips(entry: &str) -> bool {
    matches!(plant(), Ok(Some(Plant::Skip(name))) if name == entry)
}

/// A module's text with the bug in it, if it has the kernel.
pub(crate) fn planted(text: String) -> Result<String, String> {
    match plant() {
        Ok(Some(plant)) => plant.apply(text).map_err(|what| format!("{PLANT}: {what}")),
        Ok(None) => Ok(text),
        Err(what) => Err(what.clone()),
    }
}

impl Plant {
    fn parse(text: &str) -> Result<Self, String> {
        let parts: Vec<_> = text.split(';').map(str::trim).collect();
        match parts[..] {
            [skip] => match skip.split_once(' ') {
                Some(("skip", entry)) => Ok(Self::Skip(entry.to_owned())),
                _ => Err("expected `skip ENTRY`, or four parts".to_owned()),
            },
            [kernel, nth, find, change] => Ok(Self::Edit {
                kernel: kernel.to_owned(),
                nth: nth.parse().map_err(|_| format!("'{nth}' is no number"))?,
                find: find.to_owned(),
                change: Change::parse(change)?,
            }),
            _ => Err(format!("{} parts, expected one or four", parts.len())),
        }
    }

    fn apply(&self, text: String) -> Result<String, String> {
        let Self::Edit { kernel, nth, find, change } = self else { return Ok(text) };
        let Some(begin) = text.find(&format!(".entry {kernel}(")) else { return Ok(text) };
        let end = text[begin + 1..].find(".entry ").map_or(text.len(), |end| begin + 1 + end);
        let mut at = begin;
        let mut seen = 0;
        for line in text[begin..end].split_inclusive('\n') {
            seen += usize::from(line.contains(find));
            if seen == *nth {
                let changed = change.apply(find, line)?;
                return Ok([&text[..at], &changed, &text[at + line.len()..]].concat());
            }
            at += line.len();
        }
        Err(format!("{kernel} has {seen} lines with '{find}', {nth} were expected"))
    }
}

impl Change {
    fn parse(text: &str) -> Result<Self, String> {
        match text.split_once(' ').unwrap_or((text, "")) {
            ("drop", "") => Ok(Self::Drop),
            ("replace", with) => Ok(Self::Replace(with.trim().to_owned())),
            ("shift", bytes) => {
                let bytes = bytes.parse().map_err(|_| format!("'{bytes}' are no bytes"))?;
                Ok(Self::Shift(bytes))
            }
            _ => Err(format!("'{text}', expected drop, replace TEXT or shift BYTES")),
        }
    }

    fn apply(&self, find: &str, line: &str) -> Result<String, String> {
        match self {
            // The line stays, so that others keep their numbers.
            Self::Drop => Ok("\n".to_owned()),
            Self::Replace(with) => Ok(line.replacen(find, with, 1)),
            Self::Shift(bytes) => {
                let inside = line.split_once('[').zip(line.split_once(']'));
                let ((before, rest), (_, after)) =
                    inside.ok_or_else(|| format!("no address in '{}'", line.trim()))?;
                let address = rest.split(']').next().unwrap_or_default();
                let (base, offset) = match address.split_once('+') {
                    Some((base, offset)) => (base, offset.parse::<i64>().ok()),
                    None => (address, Some(0)),
                };
                let offset = offset.ok_or_else(|| format!("the address '{address}'"))? + bytes;
                Ok(format!("{before}[{base}+{offset}]{after}"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = ".visible .entry one(\n)\n{\nbar.sync \t0;\n}\n.visible .entry two(\n)\n{\n\
        bar.sync \t0;\nld.global.f32 \t%f1, [%rd1];\nbar.sync \t0;\nst.global.f32 \t[%rd2+8], %f1;\n}\n";

    fn apply(plant: &str) -> Result<String, String> {
        Plant::parse(plant)?.apply(TEXT.to_owned())
    }

    #[test]
    fn one_line_of_one_kernel_changes() {
        let lines = |text: &str| text.lines().map(str::to_owned).collect::<Vec<_>>();
        let changed = |plant: &str| {
            let (old, new) = (lines(TEXT), lines(&apply(plant).unwrap()));
            assert_eq!(old.len(), new.len());
            let differ = |(old, new): (&String, &String)| (old != new).then(|| new.clone());
            let at = old.iter().zip(&new).position(|(old, new)| old != new);
            (at, old.iter().zip(&new).filter_map(differ).collect::<Vec<_>>())
        };
        assert_eq!(changed("two; 2; bar.sync; drop"), (Some(10), vec![String::new()]));
        let replaced = vec!["ld.global.u32 \t%f1, [%rd1];".to_owned()];
        assert_eq!(changed("two; 1; ld.global.f32; replace ld.global.u32"), (Some(9), replaced));
        let shifted = vec!["ld.global.f32 \t%f1, [%rd1+4];".to_owned()];
        assert_eq!(changed("two; 1; ld.global; shift 4"), (Some(9), shifted));
        let shifted = vec!["st.global.f32 \t[%rd2+4], %f1;".to_owned()];
        assert_eq!(changed("two; 1; st.global; shift -4"), (Some(11), shifted));
        assert_eq!(apply("three; 1; bar.sync; drop").unwrap(), TEXT, "another module");
        assert_eq!(apply("skip cuStreamWaitEvent").unwrap(), TEXT);
    }

    #[test]
    fn plants_without_a_place_are_refused() {
        assert!(apply("one; 2; bar.sync; drop").unwrap_err().contains("has 1 lines"));
        assert!(apply("two; 1; bar.sync; shift 4").unwrap_err().contains("no address"));
        for bad in ["", "hop cuInit", "a; b; c; drop", "a; 1; c; turn", "a; 1; c; shift x", "a; 1"]
        {
            assert!(Plant::parse(bad).is_err(), "{bad}");
        }
    }
}
