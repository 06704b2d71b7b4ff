//! Names: registers, variables and labels of nested scopes, and the slots and addresses that they get.

use super::{DecodeError, Globals};
use crate::program::{Slot, Special};
use halyard_sim_cuda_ptx::{Linkage, RegDecl, ScalarType, Space, Variable};
use std::collections::HashMap;

/// Which register file a slot is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum File {
    Word,
    Long,
    Predicate,
}

impl File {
    pub(crate) fn of(ty: ScalarType) -> Option<Self> {
        match (ty, ty.bytes()) {
            (ScalarType::Pred, _) => Some(Self::Predicate),
            (_, 8) => Some(Self::Long),
            (_, 1..=4) => Some(Self::Word),
            _ => None,
        }
    }
}

/// Where a variable is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// At this offset of a block's shared memory.
    Shared(u64),
    /// At this offset behind the shared memory of fixed size.
    DynamicShared,
    Local(u64),
    /// A parameter of a call: at this offset of local memory, so many bytes.
    Argument(u64, u64),
    /// At this device address.
    Global(u64),
}

#[derive(Default)]
struct Scope<'a> {
    /// What is around it is another function's, whose names it does not see.
    function: bool,
    declared: Vec<RegDecl<'a>>,
    registers: HashMap<&'a str, (File, Slot)>,
    variables: HashMap<&'a str, Place>,
    labels: HashMap<&'a str, usize>,
    /// Labels that a jump by a table may go to.
    lists: HashMap<&'a str, Vec<&'a str>>,
    /// Branches to labels that were not met yet: instruction, label, line.
    pending: Vec<(usize, &'a str, u32)>,
}

/// All that a kernel's names stand for.
pub(crate) struct Names<'a, 'g> {
    scopes: Vec<Scope<'a>>,
    globals: &'g Globals,
    module: &'a [Variable<'a>],
    /// Variables of the module in shared memory that were named so far.
    placed: HashMap<&'a str, Place>,
    pub(crate) sizes: [usize; 3],
    pub(crate) words: HashMap<u32, Slot>,
    pub(crate) longs: HashMap<u64, Slot>,
    pub(crate) dynamic: Option<Slot>,
    pub(crate) dynamic_long: Option<Slot>,
    pub(crate) truth: HashMap<bool, Slot>,
    pub(crate) special: Vec<(Slot, Special)>,
    special_names: HashMap<&'a str, Slot>,
    pub(crate) shared_bytes: u64,
    pub(crate) local_bytes: u64,
}

impl<'a, 'g> Names<'a, 'g> {
    pub(crate) fn new(globals: &'g Globals, module: &'a [Variable<'a>]) -> Self {
        Self {
            scopes: vec![Scope::default()],
            globals,
            module,
            placed: HashMap::new(),
            sizes: [0; 3],
            words: HashMap::new(),
            longs: HashMap::new(),
            dynamic: None,
            dynamic_long: None,
            truth: HashMap::new(),
            special: Vec::new(),
            special_names: HashMap::new(),
            shared_bytes: 0,
            local_bytes: 0,
        }
    }

    /// A new slot of `file`.
    pub(crate) fn slot(&mut self, file: File) -> Result<Slot, String> {
        let size = &mut self.sizes[file as usize];
        let slot = Slot::try_from(*size).map_err(|_| "more than 65536 registers".to_owned())?;
        *size += 1;
        Ok(slot)
    }

    pub(crate) fn enter(&mut self) {
        self.scopes.push(Scope::default());
    }

    /// Enters a function that is called, whose parameters are at these places.
    pub(crate) fn enter_function(&mut self, params: Vec<(&'a str, Place)>) {
        let variables = params.into_iter().collect();
        self.scopes.push(Scope { function: true, variables, ..Scope::default() });
    }

    /// The scopes whose names are seen, the innermost first.
    fn seen(&self) -> impl Iterator<Item = usize> + use<> {
        let function = self.scopes.iter().rposition(|scope| scope.function).unwrap_or(0);
        (function..self.scopes.len()).rev()
    }

    /// Leaves a scope: its labels resolve its branches, others wait in the scope around. Gives instruction and target.
    pub(crate) fn leave(&mut self) -> Result<Vec<(usize, usize)>, DecodeError> {
        let Some(scope) = self.scopes.pop() else { return Ok(Vec::new()) };
        let mut resolved = Vec::new();
        for (at, label, line) in scope.pending {
            if let Some(target) = scope.labels.get(label) {
                resolved.push((at, *target));
            } else if let Some(around) = self.scopes.last_mut().filter(|_| !scope.function) {
                around.pending.push((at, label, line));
            } else {
                let text = format!("branch to '{label}', which is no label here");
                return Err(DecodeError { line, text });
            }
        }
        Ok(resolved)
    }

    fn scope(&mut self) -> &mut Scope<'a> {
        if self.scopes.is_empty() {
            self.scopes.push(Scope::default());
        }
        let last = self.scopes.len() - 1;
        &mut self.scopes[last]
    }

    pub(crate) fn declare(&mut self, registers: RegDecl<'a>) {
        self.scope().declared.push(registers);
    }

    pub(crate) fn label(&mut self, name: &'a str, at: usize) {
        self.scope().labels.insert(name, at);
    }

    pub(crate) fn list(&mut self, name: &'a str, labels: &[&'a str]) {
        self.scope().lists.insert(name, labels.to_vec());
    }

    pub(crate) fn targets(&self, name: &str) -> Option<Vec<&'a str>> {
        self.seen().find_map(|at| self.scopes[at].lists.get(name)).cloned()
    }

    pub(crate) fn branch(&mut self, at: usize, label: &'a str, line: u32) {
        self.scope().pending.push((at, label, line));
    }

    pub(crate) fn variable(&mut self, variable: &Variable<'a>) -> Result<(), String> {
        let place = self.place(variable)?;
        self.scope().variables.insert(variable.name, place);
        Ok(())
    }

    fn place(&mut self, variable: &Variable<'a>) -> Result<Place, String> {
        let (bytes, align) = (variable.bytes() as u64, variable.align as u64);
        let end = match variable.space {
            Space::Shared if variable.linkage == Linkage::Extern || variable.count.is_none() => {
                return Ok(Place::DynamicShared);
            }
            Space::Shared => &mut self.shared_bytes,
            Space::Local | Space::Param => &mut self.local_bytes,
            _ => {
                return Err(format!("variable '{}' in this space, inside a kernel", variable.name));
            }
        };
        let at = end.next_multiple_of(align);
        *end = at.saturating_add(bytes);
        if *end > 1 << 24 {
            return Err(format!("more than 16 MiB of variables, with '{}'", variable.name));
        }
        Ok(match variable.space {
            Space::Shared => Place::Shared(at),
            Space::Param => Place::Argument(at, bytes),
            _ => Place::Local(at),
        })
    }

    /// The register called `name`, which gets its slot when it is first asked for.
    pub(crate) fn register(&mut self, name: &'a str) -> Result<Option<(File, Slot)>, String> {
        for at in self.seen() {
            if let Some(found) = self.scopes[at].registers.get(name) {
                return Ok(Some(*found));
            }
            let declared = self.scopes[at].declared.iter().find(|declared| names(declared, name));
            if let Some(ty) = declared.map(|declared| declared.ty) {
                let wide = || format!("register '{name}' of type .{}", ty.name());
                let file = File::of(ty).ok_or_else(wide)?;
                let slot = self.slot(file)?;
                self.scopes[at].registers.insert(name, (file, slot));
                return Ok(Some((file, slot)));
            }
        }
        Ok(None)
    }

    /// The variable called `name`; one of the module's shared variables is placed when a kernel first names it.
    pub(crate) fn find_variable(&mut self, name: &'a str) -> Result<Option<Place>, String> {
        let here = self.seen().find_map(|at| self.scopes[at].variables.get(name));
        if let Some(place) = here.or_else(|| self.placed.get(name)) {
            return Ok(Some(*place));
        }
        if let Some((address, _)) = self.globals.get(name) {
            return Ok(Some(Place::Global(*address)));
        }
        let Some(variable) = self.module.iter().find(|variable| variable.name == name) else {
            return Ok(None);
        };
        let place = self.place(variable)?;
        self.placed.insert(variable.name, place);
        Ok(Some(place))
    }

    /// The special register called `name`.
    pub(crate) fn special(&mut self, name: &'a str) -> Result<Option<Slot>, String> {
        if let Some(slot) = self.special_names.get(name) {
            return Ok(Some(*slot));
        }
        let Some(special) = special(name) else { return Ok(None) };
        let slot = self.slot(File::Word)?;
        self.special_names.insert(name, slot);
        self.special.push((slot, special));
        Ok(Some(slot))
    }
}

/// Whether `declared` declares the register `name`.
fn names(declared: &RegDecl<'_>, name: &str) -> bool {
    match declared.count {
        None => declared.name == name,
        Some(count) => {
            let digits = name.strip_prefix(declared.name).unwrap_or_default();
            let canonical = digits == "0" || !digits.starts_with(['0', '+']);
            canonical && digits.parse::<u32>().is_ok_and(|index| index < count)
        }
    }
}

fn special(name: &str) -> Option<Special> {
    let axis = |rest: &str| ["x", "y", "z"].iter().position(|axis| *axis == rest);
    let axis = |rest: &str| axis(rest).and_then(|axis| u8::try_from(axis).ok());
    if let Some((base, rest)) = name.split_once('.') {
        return Some(match base {
            "%tid" => Special::Tid(axis(rest)?),
            "%ntid" => Special::BlockSize(axis(rest)?),
            "%ctaid" => Special::BlockId(axis(rest)?),
            "%nctaid" => Special::GridSize(axis(rest)?),
            // Each block is a cluster of its own.
            "%clusterid" => Special::BlockId(axis(rest)?),
            "%nclusterid" => Special::GridSize(axis(rest)?),
            "%cluster_ctaid" => axis(rest).map(|_| Special::Zero)?,
            "%cluster_nctaid" => axis(rest).map(|_| Special::One)?,
            _ => return None,
        });
    }
    Some(match name {
        "%laneid" => Special::Lane,
        "%warpid" => Special::WarpId,
        "%nwarpid" => Special::WarpCount,
        "WARP_SZ" => Special::WarpSize,
        "%lanemask_eq" => Special::MaskEq,
        "%lanemask_lt" => Special::MaskLt,
        "%lanemask_le" => Special::MaskLe,
        "%lanemask_gt" => Special::MaskGt,
        "%lanemask_ge" => Special::MaskGe,
        "%dynamic_smem_size" => Special::DynamicShared,
        "%total_smem_size" => Special::TotalShared,
        "%smid" | "%cluster_ctarank" => Special::Zero,
        "%cluster_nctarank" => Special::One,
        _ => return None,
    })
}
