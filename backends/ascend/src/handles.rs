//! Objects that a host names by number.

use std::{
    collections::HashMap,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
};

use halyard_sdk::{Error, Result};

/// Objects of one kind by handle. A handle is never given twice.
#[derive(Debug)]
pub(crate) struct Handles<T> {
    kind: &'static str,
    last: AtomicU64,
    objects: RwLock<HashMap<u64, Arc<T>>>,
}

impl<T> Handles<T> {
    pub(crate) fn new(kind: &'static str) -> Self {
        Self { kind, last: AtomicU64::new(0), objects: RwLock::default() }
    }

    pub(crate) fn insert(&self, object: T) -> u64 {
        let handle = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        let mut objects = self.objects.write().unwrap_or_else(PoisonError::into_inner);
        objects.insert(handle, Arc::new(object));
        handle
    }

    pub(crate) fn get(&self, handle: u64) -> Result<Arc<T>> {
        let objects = self.objects.read().unwrap_or_else(PoisonError::into_inner);
        objects.get(&handle).map(Arc::clone).ok_or_else(|| self.unknown(handle))
    }

    pub(crate) fn remove(&self, handle: u64) -> Result<Arc<T>> {
        let mut objects = self.objects.write().unwrap_or_else(PoisonError::into_inner);
        objects.remove(&handle).ok_or_else(|| self.unknown(handle))
    }

    pub(crate) fn clear(&self) {
        self.objects.write().unwrap_or_else(PoisonError::into_inner).clear();
    }

    fn unknown(&self, handle: u64) -> Error {
        Error::invalid(format!("no {} {handle:#x}", self.kind))
    }
}
