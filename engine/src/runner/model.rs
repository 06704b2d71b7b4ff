//! What every rank runs alike: from a batch to logits.

use halyard_core::DeviceError;

use crate::{
    batch::Batch,
    program::{Executable, Inputs, Lengths, Section, Sizes},
};

/// A rank's part of a loaded model.
#[derive(Debug)]
pub(crate) struct Model {
    pub(crate) exec: Executable,
    inputs: Inputs,
    /// Columns of the block table's memory.
    table_width: usize,
}

impl Model {
    pub(crate) fn new(exec: Executable, inputs: Inputs, table_width: usize) -> Self {
        Self { exec, inputs, table_width }
    }

    /// From token ids to the residual stream.
    pub(crate) fn forward(&mut self, batch: &Batch) -> Result<(), DeviceError> {
        let Self { exec, inputs, table_width } = self;
        exec.write(&inputs.ids, &batch.ids)?;
        exec.write(&inputs.positions, &batch.positions)?;
        exec.write(&inputs.slots, &batch.slots)?;
        exec.write(&inputs.cu_q, &batch.cu_q)?;
        exec.write(&inputs.kv_len, &batch.kv_len)?;
        for (row, blocks) in batch.block_table.chunks_exact(batch.max_blocks.max(1)).enumerate() {
            exec.write_at(&inputs.block_table, row * *table_width, blocks)?;
        }
        let sizes = Sizes {
            tokens: batch.num_tokens(),
            seqs: batch.num_seqs(),
            table_width: batch.max_blocks,
            ..Sizes::default()
        };
        let lengths = Lengths {
            cu_q: &batch.cu_q,
            kv_len: &batch.kv_len,
            max_q: batch.max_q,
            max_kv: batch.max_kv,
            num_single: batch.num_single,
        };
        exec.run(Section::Body, &sizes, Some(lengths))
    }

    /// Logits of some of the batch's `num_tokens` tokens.
    pub(crate) fn head(&mut self, rows: &[i32], num_tokens: usize) -> Result<(), DeviceError> {
        self.exec.write(&self.inputs.rows, rows)?;
        let sizes = Sizes { tokens: num_tokens, rows: rows.len(), ..Sizes::default() };
        self.exec.run(Section::Head, &sizes, None)
    }
}
