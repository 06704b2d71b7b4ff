//! The case catalogue: data in `cases/*.toml`, expanded into single cases.

mod entry;
mod expand;
mod profiles;
mod weights;

use halyard_core::{OpBuf, WeightDesc};

use crate::{conduct::Conduct, execute::Layout, generate::Recipe, symbols::Symbols};
use entry::File;

/// One case, ready to run.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    /// Unique; entry name and what varies.
    pub(crate) name: String,
    /// What it is for.
    pub(crate) why: String,
    pub(crate) profile: String,
    /// A backend that declares the profile may still say no.
    pub(crate) optional: bool,
    /// What its kernel is put to beside launches on their own.
    pub(crate) conduct: Vec<Conduct>,
    pub(crate) op: OpBuf,
    pub(crate) weights: Vec<WeightDesc<'static>>,
    pub(crate) symbols: Symbols,
    pub(crate) recipe: Recipe,
    pub(crate) layout: Layout,
}

impl Case {
    /// Whether a backend that declares these profiles promises it: who has a scheme of weights has it in the ops of its other profiles,
    /// and who has no experts has none in quantised form.
    pub(crate) fn promised_by(&self, declared: &[String]) -> bool {
        let has = |profile: &str| declared.iter().any(|d| d == profile);
        !self.optional && has(&self.profile) && has(profiles::of(&self.op))
    }
}

/// The files, built in.
const FILES: [(&str, &str); 14] = [
    ("rows.toml", include_str!("../../cases/rows.toml")),
    ("rope.toml", include_str!("../../cases/rope.toml")),
    ("linear.toml", include_str!("../../cases/linear.toml")),
    ("quant.toml", include_str!("../../cases/quant.toml")),
    ("attention.toml", include_str!("../../cases/attention.toml")),
    ("moe.toml", include_str!("../../cases/moe.toml")),
    ("logits.toml", include_str!("../../cases/logits.toml")),
    ("latent.toml", include_str!("../../cases/latent.toml")),
    ("contiguous.toml", include_str!("../../cases/contiguous.toml")),
    ("scaled.toml", include_str!("../../cases/scaled.toml")),
    ("kv8.toml", include_str!("../../cases/kv8.toml")),
    ("fusion.toml", include_str!("../../cases/fusion.toml")),
    ("large.toml", include_str!("../../cases/large.toml")),
    ("conduct.toml", include_str!("../../cases/conduct.toml")),
];

/// The files of the full sweep, which runs in addition when it is asked for.
const FULL: [(&str, &str); 5] = [
    ("full/attention.toml", include_str!("../../cases/full/attention.toml")),
    ("full/linear.toml", include_str!("../../cases/full/linear.toml")),
    ("full/experts.toml", include_str!("../../cases/full/experts.toml")),
    ("full/logits.toml", include_str!("../../cases/full/logits.toml")),
    ("full/rows.toml", include_str!("../../cases/full/rows.toml")),
];

/// A file of cases is malformed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{file}: {reason}")]
pub struct CatalogError {
    /// Which file.
    pub file: String,
    /// What is wrong.
    pub reason: String,
}

/// Every case, in the order of the files; with those of the full sweep or without.
pub(crate) fn cases(full: bool) -> Result<Vec<Case>, CatalogError> {
    let mut all = Vec::new();
    let sweep = if full { &FULL[..] } else { &[] };
    for (file, text) in FILES.iter().chain(sweep) {
        all.extend(parse(file, text)?);
    }
    Ok(all)
}

/// The shapes whose kernels are timed.
pub(crate) fn perf_cases() -> Result<Vec<Case>, CatalogError> {
    parse("perf.toml", include_str!("../../cases/perf.toml"))
}

/// The shapes whose kernels run once, for a simulator to count.
pub(crate) fn counted_cases() -> Result<Vec<Case>, CatalogError> {
    parse("counted.toml", include_str!("../../cases/counted.toml"))
}

/// The cases of one file.
pub(crate) fn parse(file: &str, text: &str) -> Result<Vec<Case>, CatalogError> {
    let bad = |reason: String| CatalogError { file: file.to_owned(), reason };
    let parsed: File = toml::from_str(text).map_err(|e| bad(e.to_string()))?;
    let mut all = Vec::new();
    for entry in &parsed.case {
        let cases = expand::expand(entry);
        all.extend(cases.map_err(|reason| bad(format!("case {}: {reason}", entry.name)))?);
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn the_catalogue_is_well_formed_and_names_are_unique() {
        let cases = cases(true).unwrap();
        let mut names = HashSet::new();
        for case in &cases {
            assert!(names.insert(case.name.clone()), "{} is there twice", case.name);
            let checked = halyard_abi::ops::check::check_desc(&case.op.desc());
            assert!(checked.is_ok(), "{}: {}", case.name, checked.unwrap_err());
        }
        assert!(cases.len() > 30_000, "{} cases", cases.len());
        // Whoever gives a part of a name should not get both by accident.
        let default: Vec<_> = super::cases(false).unwrap();
        assert!(default.len() > 4_000, "{} default cases", default.len());
        assert!(default.iter().all(|case| !case.name.starts_with("full_")));
        assert!(cases[default.len()..].iter().all(|case| case.name.starts_with("full_")));
    }

    #[test]
    fn every_op_has_cases_and_every_scheme_a_profile() {
        let cases = cases(false).unwrap();
        for schema in halyard_abi::ops::catalogue::CATALOGUE {
            // Needs a communicator of several ranks: the profile `comm`.
            if schema.kind == halyard_core::OpKind::LINEAR_ALL_REDUCE {
                continue;
            }
            assert!(cases.iter().any(|c| c.op.kind() == schema.kind), "{}", schema.kind);
        }
        let profiles: HashSet<&str> = cases.iter().map(|c| c.profile.as_str()).collect();
        let dense = halyard_core::Scheme::DENSE;
        for scheme in halyard_core::Scheme::ALL.iter().filter(|s| **s != dense) {
            assert!(profiles.contains(format!("quant:{scheme}").as_str()), "{scheme}");
        }
    }

    #[test]
    fn a_scheme_is_promised_in_the_ops_of_the_other_profiles() {
        let cases = cases(false).unwrap();
        let promised = |name: &str, declared: &[&str]| {
            let declared: Vec<String> = declared.iter().copied().map(String::from).collect();
            let starts = |c: &&Case| c.name.starts_with(name) && c.profile == "quant:q8_0";
            cases.iter().find(starts).unwrap().promised_by(&declared)
        };
        assert!(promised("quant_linear/", &["dense", "quant:q8_0"]));
        assert!(!promised("quant_linear/", &["dense", "quant:q4_1"]));
        assert!(!promised("quant_experts/", &["dense", "quant:q8_0"]));
        assert!(promised("quant_experts/", &["dense", "moe", "quant:q8_0"]));
    }

    #[test]
    fn mistakes_in_a_file_are_named() {
        let text =
            "[[case]]\nname = \"x\"\nop = \"linear\"\nwhy = \"?\"\ndims = { T = 1, Q = 2 }\n";
        let error = parse("f.toml", text).unwrap_err().to_string();
        assert!(error.starts_with("f.toml: case x:") && error.contains('Q'), "{error}");
        let error = parse("f.toml", "[[case]]\nnam = 1\n").unwrap_err().to_string();
        assert!(error.contains("nam"), "{error}");
    }
}
