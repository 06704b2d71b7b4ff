//! Which launches a kernel is tried with: one row, a few, and as many as the oracle's time allows.

use halyard_abi::AttrKey;
use halyard_core::{OpBuf, OpKind, Sym};

use crate::{
    execute::Layout,
    generate::{Recipe, Routing, complete},
    symbols::{Symbols, row_symbol},
};

/// One launch.
#[derive(Clone, Debug)]
pub(super) struct Trial {
    pub(super) symbols: Symbols,
    pub(super) recipe: Recipe,
    pub(super) layout: Layout,
    label: String,
}

impl Trial {
    /// In words.
    pub(super) fn name(&self) -> String {
        format!("{}, {}", self.label, self.layout.name())
    }
}

/// Rows of a launch that steps over the switch to kernels for prefill.
const MANY: usize = 67;
/// Multiplications that a launch of many rows may cost the device.
const DEVICE_BUDGET: u64 = 3_000_000_000;
/// Elements of a first slot that may go through the oracle: it sorts whole vocabularies.
const ELEMENT_BUDGET: u64 = 1_000_000;
/// Multiplications that experts may cost the oracle.
const ORACLE_BUDGET: u64 = 600_000_000;

/// The launches of a kernel.
pub(super) fn trials(op: &OpBuf, kernel_set: &[OpBuf]) -> Vec<Trial> {
    match op.kind() {
        OpKind::PAGED_ATTENTION
        | OpKind::MLA_ATTENTION
        | OpKind::VARLEN_ATTENTION
        | OpKind::KV_GATHER => attention(op),
        _ => rows(op, kernel_set),
    }
}

/// A row, a few rows with gaps between them, and many.
fn rows(op: &OpBuf, kernel_set: &[OpBuf]) -> Vec<Trial> {
    let sizes = [(1, Layout::Packed), (7, Layout::Pitched), (MANY, Layout::Packed)];
    let affordable = affordable_rows(op);
    let mut trials: Vec<Trial> = Vec::new();
    for (rows, layout) in sizes {
        let rows = rows.min(affordable);
        let (symbols, recipe) = shape(op, kernel_set, rows);
        let again = trials.iter().any(|t| t.symbols == symbols && t.layout == layout);
        if !again {
            let label = format!("{rows} rows");
            trials.push(Trial { symbols, recipe, layout, label });
        }
    }
    trials
}

/// The most rows that stay within the budgets; at least a few.
fn affordable_rows(op: &OpBuf) -> usize {
    let products = |w: &halyard_core::WeightDesc<'_>| w.n.saturating_mul(w.k).max(1);
    let limit = match op.kind() {
        OpKind::LINEAR => op.weights().first().map(|w| DEVICE_BUDGET / products(w)),
        OpKind::LINEAR_ACT_MUL | OpKind::GROUPED_LINEAR => {
            op.weights().first().map(|w| ORACLE_BUDGET / products(w))
        }
        OpKind::BATCHED_LINEAR => {
            op.weights().first().map(|w| ORACLE_BUDGET / products(w) / u64::from(w.groups.max(1)))
        }
        OpKind::MOE_EXPERTS => {
            let top = Symbols::of(op).get(Sym::Top).max(1) as u64;
            let each: u64 = op.weights().iter().map(products).sum();
            Some(ORACLE_BUDGET / each.saturating_mul(top).max(1))
        }
        _ => op.tensors().first().map(|t| {
            let fixed = t.dims().iter().filter_map(|&d| u64::try_from(d).ok());
            ELEMENT_BUDGET / fixed.product::<u64>().max(1)
        }),
    };
    limit.map_or(MANY, |rows| (rows as usize).clamp(3, MANY))
}

/// Values for every symbol that the kernel leaves open.
fn shape(op: &OpBuf, kernel_set: &[OpBuf], rows: usize) -> (Symbols, Recipe) {
    let mut symbols = Symbols::of(op);
    let mut recipe = Recipe { routing: Routing::Few, ..Recipe::default() };
    match op.kind() {
        OpKind::GATHER_ROWS => {
            symbols.or(Sym::T, 9);
            symbols.or(Sym::B, rows);
        }
        OpKind::KV_COPY_BLOCKS => {
            symbols.or(Sym::P, rows.min(7));
            symbols.or(Sym::Blocks, 17);
        }
        _ => {}
    }
    if matches!(op.kind(), OpKind::KV_WRITE | OpKind::KV_COPY_BLOCKS | OpKind::QKV_POST) {
        recipe.probe_group = heads_per_cache(op, kernel_set);
    }
    if let Some(sym) = row_symbol(op) {
        symbols.or(sym, rows);
    }
    complete(op.kind(), op.attrs(), &mut symbols, &recipe);
    for (sym, value) in [(Sym::P, 64), (Sym::M, 9), (Sym::Mb, 5), (Sym::Top, 5)] {
        symbols.or(sym, value);
    }
    for sym in [Sym::D0, Sym::D1, Sym::D2, Sym::D3, Sym::T, Sym::B] {
        symbols.or(sym, 3);
    }
    (symbols, recipe)
}

/// Query heads a KV head of the attention that reads the same cache: a backend need not support other groups.
fn heads_per_cache(op: &OpBuf, kernel_set: &[OpBuf]) -> usize {
    let cache = |op: &OpBuf| {
        let s = Symbols::of(op);
        (s.get(Sym::Hk), s.get(Sym::Dk), s.get(Sym::Block))
    };
    let readers = kernel_set.iter().filter(|k| k.kind() == OpKind::PAGED_ATTENTION);
    let group = |k: &OpBuf| {
        let s = Symbols::of(k);
        s.get(Sym::Hq).checked_div(s.get(Sym::Hk)).unwrap_or(1)
    };
    readers.filter(|k| cache(k) == cache(op)).map(group).next().unwrap_or(1)
}

/// Decodes of lengths around the block size, prefills and chunks, all mixed; and beyond the window, if there is one.
fn attention(op: &OpBuf) -> Vec<Trial> {
    let block = Symbols::of(op).get(Sym::Block).max(1);
    let mut batches = vec![
        ("a decode", vec![[1, block + 1]], Layout::Packed),
        (
            "decodes, chunks and prefills",
            vec![[1, 1], [1, block], [1, 2 * block + 3], [1, 0], [9, 9], [5, block + 7], [2, 40]],
            Layout::Pitched,
        ),
        ("a prefill", vec![[MANY, MANY + 5]], Layout::Packed),
        ("a long decode", vec![[1, 777], [1, 3]], Layout::Packed),
    ];
    // Longer windows than this would cost more than they tell: the arithmetic of the mask is the same.
    let window = op.attrs().iter().find(|a| a.key == AttrKey::WINDOW);
    let window = window.map_or(0, |a| usize::try_from(a.bits.cast_signed()).unwrap_or(0));
    if (1..=16_384).contains(&window) {
        batches.push((
            "beyond the window",
            vec![[1, window + 37], [3, window + 3]],
            Layout::Packed,
        ));
    }
    let most = Symbols::of(op).known(Sym::Blocks);
    let fits = |batch: &[[usize; 2]]| {
        most.is_none_or(|m| batch.iter().map(|s| s[1].div_ceil(block)).sum::<usize>() <= m)
    };
    batches
        .into_iter()
        .filter(|(_, batch, _)| fits(batch))
        .map(|(label, batch, layout)| {
            let mut symbols = Symbols::of(op);
            let recipe = Recipe {
                batch,
                padding: usize::from(layout == Layout::Pitched),
                ..Recipe::default()
            };
            complete(op.kind(), op.attrs(), &mut symbols, &recipe);
            Trial { symbols, recipe, layout, label: label.into() }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use halyard_core::{DType, Scheme, TensorSpec, WeightDesc, attrs::Linear, ops::OpSchema};

    fn linear(n: u64, k: u64) -> OpBuf {
        let spec = |d: u64| TensorSpec::new(DType::BF16, &[-1, d.cast_signed()]);
        let w = WeightDesc::linear(Scheme::DENSE, DType::BF16, n, k);
        OpBuf::new(&Linear::default(), [spec(k), TensorSpec::NONE, spec(n)], [w])
    }

    #[test]
    fn large_layers_get_fewer_rows() {
        let rows = |op: &OpBuf| -> Vec<usize> {
            trials(op, &[]).iter().map(|t| t.symbols.get(Sym::T)).collect()
        };
        assert_eq!(rows(&linear(576, 576)), [1, 7, MANY]);
        assert_eq!(rows(&linear(151_936, 4096)), [1, 4, 4]);
        assert_eq!(rows(&linear(1 << 20, 1 << 20)), [1, 3, 3]);
    }

    #[test]
    fn every_symbol_of_every_slot_has_a_value() {
        for schema in halyard_abi::ops::catalogue::CATALOGUE {
            let attrs = crate::opbuf::default_attrs(schema.kind).unwrap();
            let spec = |slot: &halyard_abi::ops::schema::Slot| match slot.shape {
                halyard_abi::ops::schema::Shape::Dims(dims) => {
                    TensorSpec::new(DType::F32, &vec![-1; dims.len()])
                }
                _ => TensorSpec::new(DType::F32, &[-1, 8]),
            };
            let specs: Vec<TensorSpec> = schema.slots.iter().map(spec).collect();
            let op = crate::opbuf::build(schema.kind, &attrs, specs, vec![]).unwrap();
            let slots = OpSchema::of(schema.kind).unwrap().slots;
            for trial in trials(&op, &[]) {
                for axis in slots.iter().flat_map(|s| s.axes(2)).filter_map(|d| d.sym()) {
                    let fixed = !matches!(axis, Sym::T | Sym::B | Sym::M | Sym::P | Sym::Mb);
                    assert!(
                        fixed || trial.symbols.known(axis).is_some(),
                        "{} {axis:?}",
                        schema.kind
                    );
                }
            }
        }
    }
}
