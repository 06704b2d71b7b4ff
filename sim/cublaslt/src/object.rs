//! What callers hold: handles, layouts, descriptions of products and preferences. A pointer of theirs is a number in a table, so one that is
//! of another kind, or was destroyed, is found out.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, OnceLock, PoisonError},
};

use halyard_sim_cuda_calls::Place;

use crate::status::{Failure, Outcome, Status};

/// `cudaDataType_t`, of matrices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Type {
    F32,
    F16,
    Bf16,
}

impl Type {
    pub(crate) fn of(number: i32) -> Outcome<Self> {
        match number {
            0 => Ok(Self::F32),
            2 => Ok(Self::F16),
            14 => Ok(Self::Bf16),
            other => Err(Failure::unsupported(format!(
                "data type {other}; the software cuBLASLt has CUDA_R_32F, CUDA_R_16F and CUDA_R_16BF"
            ))),
        }
    }

    pub(crate) fn bytes(self) -> u64 {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }
}

/// `cublasLtMatrixLayout_t`: a matrix whose columns lie one after the other, `leading` elements from each to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    pub(crate) float: Type,
    pub(crate) rows: u64,
    pub(crate) columns: u64,
    pub(crate) leading: i64,
}

/// `cublasLtMatmulDesc_t`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Product {
    pub(crate) transposed: [bool; 2],
    pub(crate) biased: bool,
    pub(crate) bias: u64,
    /// D's type if it is not said.
    pub(crate) bias_type: Option<Type>,
}

/// `cublasLtMatmulPreference_t`
#[derive(Clone, Copy, Debug)]
pub(crate) struct Preference {
    pub(crate) workspace_bytes: u64,
    /// `cublasLtReductionScheme_t`s that may be used.
    pub(crate) reductions: u32,
    /// Of A, B, C and D.
    pub(crate) alignments: [u32; 4],
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Object {
    Handle(Place),
    Layout(Layout),
    Product(Product),
    Preference(Preference),
}

impl Object {
    fn kind(&self) -> &'static str {
        match self {
            Self::Handle(_) => "handle",
            Self::Layout(_) => "matrix layout",
            Self::Product(_) => "matmul descriptor",
            Self::Preference(_) => "matmul preference",
        }
    }
}

#[derive(Default)]
struct Table {
    live: HashMap<usize, Object>,
    made: usize,
}

fn table() -> MutexGuard<'static, Table> {
    static TABLE: OnceLock<Mutex<Table>> = OnceLock::new();
    TABLE.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner)
}

/// Gives a new object a name, which is never given again.
pub(crate) fn insert(object: Object) -> usize {
    let mut table = table();
    table.made += 1;
    // Like addresses of objects, so that a caller who looks into one is stopped by the processor.
    let name = 0x10 * table.made;
    table.live.insert(name, object);
    name
}

fn missing(name: usize, kind: &str) -> Failure {
    Failure::value(format!("{name:#x} is no {kind}, or was destroyed"))
}

/// Ends an object of the kind that `is` knows.
pub(crate) fn remove(name: usize, kind: &str) -> Outcome {
    let mut table = table();
    match table.live.get(&name) {
        Some(object) if object.kind() == kind => {
            table.live.remove(&name);
            Ok(())
        }
        _ => Err(missing(name, kind)),
    }
}

/// The place of a handle, whose context must be current.
pub(crate) fn handle(name: usize) -> Outcome<Place> {
    let Some(Object::Handle(place)) = table().live.get(&name).copied() else {
        return Err(Failure::new(Status::NotInitialized, missing(name, "handle").text));
    };
    if Place::current()? != place {
        return Err(Failure::value(
            "the context that is current is not the one that the handle was created in",
        ));
    }
    Ok(place)
}

pub(crate) fn layout(name: usize) -> Outcome<Layout> {
    match table().live.get(&name) {
        Some(Object::Layout(layout)) => Ok(*layout),
        _ => Err(missing(name, "matrix layout")),
    }
}

pub(crate) fn product(name: usize) -> Outcome<Product> {
    match table().live.get(&name) {
        Some(Object::Product(product)) => Ok(*product),
        _ => Err(missing(name, "matmul descriptor")),
    }
}

pub(crate) fn preference(name: usize) -> Outcome<Preference> {
    match table().live.get(&name) {
        Some(Object::Preference(preference)) => Ok(*preference),
        _ => Err(missing(name, "matmul preference")),
    }
}

/// Changes an object.
pub(crate) fn change(
    name: usize,
    kind: &str,
    change: impl FnOnce(&mut Object) -> Outcome,
) -> Outcome {
    match table().live.get_mut(&name) {
        Some(object) if object.kind() == kind => change(object),
        _ => Err(missing(name, kind)),
    }
}

/// An attribute's value: so many bytes, little end first.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Value<'a>(pub(crate) &'a [u8]);

impl Value<'_> {
    fn array<const BYTES: usize>(self, what: &str) -> Outcome<[u8; BYTES]> {
        self.0.try_into().map_err(|_| {
            Failure::value(format!("{what} of {} bytes, expected {BYTES}", self.0.len()))
        })
    }

    fn word(self, what: &str) -> Outcome<u32> {
        self.array(what).map(u32::from_le_bytes)
    }

    fn number(self, what: &str) -> Outcome<i32> {
        self.array(what).map(i32::from_le_bytes)
    }

    fn long(self, what: &str) -> Outcome<u64> {
        self.array(what).map(u64::from_le_bytes)
    }
}

impl Layout {
    /// `cublasLtMatrixLayoutAttribute_t`
    pub(crate) fn set(&mut self, attribute: i32, value: Value<'_>) -> Outcome {
        match attribute {
            0 => self.float = Type::of(value.number("a layout's type")?)?,
            1 => match value.number("a layout's order")? {
                0 => {}
                other => {
                    return Err(Failure::unsupported(format!(
                        "order {other}; CUBLASLT_ORDER_COL is there"
                    )));
                }
            },
            2 => self.rows = value.long("a layout's rows")?,
            3 => self.columns = value.long("a layout's columns")?,
            4 => self.leading = value.long("a layout's leading dimension")?.cast_signed(),
            5 => match value.number("a layout's batch count")? {
                1 => {}
                other => return Err(Failure::unsupported(format!("a batch of {other}"))),
            },
            other => return Err(Failure::value(format!("layout attribute {other}"))),
        }
        Ok(())
    }
}

impl Product {
    /// `cublasLtMatmulDescAttributes_t`
    pub(crate) fn set(&mut self, attribute: i32, value: Value<'_>) -> Outcome {
        match attribute {
            2 => match value.number("a pointer mode")? {
                0 => {}
                other => {
                    return Err(Failure::unsupported(format!(
                        "pointer mode {other}; factors are the host's"
                    )));
                }
            },
            3 | 4 => {
                self.transposed[usize::from(attribute == 4)] = match value.number("an operation")? {
                    0 => false,
                    1 => true,
                    other => return Err(Failure::unsupported(format!("operation {other}"))),
                };
            }
            7 => {
                self.biased = match value.word("an epilogue")? {
                    1 => false,
                    4 => true,
                    other => {
                        return Err(Failure::unsupported(format!(
                            "epilogue {other}; DEFAULT and BIAS are there"
                        )));
                    }
                };
            }
            8 => self.bias = value.long("a bias pointer")?,
            26 => {
                let number = value.number("a bias's type")?;
                self.bias_type = if number == -1 { None } else { Some(Type::of(number)?) };
            }
            other => return Err(Failure::value(format!("descriptor attribute {other}"))),
        }
        Ok(())
    }
}

impl Preference {
    /// What `cublasLtMatmulPreferenceCreate` makes.
    pub(crate) const fn new() -> Self {
        Self { workspace_bytes: 0, reductions: 7, alignments: [256; 4] }
    }

    /// `cublasLtMatmulPreferenceAttributes_t`
    pub(crate) fn set(&mut self, attribute: i32, value: Value<'_>) -> Outcome {
        match attribute {
            1 => self.workspace_bytes = value.long("the most workspace")?,
            3 => self.reductions = value.word("reduction schemes")?,
            5..=8 => {
                let bytes = value.word("an alignment")?;
                if !bytes.is_power_of_two() {
                    return Err(Failure::value(format!("an alignment of {bytes}")));
                }
                self.alignments[(attribute - 5).unsigned_abs() as usize] = bytes;
            }
            other => return Err(Failure::value(format!("preference attribute {other}"))),
        }
        Ok(())
    }
}
