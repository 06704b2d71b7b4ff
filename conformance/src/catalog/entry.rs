//! The form of a case file.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::{
    conduct::Conduct,
    execute::Layout,
    generate::{Fill, Routing},
};

/// A file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct File {
    /// Its entries.
    pub(super) case: Vec<Entry>,
}

/// One value, or several to try each of.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum Any<T> {
    /// Several.
    Many(Vec<T>),
    /// One.
    One(T),
}

impl<T> Any<T> {
    pub(super) fn as_slice(&self) -> &[T] {
        match self {
            Self::Many(all) => all,
            Self::One(one) => std::slice::from_ref(one),
        }
    }
}

/// An entry: every combination of its alternatives is a case.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Entry {
    /// Unique.
    pub(super) name: String,
    /// An op's name.
    pub(super) op: String,
    /// What it is for.
    pub(super) why: String,
    /// Profile, if not the op's own: `dense`, `moe`, `sample`; weights in GGUF schemes make it `quant:<scheme>`.
    pub(super) profile: Option<String>,
    /// Beyond what the profile promises.
    #[serde(default)]
    pub(super) optional: bool,
    /// A linear layer whose weight is declared as an embedding, as in models with tied embeddings.
    #[serde(default)]
    pub(super) tied: bool,
    /// What its kernel is put to beside launches on their own.
    #[serde(default)]
    pub(super) conduct: Vec<Conduct>,
    /// Symbols of the catalogue.
    #[serde(default)]
    pub(super) dims: BTreeMap<String, Any<i64>>,
    /// Dims of ops without fixed ones.
    #[serde(default)]
    pub(super) shape: Vec<Vec<i64>>,
    /// Rank of the second operand, where it may be smaller.
    pub(super) b_rank: Option<Any<i64>>,
    /// Compute types; all three if left out.
    pub(super) dtype: Option<Any<String>>,
    /// Dtypes of single slots, where they are not the compute type; several sets to try.
    #[serde(default)]
    pub(super) types: Vec<BTreeMap<String, String>>,
    /// Optional slots that are there; several sets to try.
    #[serde(default)]
    pub(super) with: Vec<Vec<String>>,
    /// Storage of the weights: a float type, `same` (the compute type), a GGUF scheme, or `gguf` for each of those.
    pub(super) weights: Option<Any<String>>,
    /// Attributes that differ from their defaults.
    #[serde(default)]
    pub(super) attrs: BTreeMap<String, Any<toml::Value>>,
    /// Where tensors lie.
    pub(super) layout: Option<Any<Layout>>,
    /// How float slots are filled; several sets to try.
    #[serde(default)]
    pub(super) fill: Vec<BTreeMap<String, Fill>>,
    /// Attention batches: `[new tokens, length]` of each sequence; several to try.
    #[serde(default)]
    pub(super) batch: Vec<Vec<[usize; 2]>>,
    /// Rows of padding.
    #[serde(default)]
    pub(super) padding: usize,
    /// Experts chosen.
    pub(super) routing: Option<Any<Routing>>,
}
