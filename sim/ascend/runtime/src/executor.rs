//! Executors: what the first phase of an operator plans and the second runs.

use crate::code::{Code, Failure, Outcome};
use crate::object::{IntArray, Scalar, Tensor, TensorList, reach};
use crate::runtime::{Device, Handles, Kind, Runtime};
use crate::stream::{Site, Stream};
use halyard_sim_ascend_ops as ops;
use ops::{Arg, Fault, Memory, Op, Plan};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// An argument of the first phase as the caller gave it.
pub(crate) enum Given {
    Tensor(usize),
    TensorList(usize),
    IntArray(usize),
    Scalar(usize),
    Plain(Arg),
}

/// An object that the caller passed by its handle.
#[derive(Clone, Copy)]
struct Used {
    param: &'static str,
    handle: usize,
    is_list: bool,
}

/// `aclOpExecutor`
pub(crate) struct Executor {
    op: &'static Op,
    plan: Plan,
    args: Vec<Arg>,
    used: Vec<Used>,
    /// By the plan's tensors.
    addresses: Mutex<Vec<u64>>,
    device: u32,
    repeatable: AtomicBool,
}

impl Kind for Executor {
    const NAME: &'static str = "executor";
    const BAD: Code = Code::ACLNN_PARAM;
    const GONE: &'static str =
        "was used or destroyed (an executor is used once, unless it was made repeatable)";
}

/// Operators that copy values of the host when they are planned, which a second run would not see.
const ONE_SHOT: &[&str] = &["ConvertWeightToINT4Pack"];

/// The operator of a function's name.
pub(crate) fn find(function: &str) -> Outcome<&'static Op> {
    function.strip_prefix("aclnn").and_then(ops::find).ok_or_else(|| {
        Failure::new(Code::INTERNAL, format!("the simulator has no operator {function}"))
    })
}

impl Given {
    /// The argument's value, and what of it must live until the second phase.
    fn resolve(self, handles: &Handles, param: &'static str, used: &mut Vec<Used>) -> Outcome<Arg> {
        let mut uses = |handle, is_list| used.push(Used { param, handle, is_list });
        Ok(match self {
            Self::Plain(arg) => arg,
            Self::Tensor(0) => Arg::Tensor(None),
            Self::TensorList(0) => Arg::TensorList(None),
            Self::IntArray(0) => Arg::IntArray(None),
            Self::Scalar(0) => Arg::Scalar(None),
            Self::Tensor(handle) => {
                uses(handle, false);
                Arg::Tensor(Some(handles.get::<Tensor>(param, handle)?.now()))
            }
            Self::TensorList(handle) => {
                uses(handle, true);
                let list = handles.get::<TensorList>(param, handle)?;
                Arg::TensorList(Some(list.tensors.iter().map(|tensor| tensor.now()).collect()))
            }
            Self::IntArray(handle) => {
                Arg::IntArray(Some(handles.get::<IntArray>(param, handle)?.0.clone()))
            }
            Self::Scalar(handle) => Arg::Scalar(Some(handles.get::<Scalar>(param, handle)?.0)),
        })
    }
}

impl Executor {
    /// The first phase.
    pub(crate) fn plan(
        (runtime, device): (&Runtime, &Device),
        op: &'static Op,
        given: Vec<Given>,
    ) -> Outcome<Self> {
        let mut used = Vec::new();
        let params = op.params.iter().map(|param| param.name);
        let args = given.into_iter().zip(params);
        let args = args.map(|(given, param)| given.resolve(&runtime.handles, param, &mut used));
        let args = args.collect::<Outcome<Vec<_>>>()?;
        let chip = device.chip;
        let soc = ops::Soc {
            name: chip.soc_name.to_string_lossy().into_owned(),
            cube_cores: u32::try_from(chip.cube_cores).unwrap_or(0),
            vector_cores: u32::try_from(chip.vector_cores).unwrap_or(0),
        };
        let plan = op.plan(&args, &soc).map_err(|r| Failure::new(Code(r.code), r.message))?;
        let executor = Self {
            op,
            addresses: Mutex::new(plan.addresses()),
            plan,
            args,
            used,
            device: device.index,
            repeatable: AtomicBool::new(false),
        };
        // Addresses that are there already are looked at here, where the caller's mistake is.
        executor.check_addresses(runtime, device, true)?;
        Ok(executor)
    }

    pub(crate) fn workspace(&self) -> u64 {
        self.plan.workspace
    }

    fn addresses(&self) -> MutexGuard<'_, Vec<u64>> {
        self.addresses.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The name of a tensor of the call.
    fn slot_name(&self, slot: &ops::Slot) -> String {
        let name = self.op.params[slot.param].name;
        match &self.args[slot.param] {
            Arg::TensorList(_) => format!("{name}[{}]", slot.item),
            _ => name.to_owned(),
        }
    }

    fn slot_tensor(&self, slot: &ops::Slot) -> Option<&ops::Tensor> {
        match &self.args[slot.param] {
            Arg::Tensor(tensor) => tensor.as_ref(),
            Arg::TensorList(list) => list.as_ref().and_then(|list| list.get(slot.item)),
            _ => None,
        }
    }

    /// Every tensor lies in memory of the device; addresses may still be missing in the first phase.
    fn check_addresses(&self, runtime: &Runtime, device: &Device, missing: bool) -> Outcome {
        for (slot, address) in self.plan.tensors.iter().zip(self.addresses().iter()) {
            let bytes = self.slot_tensor(slot).map_or(0, reach);
            if bytes == 0 || missing && *address == 0 {
                continue;
            }
            let name = self.slot_name(slot);
            if *address == 0 {
                let text = format!("argument `{name}`: its tensor has no address");
                return Err(Failure::new(Code::ACLNN_NULL, text));
            }
            let checked = runtime.check_device_range(device, *address, bytes);
            checked.map_err(|what| Failure::argument(&name, what))?;
        }
        Ok(())
    }

    /// `aclSetAclOpExecutorRepeatable`
    pub(crate) fn make_repeatable(&self) -> Outcome {
        if ONE_SHOT.contains(&self.op.name) {
            let text = format!(
                "argument `executor`: aclnn{} copies values of the host and cannot be repeated",
                self.op.name
            );
            return Err(Failure::new(Code::ACLNN_PARAM, text));
        }
        self.repeatable.store(true, SeqCst);
        Ok(())
    }

    pub(crate) fn is_repeatable(&self) -> bool {
        self.repeatable.load(SeqCst)
    }

    /// Gives a tensor another address: the `item`-th of the `index`-th parameter with tensors that `wanted` takes.
    pub(crate) fn set_address(
        &self,
        wanted: impl Fn(&ops::Param) -> bool,
        (argument, index): (&str, usize),
        item: usize,
        address: u64,
    ) -> Outcome {
        if !self.is_repeatable() {
            let text =
                "argument `executor`: it was not made repeatable (aclSetAclOpExecutorRepeatable)";
            return Err(Failure::new(Code::ACLNN_PARAM, text));
        }
        let all = self.op.params.iter().enumerate();
        let mut tensors = all.filter(|(_, param)| {
            matches!(param.kind, ops::Kind::Tensor | ops::Kind::TensorList) && wanted(param)
        });
        let param = tensors.nth(index).map(|(number, _)| number);
        let slot = self
            .plan
            .tensors
            .iter()
            .position(|slot| Some(slot.param) == param && slot.item == item);
        let slot = slot.ok_or_else(|| {
            Failure::argument(
                argument,
                format!("{index}: aclnn{} has no such tensor", self.op.name),
            )
        })?;
        self.addresses()[slot] = address;
        Ok(())
    }

    fn check_objects(&self, handles: &Handles) -> Outcome {
        for used in &self.used {
            let alive = match used.is_list {
                true => handles.get::<TensorList>(used.param, used.handle).map(|_| ()),
                false => handles.get::<Tensor>(used.param, used.handle).map(|_| ()),
            };
            alive.map_err(|f| f.within("between the two phases"))?;
        }
        Ok(())
    }

    fn check_workspace(
        &self,
        runtime: &Runtime,
        device: &Device,
        workspace: u64,
        size: u64,
    ) -> Outcome {
        let wanted = self.plan.workspace;
        if size != wanted {
            let what = format!("{size} bytes; the first phase said {wanted}");
            return Err(Failure::argument("workspaceSize", what));
        }
        match (size, workspace) {
            (0, 0) => Ok(()),
            (0, _) => Err(Failure::argument("workspace", "NULL was expected where its size is 0")),
            (_, 0) => Err(Failure::null("workspace")),
            _ => {
                let checked = runtime.check_device_range(device, workspace, size);
                checked.map_err(|what| Failure::argument("workspace", what))
            }
        }
    }

    /// The second phase.
    pub(crate) fn launch(
        self: &Arc<Self>,
        function: &'static str,
        (runtime, device, stream): (&'static Runtime, &'static Device, &Stream),
        (workspace, size): (u64, u64),
    ) -> Outcome {
        if function.strip_prefix("aclnn") != Some(self.op.name) {
            let what = format!("it was made by aclnn{}GetWorkspaceSize", self.op.name);
            return Err(Failure::argument("executor", what));
        }
        if device.index != self.device {
            let what = format!(
                "it was made on device {}, and this thread's device is {}",
                self.device, device.index
            );
            return Err(Failure::argument("executor", what));
        }
        self.check_objects(&runtime.handles)?;
        self.check_workspace(runtime, device, workspace, size)?;
        self.check_addresses(runtime, device, false)?;
        let (executor, addresses) = (Arc::clone(self), self.addresses().clone());
        stream.enqueue(
            runtime,
            function,
            Arc::new(move |site| {
                let ran = executor.plan.run(&OnDevice(site), &addresses, workspace);
                ran.map_err(|fault| Failure::new(Code(fault.code), fault.message))
            }),
        )
    }
}

/// Memory as an operator that runs on a stream sees it.
struct OnDevice<'a>(&'a Site<'a>);

impl Memory for OnDevice<'_> {
    fn read(&self, address: u64, out: &mut [u8]) -> Result<(), Fault> {
        let Site { runtime, order, .. } = self.0;
        let read = runtime.memory.read_written(address, out, order);
        read.map_err(|e| Fault::exception(runtime.explain(e).text))
    }

    fn write(&self, address: u64, bytes: &[u8]) -> Result<(), Fault> {
        let Site { runtime, order, .. } = self.0;
        let written = runtime.memory.write_bytes(address, bytes, order);
        written.map_err(|e| Fault::exception(runtime.explain(e).text))
    }

    fn copy(&self, to: u64, from: u64, bytes: usize) -> Result<(), Fault> {
        let Site { runtime, order, .. } = self.0;
        let copied = runtime.memory.copy(to, from, bytes, order);
        copied.map_err(|e| Fault::exception(runtime.explain(e).text))
    }
}
