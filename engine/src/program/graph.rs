//! Records a model's operations, one method each. The formulas are in the catalogue of the backend ABI.

use std::collections::HashMap;

use halyard_core::{
    DType, OpBuf, TensorSpec, WeightDesc,
    attrs::{
        Act, ActMul, Copy, Embedding, GatherRows, KvWrite, Linear, MoeExperts, MoeRouter,
        PagedAttention, RmsNorm, Rope,
    },
    ops::OpAttrs,
};

use super::{
    BufferSpec, Call, Content, Exchange, Form, Layer, Place, Program, Rank, Section, Share, Size,
    Source, Step, Tensor, VectorPart, WeightPart, WeightSpec,
};
use crate::error::LoadError;

/// Linear layers that read one input and write side by side: a single merged weight where the parts
/// are stored alike, else one each.
#[derive(Clone, Debug)]
pub(crate) struct LinearWeight {
    /// Index of the weight and its rows, in order of the output's columns.
    weights: Vec<(usize, usize)>,
    bias: Option<Tensor>,
}

/// The weights of a layer's experts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ExpertWeights {
    gate_up: usize,
    down: usize,
}

/// The tensors that each step brings.
#[derive(Clone, Debug)]
pub(crate) struct Inputs {
    pub(crate) ids: Tensor,
    pub(crate) positions: Tensor,
    pub(crate) slots: Tensor,
    pub(crate) block_table: Tensor,
    pub(crate) cu_q: Tensor,
    pub(crate) kv_len: Tensor,
    /// Which tokens' logits are wanted.
    pub(crate) rows: Tensor,
}

/// The keys and values of one layer.
#[derive(Clone, Debug)]
pub(crate) struct Cache {
    keys: Tensor,
    /// `None` if the backend keeps them with the keys.
    values: Option<Tensor>,
}

/// Records a program.
#[derive(Debug)]
pub(crate) struct Graph<'a> {
    pub(crate) source: &'a Source<'a>,
    /// Type of activations.
    pub(crate) compute: DType,
    rank: Rank,
    program: Program,
    /// Index of each operation by its canonical form.
    ops: HashMap<String, usize>,
    /// The backend keeps values with the keys.
    fused_kv: bool,
    /// Where calls go.
    section: Section,
}

impl<'a> Graph<'a> {
    pub(crate) fn new(source: &'a Source<'a>, compute: DType, fused_kv: bool, rank: Rank) -> Self {
        Self {
            source,
            compute,
            rank,
            fused_kv,
            program: Program::default(),
            ops: HashMap::new(),
            section: Section::Body,
        }
    }

    pub(crate) fn finish(self) -> Program {
        self.program
    }

    /// What is recorded from here on belongs to this section.
    pub(crate) fn begin(&mut self, section: Section) {
        self.section = section;
    }

    /// A new tensor without gaps.
    pub(crate) fn tensor(&mut self, dtype: DType, dims: &[Size]) -> Tensor {
        self.buffer(dtype, dims, Content::Nothing)
    }

    /// A new matrix of activations.
    pub(crate) fn activations(&mut self, rows: Size, width: usize) -> Tensor {
        self.tensor(self.compute, &[rows, Size::Fixed(width)])
    }

    /// The rotary table for `positions` positions.
    pub(crate) fn rope_table(&mut self, positions: usize, rotated: usize) -> Tensor {
        let dims = [Size::Fixed(positions), Size::Fixed(rotated)];
        self.buffer(DType::F32, &dims, Content::RopeTable)
    }

    /// A vector of the checkpoint.
    pub(crate) fn vector(&mut self, name: String, len: usize) -> Result<Tensor, LoadError> {
        self.vectors(vec![VectorPart { name, share: Share::all(len) }])
    }

    /// Vectors of the checkpoint, one after the other.
    fn vectors(&mut self, parts: Vec<VectorPart>) -> Result<Tensor, LoadError> {
        for VectorPart { name, share } in &parts {
            self.source.check_vector(name, share.whole)?;
        }
        let len = parts.iter().map(|part| part.share.len).sum();
        Ok(self.buffer(DType::F32, &[Size::Fixed(len)], Content::Vectors(parts)))
    }

    pub(crate) fn inputs(&mut self) -> Inputs {
        Inputs {
            ids: self.tensor(DType::I32, &[Size::Tokens]),
            positions: self.tensor(DType::I32, &[Size::Tokens]),
            slots: self.tensor(DType::I64, &[Size::Tokens]),
            block_table: self.tensor(DType::I32, &[Size::Seqs, Size::TableWidth]),
            cu_q: self.tensor(DType::I32, &[Size::SeqEnds]),
            kv_len: self.tensor(DType::I32, &[Size::Seqs]),
            rows: self.tensor(DType::I32, &[Size::Rows]),
        }
    }

    /// The KV cache of the next layer.
    pub(crate) fn cache(&mut self, block_size: usize, heads: usize, head_dim: usize) -> Cache {
        let layer = self.program.kv_layers;
        self.program.kv_layers += 1;
        let dims = vec![
            Size::PoolBlocks,
            Size::Fixed(block_size),
            Size::Fixed(heads),
            Size::Fixed(head_dim),
        ];
        let plane = |plane| Tensor {
            place: Place::Cache { layer, plane },
            dtype: self.compute,
            offset: 0,
            dims: dims.clone(),
            strides: None,
        };
        Cache { keys: plane(0), values: (!self.fused_kv).then(|| plane(1)) }
    }

    /// A layer whose rows are looked up.
    pub(crate) fn embedding_weight(&mut self, layer: Layer) -> Result<usize, LoadError> {
        let form = self.source.matrix(&layer, self.rank)?;
        let desc = form.embedding(layer.rows.len, layer.columns.len);
        Ok(self.weight(desc, vec![part(layer, 0, 0)], form.act_quant))
    }

    /// A weight already there as a linear layer of `rows` outputs.
    pub(crate) fn tied(weight: usize, rows: usize) -> LinearWeight {
        LinearWeight { weights: vec![(weight, rows)], bias: None }
    }

    /// Linear layers on the same input.
    pub(crate) fn linear_weight(
        &mut self,
        layers: &[Layer],
        has_bias: bool,
    ) -> Result<LinearWeight, LoadError> {
        let mut weights: Vec<(usize, usize)> = Vec::new();
        let mut last_form = None;
        for layer in layers {
            let form = self.source.matrix(layer, self.rank)?;
            let (rows, columns) = (layer.rows.len, layer.columns.len);
            let joins = |&(_, width): &(usize, usize)| {
                last_form.as_ref().is_some_and(|last| form.joins(last, width))
            };
            if weights.last().is_some_and(joins)
                && let Some((weight, width)) = weights.last_mut()
            {
                let spec = &mut self.program.weights[*weight];
                spec.parts.push(part(layer.clone(), 0, *width));
                *width += rows;
                spec.desc.n = *width as u64;
            } else {
                let parts = vec![part(layer.clone(), 0, 0)];
                let desc = form.linear(rows, columns);
                weights.push((self.weight(desc, parts, form.act_quant), rows));
            }
            last_form = Some(form);
        }
        let bias = if has_bias {
            let part = |l: &Layer| VectorPart { name: format!("{}.bias", l.name), share: l.rows };
            Some(self.vectors(layers.iter().map(part).collect())?)
        } else {
            None
        };
        Ok(LinearWeight { weights, bias })
    }

    /// The gated layers `prefix(expert).{gate,up,down}_proj` of all experts.
    pub(crate) fn expert_weights(
        &mut self,
        prefix: impl Fn(usize) -> String,
        experts: usize,
        hidden: Share,
        inner: Share,
    ) -> Result<ExpertWeights, LoadError> {
        let mut stack = |names: &[&str], rows: Share, columns: Share| {
            let mut parts = Vec::with_capacity(experts * names.len());
            let mut first: Option<Form> = None;
            for expert in 0..experts {
                let mut own: Option<Form> = None;
                for (at, name) in names.iter().enumerate() {
                    let layer = Layer::new(format!("{}.{name}", prefix(expert)), rows, columns);
                    let form = self.source.matrix(&layer, self.rank)?;
                    let row = at * rows.len;
                    check_alike(&layer.name, &form, first.as_ref(), own.as_ref(), row)?;
                    first.get_or_insert_with(|| form.clone());
                    own.get_or_insert(form);
                    parts.push(part(layer, expert, row));
                }
            }
            let form = first.expect("a mixture has at least one expert");
            let groups = u32::try_from(experts).expect("checked with the configuration");
            let desc = form.experts(groups, names.len() * rows.len, columns.len);
            Ok::<_, LoadError>((self.weight(desc, parts, form.act_quant), form))
        };
        let (gate_up, first) = stack(&["gate_proj", "up_proj"], inner, hidden)?;
        let (down, second) = stack(&["down_proj"], hidden, inner)?;
        if first.act_quant != second.act_quant {
            // One operation has both.
            let layer = format!("{}.down_proj", prefix(0));
            let (found, expected) = (second.to_string(), first.to_string());
            return Err(LoadError::MixedExperts { layer, found, expected });
        }
        Ok(ExpertWeights { gate_up, down })
    }

    /// Rows of a table that begins with id `first`; ids outside give zeros.
    pub(crate) fn embedding(&mut self, ids: &Tensor, weight: usize, y: &Tensor, first: usize) {
        let vocab_start = i64::try_from(first).expect("checked with the configuration");
        let attrs = Embedding { vocab_start, ..Embedding::default() };
        self.call(&attrs, &[Some(ids), Some(y)], &[weight]);
    }

    /// With a residual, `x` is added to it first, and the sum is normalised.
    pub(crate) fn rms_norm(
        &mut self,
        x: &Tensor,
        gamma: &Tensor,
        y: &Tensor,
        residual: Option<&Tensor>,
        eps: f64,
    ) {
        let attrs = RmsNorm { eps, ..RmsNorm::default() };
        self.call(&attrs, &[Some(x), Some(gamma), Some(y), residual], &[]);
    }

    pub(crate) fn linear(&mut self, x: &Tensor, weight: &LinearWeight, y: &Tensor) {
        let mut column = 0;
        for &(index, width) in &weight.weights {
            let bias = weight.bias.as_ref().map(|bias| bias.part(column, width));
            let whole = weight.weights.len() == 1;
            let y = if whole { y.clone() } else { y.columns(column, width) };
            let act_quant = self.program.weights[index].act_quant;
            let attrs = Linear { act_quant, ..Linear::default() };
            self.call(&attrs, &[Some(x), bias.as_ref(), Some(&y)], &[index]);
            column += width;
        }
    }

    pub(crate) fn rope(
        &mut self,
        q: &Tensor,
        k: &Tensor,
        positions: &Tensor,
        table: &Tensor,
        interleaved: bool,
    ) {
        let attrs = Rope { interleaved, ..Rope::default() };
        self.call(&attrs, &[Some(q), Some(k), Some(positions), Some(table)], &[]);
    }

    pub(crate) fn kv_write(&mut self, k: &Tensor, v: &Tensor, slots: &Tensor, cache: &Cache) {
        let slots = [Some(k), Some(v), Some(slots), Some(&cache.keys), cache.values.as_ref()];
        self.call(&KvWrite {}, &slots, &[]);
    }

    /// Causal attention that reaches `window` positions to the left, or all the way.
    pub(crate) fn attention(
        &mut self,
        q: &Tensor,
        cache: &Cache,
        inputs: &Inputs,
        o: &Tensor,
        window: Option<usize>,
    ) {
        let Some(Size::Fixed(head_dim)) = q.dims.last().copied() else {
            unreachable!("queries have heads of fixed width: {q:?}")
        };
        let left = |window: usize| i64::try_from(window).unwrap_or(-1);
        let attrs = PagedAttention {
            scale: 1.0 / (head_dim as f64).sqrt(),
            window: window.map_or(-1, left),
            ..PagedAttention::default()
        };
        let slots = [
            Some(q),
            Some(&cache.keys),
            cache.values.as_ref(),
            Some(&inputs.block_table),
            Some(&inputs.cu_q),
            Some(&inputs.kv_len),
            Some(o),
        ];
        self.call(&attrs, &slots, &[]);
    }

    pub(crate) fn act_mul(&mut self, gate_up: &Tensor, y: &Tensor, act: Act) {
        self.call(&ActMul { act, ..ActMul::default() }, &[Some(gate_up), Some(y)], &[]);
    }

    pub(crate) fn moe_router(
        &mut self,
        logits: &Tensor,
        ids: &Tensor,
        weight: &Tensor,
        attrs: &MoeRouter,
    ) {
        self.call(attrs, &[Some(logits), None, Some(ids), Some(weight)], &[]);
    }

    /// `add`, if given, is what the experts' outputs are added to.
    pub(crate) fn moe_experts(
        &mut self,
        x: &Tensor,
        routing: (&Tensor, &Tensor),
        experts: ExpertWeights,
        y: &Tensor,
        (act, add): (Act, Option<&Tensor>),
    ) {
        let act_quant = self.program.weights[experts.gate_up].act_quant;
        let attrs = MoeExperts { act, act_quant, ..MoeExperts::default() };
        let slots = [Some(x), Some(routing.0), Some(routing.1), Some(y), add];
        self.call(&attrs, &slots, &[experts.gate_up, experts.down]);
    }

    pub(crate) fn gather_rows(&mut self, x: &Tensor, rows: &Tensor, y: &Tensor) {
        self.call(&GatherRows {}, &[Some(x), Some(rows), Some(y)], &[]);
    }

    /// `x = sum over the ranks of x`.
    pub(crate) fn all_reduce(&mut self, x: &Tensor) {
        if self.rank.world > 1 {
            self.step(Step::Exchange(Exchange::AllReduce(x.clone())));
        }
    }

    /// The ranks' equally wide matrices side by side, without columns beyond `width`: on rank 0, where they are wanted. Elsewhere
    /// it is `own`.
    pub(crate) fn all_gather_columns(&mut self, own: &Tensor, width: usize) -> Tensor {
        let world = self.rank.world;
        if world == 1 {
            return own.clone();
        }
        let each = own.width();
        // What a rank sends is contiguous, so its whole matrix comes after that of the rank before.
        let dims = |ranks| vec![Size::Fixed(ranks), Size::ListRows, Size::Fixed(each)];
        let all = self.tensor(own.dtype, &dims(world));
        let sent = Tensor { dims: dims(1), ..own.clone() };
        self.step(Step::Exchange(Exchange::AllGather { own: sent, all: all.clone() }));
        if self.rank.index > 0 {
            return own.clone();
        }
        let rows = self.tensor(own.dtype, &[own.dims[0], Size::Fixed(world * each)]);
        let by_rank = Tensor {
            dims: dims(world),
            strides: Some(vec![each, world * each, 1]),
            ..rows.clone()
        };
        self.call(&Copy {}, &[Some(&all), Some(&by_rank)], &[]);
        rows.columns(0, width)
    }

    fn step(&mut self, step: Step) {
        self.program.steps[self.section as usize].push(step);
    }

    fn buffer(&mut self, dtype: DType, dims: &[Size], content: Content) -> Tensor {
        let place = Place::Buffer(self.program.buffers.len());
        self.program.buffers.push(BufferSpec { dtype, dims: dims.to_vec(), content });
        Tensor { place, dtype, offset: 0, dims: dims.to_vec(), strides: None }
    }

    fn weight(
        &mut self,
        desc: WeightDesc<'static>,
        parts: Vec<WeightPart>,
        act_quant: i64,
    ) -> usize {
        self.program.weights.push(WeightSpec { desc, parts, act_quant });
        self.program.weights.len() - 1
    }

    /// Records a launch.
    pub(crate) fn call(
        &mut self,
        attrs: &impl OpAttrs,
        tensors: &[Option<&Tensor>],
        weights: &[usize],
    ) {
        let spec = |tensor: &Option<&Tensor>| tensor.map_or(TensorSpec::NONE, Tensor::spec);
        let specs: Vec<TensorSpec> = tensors.iter().map(spec).collect();
        let descs: Vec<_> = weights.iter().map(|&at| self.program.weights[at].desc).collect();
        let op = OpBuf::new(attrs, specs, descs);
        let next = self.program.ops.len();
        let index = *self.ops.entry(op.to_string()).or_insert(next);
        if index == next {
            self.program.ops.push(op);
        }
        // The descriptor ends at its last present slot, and so must the launch.
        let present = self.program.ops[index].tensors().len();
        let tensors = tensors[..present].iter().map(|tensor| tensor.cloned()).collect();
        let call = Call { op: index, tensors, weights: weights.to_vec() };
        self.step(Step::Launch(call));
    }
}

/// Whether an expert's layer may go into one weight with that of the first expert, and after `row` rows of its own expert.
fn check_alike(
    layer: &str,
    form: &Form,
    first: Option<&Form>,
    own: Option<&Form>,
    row: usize,
) -> Result<(), LoadError> {
    let mixed = |found: String, expected: String| {
        Err(LoadError::MixedExperts { layer: layer.to_owned(), found, expected })
    };
    if let Some(first) = first.filter(|first| !form.is_like(first)) {
        return mixed(form.to_string(), first.to_string());
    }
    if own.is_some_and(|own| own != form) {
        return mixed("columns in an order of its own".into(), "one order for gate and up".into());
    }
    if !form.may_start_at(row) {
        return mixed(format!("{form} after {row} rows"), "a multiple of 128 rows".into());
    }
    Ok(())
}

fn part(layer: Layer, group: usize, first_row: usize) -> WeightPart {
    let group = u32::try_from(group).expect("checked with the configuration");
    WeightPart { layer, group, first_row: first_row as u64 }
}
