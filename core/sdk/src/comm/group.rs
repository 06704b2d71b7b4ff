//! Calls that are issued together.

use crate::{Error, Result};

/// The calls of a communicator's group, if one is open.
#[derive(Debug)]
pub struct Group<T>(Option<Vec<T>>);

impl<T> Default for Group<T> {
    fn default() -> Self {
        Self(None)
    }
}

impl<T> Group<T> {
    /// Opens it.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` if it is open.
    pub fn begin(&mut self) -> Result<()> {
        if self.is_open() {
            return Err(Error::invalid("a group is open already: groups do not nest"));
        }
        self.0 = Some(Vec::new());
        Ok(())
    }

    /// Whether it is open.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.0.is_some()
    }

    /// Keeps a call for its end; gives it back if it is not open.
    pub fn keep(&mut self, call: T) -> Option<T> {
        match &mut self.0 {
            Some(calls) => {
                calls.push(call);
                None
            }
            None => Some(call),
        }
    }

    /// Closes it; its calls, in their order.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` if it is not open.
    pub fn end(&mut self) -> Result<Vec<T>> {
        self.0.take().ok_or_else(|| Error::invalid("no group is open"))
    }

    /// Refuses a split while it is open.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT`.
    pub fn check_split(&self) -> Result<()> {
        if self.is_open() {
            return Err(Error::invalid("a split inside a group"));
        }
        Ok(())
    }
}
