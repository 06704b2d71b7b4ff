//! Values of the catalogue's symbolic dimensions.

use halyard_abi::ops::schema::SYMS;
use halyard_core::{OpBuf, Sym, TensorSpec, ops::OpSchema};

/// Every symbol with its name in case files.
pub(crate) const NAMES: [(&str, Sym); SYMS] = [
    ("T", Sym::T),
    ("B", Sym::B),
    ("H", Sym::H),
    ("N", Sym::N),
    ("K", Sym::K),
    ("V", Sym::V),
    ("I", Sym::I),
    ("E", Sym::E),
    ("Top", Sym::Top),
    ("Hq", Sym::Hq),
    ("Hk", Sym::Hk),
    ("Dk", Sym::Dk),
    ("Dv", Sym::Dv),
    ("Blocks", Sym::Blocks),
    ("Block", Sym::Block),
    ("M", Sym::M),
    ("P", Sym::P),
    ("R", Sym::R),
    ("Words", Sym::Words),
    ("Mb", Sym::Mb),
    ("G", Sym::G),
    ("C", Sym::C),
    ("Tk", Sym::Tk),
    ("Scales", Sym::Scales),
    ("Qkv", Sym::Qkv),
    ("D0", Sym::D0),
    ("D1", Sym::D1),
    ("D2", Sym::D2),
    ("D3", Sym::D3),
];

/// Values by symbol.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Symbols {
    values: [Option<usize>; SYMS],
}

impl Symbols {
    /// The value; 0 if it has none.
    pub(crate) fn get(&self, sym: Sym) -> usize {
        self.known(sym).unwrap_or(0)
    }

    /// The value.
    pub(crate) fn known(&self, sym: Sym) -> Option<usize> {
        self.values[sym as usize]
    }

    pub(crate) fn set(&mut self, sym: Sym, value: usize) {
        self.values[sym as usize] = Some(value);
    }

    /// Takes the value away.
    pub(crate) fn forget(&mut self, sym: Sym) {
        self.values[sym as usize] = None;
    }

    /// Sets a value that has none yet.
    pub(crate) fn or(&mut self, sym: Sym, value: usize) {
        self.values[sym as usize].get_or_insert(value);
    }

    /// The values that an op's own dims fix.
    pub(crate) fn of(op: &OpBuf) -> Self {
        let mut this = Self::default();
        let Ok((_, bindings)) = halyard_abi::ops::check::check_desc(&op.desc()) else {
            return this;
        };
        for (_, sym) in NAMES {
            if let Some(value) = bindings.get(sym).and_then(|v| usize::try_from(v).ok()) {
                this.set(sym, value);
            }
        }
        this
    }

    /// The dims of a slot with this spec, its dynamic ones from the symbols.
    pub(crate) fn dims(&self, schema: &OpSchema, slot: usize, spec: &TensorSpec) -> Vec<usize> {
        let axes = schema.slots[slot].axes(spec.dims().len());
        let dim = |(axis, &fixed): (halyard_abi::ops::schema::Dim, &i64)| {
            usize::try_from(fixed).unwrap_or_else(|_| {
                let value = axis.sym().map_or(0, |s| self.get(s));
                usize::try_from(axis.of(value as i64)).unwrap_or(0)
            })
        };
        axes.zip(spec.dims()).map(dim).collect()
    }
}

/// The symbol that counts an op's rows: the first dim of its first slot.
pub(crate) fn row_symbol(op: &OpBuf) -> Option<Sym> {
    let schema = OpSchema::of(op.kind())?;
    let rank = op.tensors().first()?.dims().len();
    schema.slots.first()?.axes(rank).next()?.sym()
}
