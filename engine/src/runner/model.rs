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
    pub(super) inputs: Inputs,
    /// Columns of the block table's memory.
    table_width: usize,
    /// Longest sequence.
    max_model_len: usize,
}

impl Model {
    pub(crate) fn new(
        exec: Executable,
        inputs: Inputs,
        table_width: usize,
        max_model_len: usize,
    ) -> Self {
        Self { exec, inputs, table_width, max_model_len }
    }

    /// From token ids to the residual stream.
    pub(crate) fn forward(&mut self, batch: &Batch) -> Result<(), DeviceError> {
        self.write_inputs(batch)?;
        self.body(batch)
    }

    /// Logits of some of the batch's `num_tokens` tokens. A batch that was filled up to a bucket has as many rows.
    pub(crate) fn head(
        &mut self,
        rows: &[i32],
        num_tokens: usize,
        bucket: Option<usize>,
    ) -> Result<(), DeviceError> {
        self.exec.write(&self.inputs.rows, rows)?;
        if let Some(bucket) = bucket
            && self.exec.replay((Section::Head, bucket), None)?
        {
            return Ok(());
        }
        self.exec.run(Section::Head, &of_head(rows.len(), num_tokens), None)
    }

    /// Captures the graphs of decode steps of so many sequences. Nothing is computed.
    pub(crate) fn capture(&mut self, bucket: usize) -> Result<(), DeviceError> {
        let batch = Batch::padding(bucket);
        let (sizes, lengths) = self.of_body(&batch);
        self.exec.capture((Section::Body, bucket), &sizes, Some(lengths))?;
        self.exec.capture((Section::Head, bucket), &of_head(bucket, bucket), None)
    }

    pub(super) fn write_inputs(&self, batch: &Batch) -> Result<(), DeviceError> {
        let Self { exec, inputs, table_width, .. } = self;
        let table = (batch.max_blocks, *table_width);
        exec.write_all(&[
            exec.input(&inputs.ids, &batch.ids),
            exec.input(&inputs.positions, &batch.positions),
            exec.input(&inputs.slots, &batch.slots),
            exec.input(&inputs.cu_q, &batch.cu_q),
            exec.input(&inputs.kv_len, &batch.kv_len),
            exec.input_rows(&inputs.block_table, &batch.block_table, table),
        ])
    }

    pub(super) fn body(&mut self, batch: &Batch) -> Result<(), DeviceError> {
        let (sizes, lengths) = self.of_body(batch);
        if let Some(bucket) = batch.bucket
            && self.exec.replay((Section::Body, bucket), Some(lengths))?
        {
            return Ok(());
        }
        self.exec.run(Section::Body, &sizes, Some(lengths))
    }

    /// What launches are told of a batch. Where it was filled up to a bucket, nothing of this changes from step to step but the numbers of
    /// keys.
    fn of_body<'b>(&self, batch: &'b Batch) -> (Sizes, Lengths<'b>) {
        let fixed = batch.bucket.is_some();
        let sizes = Sizes {
            tokens: batch.num_tokens(),
            seqs: batch.num_seqs(),
            table_width: if fixed { self.table_width } else { batch.max_blocks },
            ..Sizes::default()
        };
        let lengths = Lengths {
            cu_q: &batch.cu_q,
            kv_len: &batch.kv_len,
            max_q: batch.max_q,
            max_kv: if fixed { self.max_model_len } else { batch.max_kv },
            num_single: batch.num_single,
        };
        (sizes, lengths)
    }
}

fn of_head(rows: usize, num_tokens: usize) -> Sizes {
    Sizes { tokens: num_tokens, rows, ..Sizes::default() }
}
