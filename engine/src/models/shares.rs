//! How a model is divided among ranks, in the manner of Megatron-LM: each layer that widens the stream by rows, the one that
//! narrows it again by columns, so that a rank needs the others only for the sum that follows.
//!
//! | tensors | rows | columns |
//! |---|---|---|
//! | `q_proj` | query heads | |
//! | `k_proj`, `v_proj` | heads of keys and values; several ranks have the same one if there are fewer than ranks | |
//! | `o_proj` | | query heads |
//! | `gate_proj`, `up_proj`, also of experts | intermediate size | |
//! | `down_proj`, also of experts | | intermediate size |
//! | `embed_tokens`, `lm_head` | vocabulary | |
//! | norms, routers | | |
//!
//! What has no entry is whole on every rank. Biases go with the rows; that of a layer divided by columns is rank 0's, so that the
//! sum has it once.

use halyard_weights::ModelConfig;

use crate::{
    error::LoadError,
    program::{Rank, Share},
};

/// What one rank has.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shares {
    pub(crate) rank: Rank,
    pub(crate) q_heads: Share,
    pub(crate) kv_heads: Share,
    /// The last rank's may be smaller.
    pub(crate) vocab: Share,
}

impl Shares {
    /// # Errors
    /// Heads or vocabulary cannot be divided among so many ranks.
    pub(crate) fn new(config: &ModelConfig, rank: Rank) -> Result<Self, LoadError> {
        let first = "model.layers.0.self_attn";
        let q = ("num_attention_heads", config.num_attention_heads);
        Ok(Self {
            rank,
            q_heads: even(rank, &format!("{first}.q_proj"), q)?,
            kv_heads: kv_heads(rank, &format!("{first}.k_proj"), config.num_key_value_heads)?,
            vocab: vocabulary(rank, config.vocab_size)?,
        })
    }

    /// Of the inner extent of an MLP, or of experts; `layer` and `name` (of the configuration) are for the message.
    ///
    /// # Errors
    /// It cannot be divided evenly.
    pub(crate) fn inner(
        &self,
        layer: &str,
        (name, size): (&str, usize),
    ) -> Result<Share, LoadError> {
        even(self.rank, layer, (name, size))
    }

    /// Most of the vocabulary that a rank has.
    pub(crate) fn widest_vocab(&self) -> usize {
        self.vocab.whole.div_ceil(self.rank.world)
    }
}

fn indivisible(rank: Rank, tensor: &str, why: String) -> LoadError {
    LoadError::Indivisible { tensor: tensor.to_owned(), why, ranks: rank.world, works: Vec::new() }
}

/// The same for every rank.
fn even(rank: Rank, layer: &str, (name, whole): (&str, usize)) -> Result<Share, LoadError> {
    if !whole.is_multiple_of(rank.world) {
        let why = format!("{name} = {whole} is no multiple of {}", rank.world);
        return Err(indivisible(rank, layer, why));
    }
    let len = whole / rank.world;
    Ok(Share { start: rank.index * len, len, whole })
}

/// Evenly, or one head for several ranks in a row: those whose query heads look at it.
fn kv_heads(rank: Rank, layer: &str, whole: usize) -> Result<Share, LoadError> {
    if rank.world <= whole || !rank.world.is_multiple_of(whole) {
        let name = "num_key_value_heads";
        return even(rank, layer, (name, whole)).map_err(|_| {
            let world = rank.world;
            let why = format!("{name} = {whole} is neither a multiple nor a divisor of {world}");
            indivisible(rank, layer, why)
        });
    }
    Ok(Share { start: rank.index / (rank.world / whole), len: 1, whole })
}

/// Evenly but for the last rank, which has what is left.
fn vocabulary(rank: Rank, whole: usize) -> Result<Share, LoadError> {
    let each = whole.div_ceil(rank.world);
    let Some(left) = whole.checked_sub(each * (rank.world - 1)).filter(|&left| left > 0) else {
        let why = format!("vocab_size = {whole} in parts of {each} leaves nothing for the last");
        return Err(indivisible(rank, "model.embed_tokens", why));
    };
    let last = rank.index + 1 == rank.world;
    Ok(Share { start: rank.index * each, len: if last { left } else { each }, whole })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranks(world: usize) -> impl Iterator<Item = Rank> {
        (0..world).map(move |index| Rank { index, world })
    }

    #[test]
    fn shares_make_the_whole() {
        for (world, whole) in [(1, 7), (2, 1024), (3, 1025), (4, 32_001), (8, 151_936)] {
            let mut next = 0;
            for rank in ranks(world) {
                let share = vocabulary(rank, whole).expect("enough for all");
                assert_eq!(share.start, next);
                assert!(share.len <= whole.div_ceil(world));
                next += share.len;
            }
            assert_eq!(next, whole);
        }
        assert!(vocabulary(Rank { index: 0, world: 4 }, 5).is_err());
    }

    #[test]
    fn ranks_share_a_head_of_keys_if_there_are_more_ranks() {
        let heads = |world, whole| -> Vec<std::ops::Range<usize>> {
            ranks(world).map(|rank| kv_heads(rank, "k", whole).expect("even").range()).collect()
        };
        assert_eq!(heads(2, 4), [0..2, 2..4]);
        assert_eq!(heads(4, 2), [0..1, 0..1, 1..2, 1..2]);
        assert_eq!(heads(3, 1), [0..1, 0..1, 0..1]);
        let error = kv_heads(Rank { index: 0, world: 3 }, "k", 2).expect_err("neither");
        let text = error.to_string();
        assert!(text.contains("num_key_value_heads = 2 is neither"), "{text}");
    }
}
