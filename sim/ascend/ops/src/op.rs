//! Operators, their parameters and plans.

use crate::arg::{Arg, Scalar, Tensor};
use crate::dtype::DType;
use crate::launch::{Fault, Launch, Memory};
use crate::refusal::{Refusal, code, ensure};
use crate::view::View;
use std::fmt;
use std::sync::Arc;

/// A parameter's type in C.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `aclTensor*`
    Tensor,
    /// `aclTensorList*`
    TensorList,
    /// `aclIntArray*`
    IntArray,
    /// `aclScalar*`
    Scalar,
    /// `int8_t`
    I8,
    /// `int32_t`
    I32,
    /// `int64_t`
    I64,
    /// `double`
    F64,
    /// `bool`
    Bool,
    /// `char*`
    Text,
    /// `aclDataType`
    DataType,
}

/// A parameter of the first phase.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Param {
    /// As in the documentation.
    pub name: &'static str,
    /// Its type.
    pub kind: Kind,
    /// Null is an argument.
    pub optional: bool,
    /// The operator writes to it.
    pub writes: bool,
}

impl Param {
    const fn new(name: &'static str, kind: Kind) -> Self {
        Self { name, kind, optional: false, writes: false }
    }

    /// The parameter, which may be null.
    pub(crate) const fn or_null(mut self) -> Self {
        self.optional = true;
        self
    }

    /// The parameter, which is written.
    pub(crate) const fn out(mut self) -> Self {
        self.writes = true;
        self
    }
}

macro_rules! kinds {
    ($($function:ident $kind:ident)*) => {
        $(pub(crate) const fn $function(name: &'static str) -> Param {
            Param::new(name, Kind::$kind)
        })*
    };
}
kinds! {
    tensor Tensor list TensorList ints IntArray scalar Scalar int8 I8 int32 I32 int64 I64
    float F64 flag Bool text Text dtype DataType
}

/// The first release of CANN whose headers have an operator.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Since {
    /// 8.1.RC1
    V8_1,
    /// 8.5
    V8_5,
    /// 9.1
    V9_1,
}

/// The chip that a call is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Soc {
    /// As `aclrtGetSocName` says.
    pub name: String,
    /// Matrix cores.
    pub cube_cores: u32,
    /// Vector cores.
    pub vector_cores: u32,
}

impl Soc {
    /// An Ascend 910B1.
    #[must_use]
    pub fn ascend_910b1() -> Self {
        Self { name: "Ascend910B1".into(), cube_cores: 24, vector_cores: 48 }
    }
}

type Run = dyn Fn(&Launch<'_>) -> Result<(), Fault> + Send + Sync;

/// What an operator's checks come to: its workspace and its maths.
pub(crate) struct Work {
    workspace: u64,
    run: Arc<Run>,
}

impl Work {
    /// Of an operator that needs no workspace.
    pub(crate) fn new(
        run: impl Fn(&Launch<'_>) -> Result<(), Fault> + Send + Sync + 'static,
    ) -> Self {
        Self { workspace: 0, run: Arc::new(run) }
    }

    /// With a workspace of some bytes, rounded up to 512 as the libraries do.
    pub(crate) fn with_workspace(mut self, bytes: u64) -> Self {
        self.workspace = bytes.max(1).next_multiple_of(512);
        self
    }
}

/// An operator of the libraries.
#[derive(Clone, Copy)]
pub struct Op {
    /// The function's name without `aclnn`.
    pub name: &'static str,
    /// Where it first was.
    pub since: Since,
    /// The first phase's parameters without its two trailing outputs.
    pub params: &'static [Param],
    pub(crate) plan: fn(&Args<'_>) -> Result<Work, Refusal>,
}

impl fmt::Debug for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "aclnn{} of {} parameters", self.name, self.params.len())
    }
}

/// A tensor of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slot {
    /// Which parameter.
    pub param: usize,
    /// Which of a list; 0 for a tensor of its own.
    pub item: usize,
    /// The address that it had when the call was planned.
    pub address: u64,
}

/// What the first phase gives: an executor's content.
#[derive(Clone)]
pub struct Plan {
    op: &'static str,
    /// Bytes of device memory that the second phase needs.
    pub workspace: u64,
    /// The call's tensors, in the order of its parameters, null ones left out.
    pub tensors: Vec<Slot>,
    run: Arc<Run>,
}

impl fmt::Debug for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "plan of aclnn{}, workspace {}, tensors {:?}",
            self.op, self.workspace, self.tensors
        )
    }
}

impl Plan {
    /// The tensors' addresses when the call was planned.
    #[must_use]
    pub fn addresses(&self) -> Vec<u64> {
        self.tensors.iter().map(|slot| slot.address).collect()
    }

    /// Computes the operator. `addresses` has one for each of [`Plan::tensors`], so that an executor that is
    /// used again can be given others. The whole workspace is overwritten first.
    ///
    /// # Errors
    /// What `memory` refuses, and indices of device memory that are out of range. Outputs may be written in part.
    pub fn run(&self, memory: &dyn Memory, addresses: &[u64], workspace: u64) -> Result<(), Fault> {
        let of_op = |fault: Fault| Fault {
            code: fault.code,
            message: format!("aclnn{}: {}", self.op, fault.message),
        };
        let scratch = [0xA5; 1 << 12];
        for start in (0..self.workspace).step_by(scratch.len()) {
            let part = scratch.len().min((self.workspace - start) as usize);
            memory.write(workspace.saturating_add(start), &scratch[..part]).map_err(|fault| {
                of_op(Fault { code: fault.code, message: format!("workspace: {}", fault.message) })
            })?;
        }
        (self.run)(&Launch { memory, addresses }).map_err(of_op)
    }
}

impl Op {
    /// The first phase: checks the arguments against the documentation.
    ///
    /// # Errors
    /// The `aclnnStatus` with operator, argument, the value seen and what is expected.
    pub fn plan(&self, args: &[Arg], soc: &Soc) -> Result<Plan, Refusal> {
        let of_op = |refusal: Refusal| Refusal {
            code: refusal.code,
            message: format!("aclnn{}: {}", self.name, refusal.message),
        };
        let call = Args::new(self.params, args, soc).map_err(of_op)?;
        let work = (self.plan)(&call).map_err(of_op)?;
        Ok(Plan { op: self.name, workspace: work.workspace, tensors: call.slots, run: work.run })
    }
}

/// The arguments of a call by the names of its parameters.
pub(crate) struct Args<'a> {
    params: &'static [Param],
    values: &'a [Arg],
    views: Vec<Vec<View>>,
    slots: Vec<Slot>,
    pub(crate) soc: &'a Soc,
}

/// The tensors of an argument; none of a null pointer or another kind.
fn tensors(arg: &Arg) -> &[Tensor] {
    match arg {
        Arg::Tensor(Some(tensor)) => std::slice::from_ref(tensor),
        Arg::TensorList(Some(list)) => list,
        _ => &[],
    }
}

fn check_kind(param: &Param, arg: &Arg) -> Result<(), Refusal> {
    let name = param.name;
    let (fits, null) = match (param.kind, arg) {
        (Kind::Tensor, Arg::Tensor(value)) => (true, value.is_none()),
        (Kind::TensorList, Arg::TensorList(value)) => (true, value.is_none()),
        (Kind::IntArray, Arg::IntArray(value)) => (true, value.is_none()),
        (Kind::Scalar, Arg::Scalar(value)) => (true, value.is_none()),
        (Kind::Text, Arg::Text(value)) => (true, value.is_none()),
        (Kind::I8 | Kind::I32 | Kind::I64, Arg::Int(_))
        | (Kind::F64, Arg::Float(_))
        | (Kind::Bool, Arg::Bool(_))
        | (Kind::DataType, Arg::DataType(_)) => (true, false),
        _ => (false, false),
    };
    ensure!(code::INNER; fits, "{name}: {arg:?}, expected {:?}", param.kind);
    ensure!(code::NULL; !null || param.optional, "{name}: null, expected a {:?}", param.kind);
    Ok(())
}

impl<'a> Args<'a> {
    fn new(params: &'static [Param], values: &'a [Arg], soc: &'a Soc) -> Result<Self, Refusal> {
        let (given, expected) = (values.len(), params.len());
        ensure!(code::INNER; given == expected, "{given} arguments, expected {expected}");
        let (mut views, mut slots) = (Vec::new(), Vec::new());
        for (number, (param, arg)) in params.iter().zip(values).enumerate() {
            check_kind(param, arg)?;
            let mut of_param = Vec::new();
            for (item, tensor) in tensors(arg).iter().enumerate() {
                let in_list = param.kind == Kind::TensorList;
                let name =
                    if in_list { format!("{}[{item}]", param.name) } else { param.name.into() };
                let view = View::of(name, tensor, slots.len())?;
                ensure!(
                    !param.writes || !view.overlaps_itself(),
                    "{}: strides {:?} of shape {:?} overlap, expected none in what is written",
                    view.name,
                    view.strides,
                    view.dims
                );
                of_param.push(view);
                slots.push(Slot { param: number, item, address: tensor.address });
            }
            views.push(of_param);
        }
        Ok(Self { params, values, views, slots, soc })
    }

    fn number(&self, name: &str) -> Result<usize, Refusal> {
        self.params
            .iter()
            .position(|p| p.name == name)
            .ok_or_else(|| Refusal::new(code::INNER, format!("no parameter {name}")))
    }

    /// Whether this version of an operator has a parameter.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.params.iter().any(|p| p.name == name)
    }

    /// The type of a parameter in this version of an operator.
    pub(crate) fn kind(&self, name: &str) -> Option<Kind> {
        self.params.iter().find(|p| p.name == name).map(|p| p.kind)
    }

    fn other_kind<T>(name: &str) -> Result<T, Refusal> {
        Err(Refusal::new(code::INNER, format!("{name} is of another kind")))
    }

    /// A weight, which may be stored as FRACTAL_NZ.
    pub(crate) fn weight(&self, name: &str) -> Result<View, Refusal> {
        let views = &self.views[self.number(name)?];
        views.first().cloned().ok_or_else(|| Refusal::new(code::NULL, format!("{name}: null")))
    }

    /// A row-major tensor.
    pub(crate) fn tensor(&self, name: &str) -> Result<View, Refusal> {
        row_major(self.weight(name)?)
    }

    /// A row-major tensor, or null.
    pub(crate) fn optional(&self, name: &str) -> Result<Option<View>, Refusal> {
        let views = &self.views[self.number(name)?];
        views.first().cloned().map(row_major).transpose()
    }

    /// The tensors of a list; none of null.
    pub(crate) fn list(&self, name: &str) -> Result<&[View], Refusal> {
        Ok(&self.views[self.number(name)?])
    }

    /// Arguments that this version of the operator takes, but a documented feature wants null.
    pub(crate) fn expect_null(&self, names: &[&str], why: &str) -> Result<(), Refusal> {
        for name in names {
            let null = match &self.values[self.number(name)?] {
                Arg::Tensor(value) => value.is_none(),
                Arg::TensorList(value) => value.as_ref().is_none_or(Vec::is_empty),
                Arg::IntArray(value) => value.as_ref().is_none_or(Vec::is_empty),
                _ => true,
            };
            ensure!(null, "{name}: given, expected null {why}");
        }
        Ok(())
    }

    pub(crate) fn int(&self, name: &str) -> Result<i64, Refusal> {
        match &self.values[self.number(name)?] {
            Arg::Int(value) => Ok(*value),
            _ => Self::other_kind(name),
        }
    }

    /// An integer that is one of some.
    pub(crate) fn choice(&self, name: &str, choices: &[i64]) -> Result<i64, Refusal> {
        let value = self.int(name)?;
        ensure!(
            choices.contains(&value),
            "{name}: {value}, expected {}",
            crate::dtype::one_of(choices)
        );
        Ok(value)
    }

    /// An axis of a rank, counted from the end where negative.
    pub(crate) fn axis(&self, name: &str, rank: usize) -> Result<usize, Refusal> {
        axis_of(name, self.int(name)?, rank)
    }

    pub(crate) fn float(&self, name: &str) -> Result<f64, Refusal> {
        match &self.values[self.number(name)?] {
            Arg::Float(value) => Ok(*value),
            _ => Self::other_kind(name),
        }
    }

    pub(crate) fn flag(&self, name: &str) -> Result<bool, Refusal> {
        match &self.values[self.number(name)?] {
            Arg::Bool(value) => Ok(*value),
            _ => Self::other_kind(name),
        }
    }

    /// A text; empty of null.
    pub(crate) fn text(&self, name: &str) -> Result<&'a str, Refusal> {
        match &self.values[self.number(name)?] {
            Arg::Text(value) => Ok(value.as_deref().unwrap_or("")),
            _ => Self::other_kind(name),
        }
    }

    /// An array of the host; none of null.
    pub(crate) fn ints(&self, name: &str) -> Result<Option<&'a [i64]>, Refusal> {
        match &self.values[self.number(name)?] {
            Arg::IntArray(value) => Ok(value.as_deref()),
            _ => Self::other_kind(name),
        }
    }

    pub(crate) fn scalar(&self, name: &str) -> Result<Scalar, Refusal> {
        match &self.values[self.number(name)?] {
            Arg::Scalar(Some(value)) => Ok(*value),
            _ => Self::other_kind(name),
        }
    }

    pub(crate) fn dtype(&self, name: &str) -> Result<DType, Refusal> {
        let Arg::DataType(number) = &self.values[self.number(name)?] else {
            return Self::other_kind(name);
        };
        DType::of(*number).ok_or_else(|| {
            Refusal::new(code::INVALID, format!("{name}: aclDataType {number} is none of a 910B"))
        })
    }
}

/// An axis of a rank, counted from the end where negative.
pub(crate) fn axis_of(name: &str, axis: i64, rank: usize) -> Result<usize, Refusal> {
    let ranks = rank.max(1) as i64;
    ensure!(
        (-ranks..ranks).contains(&axis),
        "{name}: {axis}, expected from {} to {}",
        -ranks,
        ranks - 1
    );
    Ok(axis.rem_euclid(ranks) as usize)
}

fn row_major(view: View) -> Result<View, Refusal> {
    ensure!(!view.nz, "{}: format FRACTAL_NZ, expected ND", view.name);
    Ok(view)
}
