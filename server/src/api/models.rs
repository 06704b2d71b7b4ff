//! `GET /v1/models` and `GET /v1/models/{id}`.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Path, State},
};

use super::{ApiError, App};
use crate::wire::{ModelCard, ModelList, ModelPermission};

pub(super) async fn list(State(app): State<Arc<App>>) -> Json<ModelList> {
    let data = app.options.model_names.iter().map(|name| card(&app, name)).collect();
    Json(ModelList { object: "list", data })
}

/// The rest of the path is the id: ids hold slashes.
pub(super) async fn one(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
) -> Result<Json<ModelCard>, ApiError> {
    let names = &app.options.model_names;
    // A name that is an absolute path has lost its first slash to the route.
    let found = names.iter().find(|name| **name == id || name.strip_prefix('/') == Some(&id));
    match found {
        Some(name) => Ok(Json(card(&app, name))),
        None => Err(ApiError::model_not_found(&id)),
    }
}

fn card(app: &App, name: &str) -> ModelCard {
    let permission = ModelPermission {
        id: format!("modelperm-{name}"),
        object: "model_permission",
        created: app.created,
        allow_create_engine: false,
        allow_sampling: true,
        allow_logprobs: true,
        allow_search_indices: false,
        allow_view: true,
        allow_fine_tuning: false,
        organization: "*",
        group: None,
        is_blocking: false,
    };
    ModelCard {
        id: name.to_owned(),
        object: "model",
        created: app.created,
        owned_by: "halyard",
        root: app.options.model_root.clone(),
        parent: None,
        max_model_len: app.engine.info().max_model_len,
        permission: vec![permission],
    }
}
