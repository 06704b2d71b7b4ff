//! Objects that a host names by number.

use std::{
    collections::HashMap,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
};

use crate::{Result, requests::unknown};

/// Objects of one kind by handle. A handle is never given twice.
#[derive(Debug)]
pub struct Handles<T> {
    kind: &'static str,
    last: AtomicU64,
    objects: RwLock<HashMap<u64, Arc<T>>>,
}

impl<T> Handles<T> {
    /// None yet; `kind` is what errors call them.
    #[must_use]
    pub fn new(kind: &'static str) -> Self {
        Self { kind, last: AtomicU64::new(0), objects: RwLock::default() }
    }

    /// Keeps an object; its handle.
    pub fn insert(&self, object: T) -> u64 {
        let handle = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        let mut objects = self.objects.write().unwrap_or_else(PoisonError::into_inner);
        objects.insert(handle, Arc::new(object));
        handle
    }

    /// The object.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` naming kind and handle.
    pub fn get(&self, handle: u64) -> Result<Arc<T>> {
        let objects = self.objects.read().unwrap_or_else(PoisonError::into_inner);
        objects.get(&handle).map(Arc::clone).ok_or_else(|| unknown(self.kind, handle))
    }

    /// Takes the object out.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` naming kind and handle.
    pub fn remove(&self, handle: u64) -> Result<Arc<T>> {
        let mut objects = self.objects.write().unwrap_or_else(PoisonError::into_inner);
        objects.remove(&handle).ok_or_else(|| unknown(self.kind, handle))
    }

    /// Lets go of all.
    pub fn clear(&self) {
        self.objects.write().unwrap_or_else(PoisonError::into_inner).clear();
    }
}
