//! Names for full blocks of tokens.

use sha2::{Digest, Sha256};

/// Names a full block by its tokens and everything before them.
///
/// 128 bits of SHA-256: prompts come from strangers, and two prompts with one name would let one
/// client read what another wrote.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) struct BlockHash(u128);

impl BlockHash {
    /// The name before the first block. Different salts never share blocks.
    pub(super) fn root(salt: Option<u64>) -> Self {
        match salt {
            None => Self(0),
            Some(salt) => {
                let mut sha = Sha256::new();
                sha.update(b"salt");
                sha.update(salt.to_le_bytes());
                Self::of(sha)
            }
        }
    }

    /// The name of the block `tokens` after a prefix with this name.
    pub(super) fn child(self, tokens: &[u32]) -> Self {
        let mut sha = Sha256::new();
        sha.update(self.0.to_le_bytes());
        for token in tokens {
            sha.update(token.to_le_bytes());
        }
        Self::of(sha)
    }

    fn of(sha: Sha256) -> Self {
        let digest = sha.finalize();
        let mut half = [0; 16];
        half.copy_from_slice(&digest[..16]);
        Self(u128::from_le_bytes(half))
    }
}
