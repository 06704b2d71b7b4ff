//! From an entry to its cases: every combination of what it lists.

use std::collections::BTreeMap;

use halyard_abi::{
    Attr,
    ops::schema::{Dim, Layout as SlotLayout, Shape, Types},
};
use halyard_core::{DType, OpBuf, OpKind, Scheme, Sym, TensorSpec, ops::OpSchema};

use super::{
    Case,
    entry::{Any, Entry},
    profiles, weights,
};
use crate::{
    execute::Layout,
    generate::{Recipe, Routing, complete},
    opbuf,
    symbols::{NAMES, Symbols},
};

/// A choice for everything an entry leaves open.
#[derive(Clone, Debug, Default)]
struct Choice {
    /// What varies, for the name.
    label: Vec<String>,
    symbols: Vec<(Sym, usize)>,
    shape: Option<Vec<usize>>,
    b_rank: Option<usize>,
    dtype: DType,
    types: BTreeMap<String, String>,
    with: Vec<String>,
    weights: String,
    attrs: BTreeMap<String, toml::Value>,
    layout: Layout,
    recipe: Recipe,
}

/// The cases of an entry.
pub(super) fn expand(entry: &Entry) -> Result<Vec<Case>, String> {
    if entry.why.is_empty() {
        return Err("it does not say what it is for".into());
    }
    let kind =
        OpKind::from_name(&entry.op).ok_or_else(|| format!("no op is called {}", entry.op))?;
    let schema = OpSchema::of(kind).ok_or_else(|| format!("op {kind} is not in the catalogue"))?;
    choices(entry)?.iter().map(|choice| case(entry, schema, choice)).collect()
}

/// Every combination.
fn choices(entry: &Entry) -> Result<Vec<Choice>, String> {
    let mut all = vec![Choice { weights: "same".into(), ..Choice::default() }];
    let dtypes = entry.dtype.as_ref().map_or_else(
        || ["f32", "f16", "bf16"].map(String::from).to_vec(),
        |d| d.as_slice().to_vec(),
    );
    let dtypes: Vec<DType> = dtypes.iter().map(|d| dtype(d)).collect::<Result<_, _>>()?;
    for (name, values) in &entry.dims {
        let sym = symbol(name)?;
        let values: Vec<usize> =
            values.as_slice().iter().map(|&v| size(v)).collect::<Result<_, _>>()?;
        vary(&mut all, &values, |v| format!("{name}={v}"), |c, &v| c.symbols.push((sym, v)));
    }
    let shapes: Vec<Vec<usize>> = entry
        .shape
        .iter()
        .map(|dims| dims.iter().map(|&d| size(d)).collect())
        .collect::<Result<_, _>>()?;
    vary(&mut all, &shapes, |s| join(s, "x"), |c, s| c.shape = Some(s.clone()));
    if let Some(ranks) = &entry.b_rank {
        let ranks: Vec<usize> =
            ranks.as_slice().iter().map(|&r| size(r)).collect::<Result<_, _>>()?;
        vary(&mut all, &ranks, |r| format!("b_rank={r}"), |c, &r| c.b_rank = Some(r));
    }
    vary(
        &mut all,
        &entry.batch,
        |b| format!("batch={}", batch(b)),
        |c, b| {
            c.recipe.batch.clone_from(b);
        },
    );
    vary(&mut all, &dtypes, ToString::to_string, |c, &d| c.dtype = d);
    vary(&mut all, &entry.types, pairs, |c, t| c.types.clone_from(t));
    let weights = weights::names(entry.weights.as_ref().map_or(&[][..], Any::as_slice));
    vary(&mut all, &weights, Clone::clone, |c, w| c.weights.clone_from(w));
    let set = |w: &Vec<String>| if w.is_empty() { "plain".into() } else { w.join("+") };
    vary(&mut all, &entry.with, set, |c, w| c.with.clone_from(w));
    for (name, values) in &entry.attrs {
        let label = |v: &toml::Value| format!("{name}={v}");
        vary(&mut all, values.as_slice(), label, |c, v| {
            c.attrs.insert(name.clone(), v.clone());
        });
    }
    let fills = |f: &BTreeMap<String, _>| pairs(f).to_lowercase();
    vary(&mut all, &entry.fill, fills, |c, f| c.recipe.fills.clone_from(f));
    let routings = entry.routing.as_ref().map_or(&[Routing::Random][..], Any::as_slice);
    vary(&mut all, routings, |r| format!("{r:?}").to_lowercase(), |c, &r| c.recipe.routing = r);
    let layouts = entry.layout.as_ref().map_or(&[Layout::Packed][..], Any::as_slice);
    vary(&mut all, layouts, |l| l.name().to_owned(), |c, &l| c.layout = l);
    Ok(all)
}

/// Multiplies the choices by some alternatives; only real alternatives show in the name.
fn vary<T>(
    all: &mut Vec<Choice>,
    values: &[T],
    label: impl Fn(&T) -> String,
    set: impl Fn(&mut Choice, &T),
) {
    if values.is_empty() {
        return;
    }
    let with = |choice: &Choice, value: &T| {
        let mut choice = choice.clone();
        set(&mut choice, value);
        if values.len() > 1 {
            choice.label.push(label(value));
        }
        choice
    };
    *all = all
        .iter()
        .flat_map(|c| values.iter().map(move |v| (c, v)))
        .map(|(c, v)| with(c, v))
        .collect();
}

fn case(entry: &Entry, schema: &'static OpSchema, choice: &Choice) -> Result<Case, String> {
    let mut symbols = Symbols::default();
    for &(sym, value) in &choice.symbols {
        symbols.set(sym, value);
    }
    let shape = choice.shape.clone().unwrap_or_default();
    for (axis, &d) in shape.iter().enumerate() {
        symbols.set(halyard_abi::ops::schema::free_sym(shape.len() - 1 - axis), d);
    }
    let mut recipe = choice.recipe.clone();
    recipe.padding = entry.padding;
    let attrs = attrs(schema.kind, &choice.attrs)?;
    complete(schema.kind, &attrs, &mut symbols, &recipe);

    let mut tensors = Vec::new();
    for slot in schema.slots {
        // A cache of values is optional for backends; a case has it always.
        let there = !slot.optional
            || choice.with.iter().any(|w| w == slot.name)
            || matches!(slot.name, "v_cache" | "r_cache");
        tensors.push(if there {
            slot_spec(schema.kind, slot, choice, &symbols)?
        } else {
            TensorSpec::NONE
        });
    }
    for name in choice.with.iter().chain(choice.types.keys()).chain(recipe.fills.keys()) {
        if schema.slot(name).is_none() && name != "cache" {
            return Err(format!("{} has no slot {name}", schema.kind));
        }
    }
    let weights = schema
        .weights
        .iter()
        .map(|slot| {
            let role = (schema.kind, entry.tied, choice.dtype);
            weights::desc(slot, &choice.weights, role, &symbols)
        })
        .collect::<Result<Vec<_>, _>>()?;
    let op = opbuf::build(schema.kind, &attrs, tensors, weights.clone())?;
    let name = [std::slice::from_ref(&entry.name), &choice.label].concat().join("/");
    let profile = profile(entry, &op);
    let (optional, layout) = (entry.optional, choice.layout);
    let (why, conduct) = (entry.why.clone(), entry.conduct.clone());
    Ok(Case { name, why, profile, optional, conduct, op, weights, symbols, recipe, layout })
}

/// Symbols whose values change from launch to launch in a server.
fn is_dynamic(kind: OpKind, sym: Sym) -> bool {
    match sym {
        Sym::T | Sym::B | Sym::Blocks | Sym::Mb | Sym::Tk => true,
        Sym::M => kind != OpKind::LOGPROBS,
        // Positions of a table are the model's; pairs of blocks and sorted tokens are the batch's.
        Sym::P => !matches!(kind, OpKind::ROPE | OpKind::QKV_POST),
        _ => false,
    }
}

/// Whether a choice sets an attribute to this.
fn attr_is(choice: &Choice, name: &str, value: i64) -> bool {
    choice.attrs.get(name).and_then(toml::Value::as_integer) == Some(value)
}

fn slot_spec(
    kind: OpKind,
    slot: &halyard_abi::ops::schema::Slot,
    choice: &Choice,
    symbols: &Symbols,
) -> Result<TensorSpec, String> {
    let dtype = match (choice.types.get(slot.name), slot.types) {
        (Some(name), _) => dtype(name)?,
        (None, Types::Is(fixed)) => fixed,
        (None, Types::Quantised) if attr_is(choice, "mode", 2) => DType::F8E4M3,
        (None, Types::Quantised) => DType::I8,
        (None, Types::Cache) if choice.types.contains_key("cache") => {
            dtype(&choice.types["cache"])?
        }
        (None, _) => choice.dtype,
    };
    let dims: Vec<i64> = match slot.shape {
        Shape::Dims(dims) => {
            let value = |d: &Dim| match d.sym() {
                Some(sym) if is_dynamic(kind, sym) => Ok(-1),
                Some(sym) => match symbols.known(sym) {
                    Some(value) => Ok(d.of(value as i64)),
                    None => Err(format!("{sym:?} has no value")),
                },
                None => Ok(d.of(0)),
            };
            dims.iter().map(value).collect::<Result<_, _>>()?
        }
        Shape::Same | Shape::Trailing => {
            let shape = choice.shape.as_ref().ok_or("no shape is given")?;
            let rank = match slot.shape {
                Shape::Trailing => choice.b_rank.unwrap_or(shape.len()).min(shape.len()),
                _ => shape.len(),
            };
            let skipped = shape.len() - rank;
            let dynamic = |axis: usize| axis == 0 && shape.len() > 1;
            (skipped..shape.len())
                .map(|axis| if dynamic(axis) { -1 } else { shape[axis] as i64 })
                .collect()
        }
    };
    let spec = TensorSpec::new(dtype, &dims);
    Ok(if slot.layout == SlotLayout::Opaque { spec.opaque() } else { spec })
}

/// An op's attributes: defaults, and what is set by name.
fn attrs(kind: OpKind, set: &BTreeMap<String, toml::Value>) -> Result<Vec<Attr>, String> {
    let mut attrs = opbuf::default_attrs(kind)?;
    for (name, value) in set {
        let attr = attrs
            .iter_mut()
            .find(|a| a.key.name() == Some(name))
            .ok_or_else(|| format!("{kind} has no attribute {name}"))?;
        let bad = || format!("attribute {name} = {value}");
        attr.bits = match attr.ty {
            1 => value.as_integer().ok_or_else(bad)?.cast_unsigned(),
            2 => value
                .as_float()
                .or_else(|| value.as_integer().map(|i| i as f64))
                .ok_or_else(bad)?
                .to_bits(),
            _ => u64::from(value.as_bool().ok_or_else(bad)?),
        };
    }
    Ok(attrs)
}

/// The entry's own profile, or the op's. Weights that are not dense make it `quant:<scheme>`.
fn profile(entry: &Entry, op: &OpBuf) -> String {
    if let Some(w) = op.weights().iter().find(|w| w.scheme != Scheme::DENSE) {
        return format!("quant:{}", w.scheme);
    }
    let of_kind = || profiles::of(op).to_owned();
    entry.profile.clone().unwrap_or_else(of_kind)
}

fn dtype(name: &str) -> Result<DType, String> {
    DType::from_name(name).ok_or_else(|| format!("no dtype is called {name}"))
}

fn symbol(name: &str) -> Result<Sym, String> {
    let found = NAMES.iter().find(|(n, _)| *n == name);
    found.map(|(_, sym)| *sym).ok_or_else(|| format!("no symbol is called {name}"))
}

fn size(value: i64) -> Result<usize, String> {
    usize::try_from(value).map_err(|_| format!("a size of {value}"))
}

fn join(values: &[usize], by: &str) -> String {
    values.iter().map(ToString::to_string).collect::<Vec<_>>().join(by)
}

fn batch(sequences: &[[usize; 2]]) -> String {
    sequences.iter().map(|[q, kv]| format!("{q}of{kv}")).collect::<Vec<_>>().join("_")
}

fn pairs<T: std::fmt::Debug>(map: &BTreeMap<String, T>) -> String {
    let one = |(k, v): (&String, &T)| format!("{k}={v:?}").replace('"', "");
    if map.is_empty() { "plain".into() } else { map.iter().map(one).collect::<Vec<_>>().join("+") }
}
