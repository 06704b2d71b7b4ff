//! A mnemonic taken apart: each part must be asked for, so that none is ignored.

use halyard_sim_cuda_ptx::ScalarType;

pub(crate) struct Mnemonic<'a> {
    pub(crate) base: &'a str,
    parts: Vec<Option<&'a str>>,
}

impl<'a> Mnemonic<'a> {
    pub(crate) fn new(text: &'a str) -> Self {
        let mut parts = text.split('.');
        let base = parts.next().unwrap_or_default();
        Self { base, parts: parts.map(Some).collect() }
    }

    /// Takes `part` away, if it is there.
    pub(crate) fn take(&mut self, part: &str) -> bool {
        let found = self.parts.iter_mut().find(|there| **there == Some(part));
        found.is_some_and(|there| there.take().is_some())
    }

    /// Whether any of `parts` is there.
    pub(crate) fn has_any(&self, parts: &[&str]) -> bool {
        self.parts.iter().flatten().any(|part| parts.contains(part))
    }

    /// Takes any of `parts` away: the first in their order that is there.
    pub(crate) fn take_any<'p>(&mut self, parts: &[&'p str]) -> Option<&'p str> {
        parts.iter().copied().find(|part| self.take(part))
    }

    /// Takes what does not change results away: hints to caches and compilers.
    pub(crate) fn take_hints(&mut self) {
        for part in &mut self.parts {
            let hint = part.is_some_and(|part| {
                part.starts_with("L1::") || part.starts_with("L2::") || part == "cache_hint"
            });
            if hint {
                *part = None;
            }
        }
    }

    /// Takes the first type away.
    pub(crate) fn scalar(&mut self) -> Option<ScalarType> {
        let (at, ty) = self
            .parts
            .iter()
            .enumerate()
            .find_map(|(at, part)| Some((at, part.and_then(ScalarType::parse)?)))?;
        self.parts[at] = None;
        Some(ty)
    }

    /// The first part that nobody took.
    pub(crate) fn left(&self) -> Option<&'a str> {
        self.parts.iter().flatten().next().copied()
    }
}
