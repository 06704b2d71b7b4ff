//! What ranks beside rank 0 are told to run, and its form between processes.

use std::time::Duration;

use halyard_core::DeviceError;

use super::Model;
use crate::{
    batch::Batch,
    process::{FIRST_PART, Fields, FrameWriter, Malformed},
};

/// A part of a step with what it needs. Keeps its memory from one to the next.
#[derive(Debug)]
pub(crate) struct Work {
    part: Part,
    batch: Batch,
    rows: Vec<i32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    /// From the batch to the residual stream.
    Forward,
    /// Logits of some rows of the batch of the last `Forward`.
    Head { num_tokens: usize, bucket: Option<usize> },
    /// The graphs of decode steps of so many sequences.
    Capture { bucket: usize },
}

/// A part as rank 0 has it.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Order<'a> {
    /// [`Model::forward`].
    Forward(&'a Batch),
    /// [`Model::head`].
    Head { rows: &'a [i32], num_tokens: usize, bucket: Option<usize> },
    /// [`Model::capture`].
    Capture { bucket: usize },
}

impl Work {
    /// `batch` is an empty one with room.
    pub(crate) fn new(batch: Batch) -> Self {
        // Wanted rows are of the batch.
        let rows = Vec::with_capacity(batch.ids.capacity());
        Self { part: Part::Forward, batch, rows }
    }

    /// Takes an order over.
    pub(crate) fn fill(&mut self, order: Order<'_>) {
        self.part = match order {
            Order::Forward(batch) => {
                self.batch.copy_inputs(batch);
                Part::Forward
            }
            Order::Head { rows, num_tokens, bucket } => {
                self.rows.clear();
                self.rows.extend_from_slice(rows);
                Part::Head { num_tokens, bucket }
            }
            Order::Capture { bucket } => Part::Capture { bucket },
        };
    }

    pub(crate) fn run(&self, model: &mut Model, timeout: Duration) -> Result<(), DeviceError> {
        match self.part {
            Part::Forward => model.forward(&self.batch),
            Part::Capture { bucket } => model.capture(bucket),
            Part::Head { num_tokens, bucket } => {
                model.head(&self.rows, num_tokens, bucket)?;
                // What failed on the device must be known here: rank 0 sees its own device only.
                model.exec.wait(timeout)
            }
        }
    }
}

const FORWARD: u8 = FIRST_PART;
const HEAD: u8 = FIRST_PART + 1;
const CAPTURE: u8 = FIRST_PART + 2;

impl Order<'_> {
    /// Bytes of the longest frame of an order about a batch within the capacity of this one.
    pub(crate) fn most_bytes(batch: &Batch) -> usize {
        const SIZES: usize = 256;
        let lists = [&batch.ids, &batch.positions, &batch.block_table, &batch.cu_q, &batch.kv_len];
        let words: usize = lists.iter().map(|list| list.capacity()).sum();
        SIZES + 4 * words + 8 * batch.slots.capacity()
    }

    /// The order as a frame.
    ///
    /// # Errors
    /// It is longer than frames may be.
    pub(crate) fn frame<'w>(&self, writer: &'w mut FrameWriter) -> Result<&'w [u8], Malformed> {
        match *self {
            Order::Forward(batch) => writer.frame(FORWARD, |w| write_batch(w, batch)),
            Order::Head { rows, num_tokens, bucket } => writer.frame(HEAD, |w| {
                w.size(num_tokens);
                write_bucket(w, bucket);
                w.i32s(rows);
            }),
            Order::Capture { bucket } => writer.frame(CAPTURE, |w| w.size(bucket)),
        }
    }
}

impl Work {
    /// Takes over the order of a frame. After an error it holds anything.
    ///
    /// # Errors
    /// The frame is no order, or one that no rank 0 gives.
    pub(crate) fn read(&mut self, (kind, mut fields): (u8, Fields<'_>)) -> Result<(), Malformed> {
        let f = &mut fields;
        self.part = match kind {
            FORWARD => {
                read_batch(f, &mut self.batch)?;
                Part::Forward
            }
            HEAD => {
                let part = Part::Head { num_tokens: f.size()?, bucket: read_bucket(f)? };
                f.i32s(&mut self.rows)?;
                part
            }
            CAPTURE => Part::Capture { bucket: f.size()? },
            _ => return Err(Malformed("an unknown part of a step")),
        };
        fields.end()
    }
}

/// What [`Batch::copy_inputs`] copies.
fn write_batch(w: &mut FrameWriter, batch: &Batch) {
    w.i32s(&batch.ids);
    w.i32s(&batch.positions);
    w.i64s(&batch.slots);
    w.i32s(&batch.block_table);
    w.i32s(&batch.cu_q);
    w.i32s(&batch.kv_len);
    w.size(batch.num_single);
    w.size(batch.max_q);
    w.size(batch.max_kv);
    w.size(batch.max_blocks);
    write_bucket(w, batch.bucket);
}

fn read_batch(f: &mut Fields<'_>, batch: &mut Batch) -> Result<(), Malformed> {
    f.i32s(&mut batch.ids)?;
    f.i32s(&mut batch.positions)?;
    f.i64s(&mut batch.slots)?;
    f.i32s(&mut batch.block_table)?;
    f.i32s(&mut batch.cu_q)?;
    f.i32s(&mut batch.kv_len)?;
    batch.num_single = f.size()?;
    batch.max_q = f.size()?;
    batch.max_kv = f.size()?;
    batch.max_blocks = f.size()?;
    batch.bucket = read_bucket(f)?;
    let (tokens, seqs) = (batch.num_tokens(), batch.num_seqs());
    let is_whole = batch.positions.len() == tokens
        && batch.slots.len() == tokens
        && batch.cu_q.len() == seqs + 1
        && batch.num_single <= seqs
        && seqs.checked_mul(batch.max_blocks) == Some(batch.block_table.len());
    if is_whole { Ok(()) } else { Err(Malformed("a batch whose lists do not belong together")) }
}

fn write_bucket(w: &mut FrameWriter, bucket: Option<usize>) {
    w.u8(bucket.is_some().into());
    w.size(bucket.unwrap_or(0));
}

fn read_bucket(f: &mut Fields<'_>) -> Result<Option<usize>, Malformed> {
    let (is_some, bucket) = (f.flag()?, f.size()?);
    Ok(is_some.then_some(bucket))
}

#[cfg(test)]
impl Work {
    /// Whether it holds just this.
    pub(crate) fn is(&self, order: Order<'_>) -> bool {
        let of = |batch: &Batch| {
            let Batch { ids, positions, slots, block_table, cu_q, kv_len, .. } = batch;
            let lists = [ids, positions, block_table, cu_q, kv_len].map(Clone::clone);
            let Batch { num_single, max_q, max_kv, max_blocks, bucket, .. } = *batch;
            (lists, slots.clone(), [num_single, max_q, max_kv, max_blocks], bucket)
        };
        match order {
            Order::Forward(batch) => self.part == Part::Forward && of(&self.batch) == of(batch),
            Order::Head { rows, num_tokens, bucket } => {
                self.part == Part::Head { num_tokens, bucket } && self.rows == rows
            }
            Order::Capture { bucket } => self.part == Part::Capture { bucket },
        }
    }
}
