//! API keys: `Authorization: Bearer KEY` on the paths under `/v1`.

use axum::{
    extract::{Request, State},
    http::{HeaderMap, Method, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use sha2::{Digest, Sha256};

use super::error::ApiError;
use std::sync::Arc;

/// The keys that open the door; without any it is open.
///
/// Keys are kept and compared as digests: the comparison then takes the same time for every key, and
/// what little its timing tells is about a digest that a client cannot choose.
#[derive(Clone, Default)]
pub struct ApiKeys(Arc<[[u8; 32]]>);

impl std::fmt::Debug for ApiKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ApiKeys({})", self.0.len())
    }
}

impl ApiKeys {
    /// Keeps the digests of `keys`; empty ones are left out.
    pub fn new<I: IntoIterator<Item = S>, S: AsRef<str>>(keys: I) -> Self {
        let digest = |key: S| {
            let key = key.as_ref();
            (!key.is_empty()).then(|| Sha256::digest(key.as_bytes()).into())
        };
        Self(keys.into_iter().filter_map(digest).collect())
    }

    fn allow(&self, headers: &HeaderMap) -> bool {
        if self.0.is_empty() {
            return true;
        }
        let given = headers.get(header::AUTHORIZATION).map_or(&[][..], |value| value.as_bytes());
        let Some((scheme, key)) = given.split_at_checked(7) else { return false };
        if !scheme.eq_ignore_ascii_case(b"bearer ") {
            return false;
        }
        let given: [u8; 32] = Sha256::digest(key.trim_ascii()).into();
        self.0.iter().fold(false, |found, key| found | (*key == given))
    }
}

/// Refuses requests without a key. Preflight requests carry none by design.
pub(crate) async fn require_key(
    State(keys): State<ApiKeys>,
    request: Request,
    next: Next,
) -> Response {
    if request.method() == Method::OPTIONS || keys.allow(request.headers()) {
        next.run(request).await
    } else {
        ApiError::unauthorized().into_response()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allow(keys: &ApiKeys, authorization: &str) -> bool {
        let mut headers = HeaderMap::new();
        headers.insert(header::AUTHORIZATION, authorization.parse().expect("a header"));
        keys.allow(&headers)
    }

    #[test]
    fn any_of_the_keys_opens() {
        let keys = ApiKeys::new(["one", "two", ""]);
        assert!(allow(&keys, "Bearer one"));
        assert!(allow(&keys, "bearer two"));
        for wrong in ["Bearer three", "Bearer ", "Bearer", "Basic one", "one", "Bearer onetwo"] {
            assert!(!allow(&keys, wrong), "{wrong}");
        }
        assert!(!keys.allow(&HeaderMap::new()));
        assert!(ApiKeys::new([""]).allow(&HeaderMap::new()));
    }
}
