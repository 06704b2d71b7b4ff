//! The operations from logits to tokens and log-probabilities, recorded as sections of a program.

use halyard_core::{
    DType,
    attrs::{Argmax, Copy, LogitsProcess, Logprobs, Sample, Topk},
};

use crate::program::{Graph, Section, Size, Tensor};

/// The tensors of the sampler. Those marked "in" are written before a section runs.
#[derive(Clone, Debug)]
pub(crate) struct SamplerTensors {
    /// In: what the model's head writes, `[rows, vocab]`, f32.
    #[cfg_attr(not(test), expect(dead_code, reason = "tests read what sections leave in it"))]
    pub(crate) logits: Tensor,
    /// In: allowed ids as bits, `[rows, words]`.
    pub(crate) mask: Tensor,
    /// In: ids that occurred, `[rows, width]`, and the next two.
    pub(crate) ids: Tensor,
    pub(crate) count_all: Tensor,
    pub(crate) count_out: Tensor,
    /// In: `[rows, 3]`.
    pub(crate) penalties: Tensor,
    /// In: `[rows, bias width]`.
    pub(crate) bias_ids: Tensor,
    pub(crate) bias: Tensor,
    /// In: one value a row, as the next five.
    pub(crate) temperature: Tensor,
    pub(crate) top_k: Tensor,
    pub(crate) top_p: Tensor,
    pub(crate) min_p: Tensor,
    pub(crate) seed: Tensor,
    pub(crate) offset: Tensor,
    /// Chosen ids, a row each. In, when prompts are scored.
    pub(crate) chosen: Tensor,
    /// Their log-probabilities.
    pub(crate) chosen_logprobs: Tensor,
    /// `[rows, max_logprobs]`, and the next.
    pub(crate) top_ids: Tensor,
    pub(crate) top_logprobs: Tensor,
}

/// Records every section that follows the head. `logits` is `[rows, vocab]` in f32.
pub(crate) fn record(
    g: &mut Graph<'_>,
    logits: &Tensor,
    vocab: usize,
    max_logprobs: usize,
) -> SamplerTensors {
    let t = tensors(g, logits, vocab, max_logprobs);
    let kept = g.tensor(DType::F32, &logits.dims);

    g.begin(Section::Keep);
    g.call(&Copy {}, &[Some(logits), Some(&kept)], &[]);

    g.begin(Section::Process);
    let lists = [&t.mask, &t.ids, &t.count_all, &t.count_out, &t.penalties, &t.bias_ids, &t.bias];
    let slots: Vec<_> = std::iter::once(logits).chain(lists).map(Some).collect();
    g.call(&LogitsProcess {}, &slots, &[]);

    g.begin(Section::Argmax);
    g.call(&Argmax {}, &[Some(logits), Some(&t.chosen)], &[]);

    g.begin(Section::Sample);
    let params = [&t.temperature, &t.top_k, &t.top_p, &t.min_p, &t.seed, &t.offset];
    let slots: Vec<_> =
        std::iter::once(logits).chain(params).chain([&t.chosen]).map(Some).collect();
    g.call(&Sample {}, &slots, &[]);

    let chosen = Tensor { dims: vec![Size::Rows, Size::Fixed(1)], ..t.chosen.clone() };
    for (source, chosen_section, top_section) in
        [(logits, Section::Chosen, Section::Top), (&kept, Section::KeptChosen, Section::KeptTop)]
    {
        g.begin(chosen_section);
        g.call(&Logprobs {}, &[Some(source), Some(&chosen), Some(&t.chosen_logprobs)], &[]);
        if max_logprobs > 0 {
            let values = g.tensor(DType::F32, &t.top_ids.dims);
            g.begin(top_section);
            g.call(&Topk {}, &[Some(source), Some(&values), Some(&t.top_ids)], &[]);
            g.call(&Logprobs {}, &[Some(source), Some(&t.top_ids), Some(&t.top_logprobs)], &[]);
        }
    }
    t
}

fn tensors(
    g: &mut Graph<'_>,
    logits: &Tensor,
    vocab: usize,
    max_logprobs: usize,
) -> SamplerTensors {
    let words = vocab.div_ceil(32);
    let mut list = |dtype, width| g.tensor(dtype, &[Size::ListRows, width]);
    let mask = list(DType::U32, Size::Fixed(words));
    let ids = list(DType::I32, Size::ListWidth);
    let count_all = list(DType::I32, Size::ListWidth);
    let count_out = list(DType::I32, Size::ListWidth);
    let penalties = list(DType::F32, Size::Fixed(3));
    let bias_ids = list(DType::I32, Size::BiasWidth);
    let bias = list(DType::F32, Size::BiasWidth);
    let mut value = |dtype| g.tensor(dtype, &[Size::Rows]);
    let (temperature, top_k) = (value(DType::F32), value(DType::I32));
    let (top_p, min_p) = (value(DType::F32), value(DType::F32));
    let (seed, offset, chosen) = (value(DType::U64), value(DType::U64), value(DType::I32));
    let mut wide = |dtype, width| g.tensor(dtype, &[Size::Rows, Size::Fixed(width)]);
    SamplerTensors {
        logits: logits.clone(),
        mask,
        ids,
        count_all,
        count_out,
        penalties,
        bias_ids,
        bias,
        temperature,
        top_k,
        top_p,
        min_p,
        seed,
        offset,
        chosen,
        chosen_logprobs: wide(DType::F32, 1),
        // A tensor has at least one column even if nobody may ask for alternatives.
        top_ids: wide(DType::I32, max_logprobs.max(1)),
        top_logprobs: wide(DType::F32, max_logprobs.max(1)),
    }
}
