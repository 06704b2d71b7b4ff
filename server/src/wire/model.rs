//! `/v1/models`.

use serde::Serialize;

/// All models.
#[derive(Clone, Debug, Serialize)]
pub struct ModelList {
    /// `list`.
    pub object: &'static str,
    /// One card a name.
    pub data: Vec<ModelCard>,
}

/// One model.
#[derive(Clone, Debug, Serialize)]
pub struct ModelCard {
    /// The name requests use.
    pub id: String,
    /// `model`.
    pub object: &'static str,
    /// Seconds since 1970 at which the model was loaded.
    pub created: u64,
    /// Who serves it.
    pub owned_by: &'static str,
    /// What was loaded.
    pub root: String,
    /// The base of an adapter.
    pub parent: Option<String>,
    /// Longest sequence, prompt and output together.
    pub max_model_len: usize,
    /// Kept for old clients.
    pub permission: Vec<ModelPermission>,
}

/// What clients may do with a model. Kept for old clients.
#[derive(Clone, Debug, Serialize)]
#[expect(missing_docs, reason = "the names are the API's")]
#[expect(clippy::struct_excessive_bools, reason = "the shape is the API's")]
pub struct ModelPermission {
    pub id: String,
    pub object: &'static str,
    pub created: u64,
    pub allow_create_engine: bool,
    pub allow_sampling: bool,
    pub allow_logprobs: bool,
    pub allow_search_indices: bool,
    pub allow_view: bool,
    pub allow_fine_tuning: bool,
    pub organization: &'static str,
    pub group: Option<String>,
    pub is_blocking: bool,
}
