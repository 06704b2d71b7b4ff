//! PTX to a [`Program`]: every operand becomes a register slot, every mnemonic an opcode, or an error that names the line.

mod allocate;
mod arithmetic;
mod bulk;
mod calls;
mod composed;
mod data;
mod hazard;
mod hopper;
mod lanes;
mod memory;
mod mnemonic;
mod params;
mod scope;
mod wgmma;

use crate::program::{Class, Flow, Ins, OPERANDS, Op, Product, Program, Slot, Together, Vote};
use crate::warp::{handler, watched_handler};
use allocate::allocate;
pub(crate) use allocate::{Role, roles};
use halyard_sim_cuda_ptx::{
    Address, Guard, Instruction, Kernel, Module, Operand, ScalarType, Statement, Variable,
};
use hazard::hazards;
use mnemonic::Mnemonic;
pub(crate) use scope::File;
use scope::{Names, Place};
use std::collections::HashMap;
use std::sync::OnceLock;

/// Where shared memory begins as generic addresses see it.
pub(crate) const SHARED_WINDOW: u64 = 1 << 50;
/// Where a thread's local memory begins as generic addresses see it.
pub(crate) const LOCAL_WINDOW: u64 = 1 << 51;
/// Where parameters begin as generic addresses see them.
pub(crate) const PARAM_WINDOW: u64 = 1 << 52;
/// Bytes of a window.
pub(crate) const WINDOW_BYTES: u64 = 1 << 32;

/// The module's variables in global and constant memory: address and bytes.
pub(crate) type Globals = HashMap<String, (u64, usize)>;

/// Why a kernel can't be executed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("PTX line {line}: {text}")]
pub struct DecodeError {
    /// Line of the text, from 1.
    pub line: u32,
    /// What is wrong or not supported.
    pub text: String,
}

/// Decodes one kernel of `module`.
pub(crate) fn decode<'a>(
    module: &'a Module<'a>,
    kernel: &'a Kernel<'a>,
    globals: &Globals,
) -> Result<Program, DecodeError> {
    if let Some(cluster) = kernel.limits.required_cluster.filter(|cluster| *cluster != [1; 3]) {
        let text = format!("unsupported: clusters of {cluster:?} blocks; only of one");
        return Err(DecodeError { line: kernel.line, text });
    }
    let (params, param_bytes) = Program::place(&kernel.params);
    let named = kernel.params.iter().zip(&params).map(|(param, (at, _))| (param.name, *at));
    let mut decoder = Decoder {
        module,
        calls: Vec::new(),
        carry: None,
        names: Names::new(globals, &module.variables),
        params: named.collect(),
        param_bytes,
        code: Vec::new(),
        products: Vec::new(),
        line: kernel.line,
        orders: false,
    };
    decoder.body(&kernel.body)?;
    decoder.resolve()?;
    decoder.push(Op::Flow(Flow::Exit), Class::Control);
    Ok(decoder.finish(kernel, (params, param_bytes)))
}

pub(crate) struct Decoder<'a, 'g> {
    module: &'a Module<'a>,
    /// The functions in whose bodies it is, the innermost last.
    calls: Vec<&'a str>,
    /// What `.cc` keeps.
    carry: Option<Slot>,
    names: Names<'a, 'g>,
    params: HashMap<&'a str, usize>,
    param_bytes: usize,
    code: Vec<Ins>,
    products: Vec<Product>,
    line: u32,
    /// Something orders blocks.
    orders: bool,
}

/// A decoding step; the line is added by whoever knows it.
type Decoded<T = ()> = Result<T, String>;

/// Slots of an instruction's registers, filled in the order that its opcode defines.
#[derive(Clone, Copy, Default)]
pub(crate) struct Slots {
    o: [Slot; OPERANDS],
    len: usize,
}

impl Slots {
    fn push(&mut self, slot: Slot) -> Decoded {
        let Some(place) = self.o.get_mut(self.len) else {
            return Err("too many operands".to_owned());
        };
        *place = slot;
        self.len += 1;
        Ok(())
    }
}

impl<'a> Decoder<'a, '_> {
    fn finish(
        self,
        kernel: &Kernel<'a>,
        (params, param_bytes): (Vec<(usize, usize)>, usize),
    ) -> Program {
        let Self { mut names, mut code, mut products, orders, .. } = self;
        let known = names.longs.iter().map(|(value, slot)| (*slot, *value));
        params::place_loads(&mut code, known, param_bytes);
        let hazards = hazards(&code, &products);
        let fixed = names.shared_bytes.next_multiple_of(16);
        let mut long_constants: Vec<_> =
            names.longs.iter().map(|(value, slot)| (*slot, *value)).collect();
        long_constants.extend(names.dynamic_long.map(|slot| (slot, fixed)));
        let mut word_constants: Vec<_> =
            names.words.iter().map(|(value, slot)| (*slot, *value)).collect();
        word_constants.extend(names.dynamic.map(|slot| (slot, fixed as u32)));

        let given = word_constants.iter().map(|(slot, _)| *slot);
        let given: Vec<_> = given.chain(names.special.iter().map(|(slot, _)| *slot)).collect();
        let words = allocate(
            (&mut code, &mut products),
            File::Word,
            names.sizes[File::Word as usize],
            &given,
        );
        word_constants.iter_mut().for_each(|(slot, _)| *slot = words.slot(*slot));
        names.special.iter_mut().for_each(|(slot, _)| *slot = words.slot(*slot));
        let given: Vec<_> = long_constants.iter().map(|(slot, _)| *slot).collect();
        let longs = allocate(
            (&mut code, &mut products),
            File::Long,
            names.sizes[File::Long as usize],
            &given,
        );
        long_constants.iter_mut().for_each(|(slot, _)| *slot = longs.slot(*slot));

        for (at, ins) in code.iter_mut().enumerate() {
            ins.run = if hazards.watches(at) { watched_handler } else { handler(ins.op) };
            ins.plain = ins.guard.is_none() && ins.together == Together::No;
        }
        Program {
            name: kernel.name.to_owned(),
            stops: Program::stops(&code),
            plain_before: Program::plain_before(&code),
            code,
            products,
            hazards,
            words: words.count,
            longs: longs.count,
            predicates: names.sizes[File::Predicate as usize],
            poisoned_words: words.poisoned,
            poisoned_longs: longs.poisoned,
            word_constants,
            long_constants,
            predicate_constants: names.truth.iter().map(|(holds, slot)| (*slot, *holds)).collect(),
            special: names.special,
            shared_bytes: fixed as usize,
            local_bytes: names.local_bytes.next_multiple_of(16) as usize,
            params,
            param_bytes,
            limits: kernel.limits,
            orders,
            compiled: OnceLock::new(),
        }
    }

    fn body(&mut self, body: &[Statement<'a>]) -> Result<(), DecodeError> {
        for statement in body {
            match statement {
                Statement::Label(name, _) => self.names.label(name, self.code.len()),
                Statement::Reg(registers) => self.names.declare(*registers),
                Statement::Variable(variable) => self.variable(variable)?,
                Statement::Block(inner) => {
                    self.names.enter();
                    self.body(inner)?;
                    self.resolve()?;
                }
                Statement::Targets(name, labels) => self.names.list(name, labels),
                Statement::Instruction(instruction) => {
                    self.line = instruction.line;
                    if instruction.mnemonic.split('.').next() == Some("call") {
                        self.call(instruction)?;
                        continue;
                    }
                    self.instruction(instruction).map_err(|text| DecodeError {
                        line: instruction.line,
                        text: format!("`{}`: {text}", instruction.mnemonic),
                    })?;
                }
            }
        }
        Ok(())
    }

    /// Leaves a scope, and sends its branches to its labels.
    fn resolve(&mut self) -> Result<(), DecodeError> {
        for (at, target) in self.names.leave()? {
            self.code[at].imm = target as i64;
        }
        Ok(())
    }

    fn variable(&mut self, variable: &Variable<'a>) -> Result<(), DecodeError> {
        self.names.variable(variable).map_err(|text| DecodeError {
            line: variable.line,
            text: format!("unsupported: {text}"),
        })
    }

    fn instruction(&mut self, instruction: &Instruction<'a>) -> Decoded {
        let first = self.code.len();
        let mut m = Mnemonic::new(instruction.mnemonic);
        let operands = &instruction.operands[..];
        match m.base {
            "mov" | "cvt" | "setp" | "selp" | "prmt" => self.data(&mut m, operands)?,
            "ld" | "ldu" | "st" | "atom" | "red" | "cp" | "ldmatrix" | "cvta" | "prefetch"
            | "prefetchu" | "isspacep" => self.memory(&mut m, operands)?,
            "bra" | "ret" | "exit" | "trap" | "bar" | "barrier" | "membar" | "fence" => {
                self.flow(&mut m, operands)?;
            }
            "brx" if instruction.guard.is_some() => return Err("unsupported: a guard".to_owned()),
            "brx" => self.branch_by_index(&mut m, operands)?,
            // How long a thread sleeps nobody sees.
            "nanosleep" => {
                m.take("u32");
                self.push(Op::Nop, Class::Control);
            }
            "shfl" | "vote" | "match" | "redux" | "activemask" | "elect" | "mma" => {
                self.lanes(&mut m, operands)?;
            }
            "mbarrier" | "mapa" | "griddepcontrol" | "setmaxnreg" => {
                self.hopper(&mut m, operands)?;
            }
            "wgmma" => self.wgmma(&mut m, operands)?,
            "stmatrix" => self.store_matrix(&mut m, operands)?,
            "tensormap" => self.tensor_map(&mut m, operands)?,
            _ => self.arithmetic(&mut m, operands)?,
        }
        if let Some(left) = m.left() {
            return Err(format!("unsupported: modifier .{left}"));
        }
        if let Some(guard) = self.guard(instruction)? {
            self.code[first..].iter_mut().for_each(|ins| ins.guard = Some(guard));
        }
        Ok(())
    }

    /// The predicate of an instruction's guard, and what it must be.
    fn guard(&mut self, instruction: &Instruction<'a>) -> Decoded<Option<(Slot, bool)>> {
        let Some(Guard { predicate, negated }) = instruction.guard else { return Ok(None) };
        Ok(Some((self.register(predicate, File::Predicate)?, !negated)))
    }

    /// Appends an instruction without registers.
    fn push(&mut self, op: Op, class: Class) -> &mut Ins {
        self.push_with(op, class, Slots::default())
    }

    fn push_with(&mut self, op: Op, class: Class, slots: Slots) -> &mut Ins {
        let at = self.code.len();
        let line = self.line;
        let (guard, together, plain) = (None, Together::No, true);
        let run = handler(Op::Nop);
        self.code.push(Ins { run, op, guard, class, together, plain, line, imm: 0, o: slots.o });
        &mut self.code[at]
    }

    fn flow(&mut self, m: &mut Mnemonic<'_>, operands: &[Operand<'a>]) -> Decoded {
        match m.base {
            "bra" => {
                m.take("uni");
                let [Operand::Name(label)] = operands else {
                    return Err("expected a label".to_owned());
                };
                self.branch_to(label);
            }
            "ret" => {
                m.take("uni");
                self.leave_function();
            }
            "exit" => _ = self.push(Op::Flow(Flow::Exit), Class::Control),
            "trap" => _ = self.push(Op::Flow(Flow::Trap), Class::Control),
            "membar" | "fence" => {
                if self.special_fence(m)? {
                    return Ok(());
                }
                self.orders |= m.has_any(&["gl", "sys", "gpu"]);
                for part in ["sc", "acq_rel", "cta", "gl", "sys", "gpu", "cluster"] {
                    m.take(part);
                }
                self.push(Op::Nop, Class::Barrier);
            }
            _ => self.barrier(m, operands)?,
        }
        Ok(())
    }

    /// `bar.sync`, `bar.arrive`, `barrier.sync`, `bar.warp.sync`.
    fn barrier(&mut self, m: &mut Mnemonic<'_>, operands: &[Operand<'a>]) -> Decoded {
        if m.take("cluster") {
            return self.cluster_barrier(m);
        }
        m.take("cta");
        let aligned = m.take("aligned") | (m.base == "bar");
        let mut slots = Slots::default();
        if m.take("warp") {
            m.take("sync");
            let [mask] = operands else { return Err("expected a mask".to_owned()) };
            slots.push(self.word(mask, ScalarType::B32)?)?;
            self.push_with(Op::Flow(Flow::WarpBarrier), Class::Barrier, slots);
            return Ok(());
        }
        if m.take("red") {
            return self.vote_barrier(m, operands, aligned);
        }
        let wait = m.take("sync");
        if !wait && !m.take("arrive") {
            return Err("unsupported: only .sync, .arrive and .red are".to_owned());
        }
        let (id, count) = match operands {
            [id] => (id, None),
            [id, count] => (id, Some(count)),
            _ => return Err("expected a barrier and perhaps a number of threads".to_owned()),
        };
        slots.push(self.word(id, ScalarType::B32)?)?;
        if let Some(count) = count {
            slots.push(self.word(count, ScalarType::B32)?)?;
        }
        let flow = Flow::Barrier { counted: count.is_some(), wait, aligned, vote: None };
        self.push_with(Op::Flow(flow), Class::Barrier, slots);
        Ok(())
    }

    /// `bar.red`: a barrier at which all learn of a predicate of each.
    fn vote_barrier(
        &mut self,
        m: &mut Mnemonic<'_>,
        operands: &[Operand<'a>],
        aligned: bool,
    ) -> Decoded {
        let (vote, file) = match m.take_any(&["popc", "and", "or"]) {
            Some("popc") => (Vote::Count, File::Word),
            Some("and") => (Vote::All, File::Predicate),
            Some(_) => (Vote::Any, File::Predicate),
            None => return Err("expected .popc, .and or .or".to_owned()),
        };
        m.take(if vote == Vote::Count { "u32" } else { "pred" });
        let (to, id, count, predicate) = match operands {
            [to, id, predicate] => (to, id, None, predicate),
            [to, id, count, predicate] => (to, id, Some(count), predicate),
            _ => return Err("expected a result, a barrier, threads, a predicate".to_owned()),
        };
        let (predicate, negated) = match predicate {
            Operand::Not(name) => (&Operand::Name(name), true),
            other => (other, false),
        };
        let mut slots = Slots::default();
        slots.push(self.word(id, ScalarType::B32)?)?;
        slots.push(match count {
            Some(count) => self.word(count, ScalarType::B32)?,
            None => 0,
        })?;
        slots.push(self.predicate(predicate)?)?;
        slots.push(self.target(to, file)?)?;
        let counted = count.is_some();
        let flow = Flow::Barrier { counted, wait: true, aligned, vote: Some(vote) };
        self.push_with(Op::Flow(flow), Class::Barrier, slots).imm = i64::from(negated);
        Ok(())
    }

    /// The register `name`, which must be of `file`.
    fn register(&mut self, name: &'a str, file: File) -> Decoded<Slot> {
        match self.names.register(name)? {
            Some((found, slot)) if found == file => Ok(slot),
            Some(_) => Err(format!("register '{name}' is not as wide as the operand")),
            None => Err(format!("'{name}' is no register")),
        }
    }

    /// Where a result goes.
    fn target(&mut self, operand: &Operand<'a>, file: File) -> Decoded<Slot> {
        match operand {
            Operand::Name(name) => self.register(name, file),
            Operand::Sink => self.names.slot(file),
            _ => Err("expected a register to write to".to_owned()),
        }
    }

    /// A source of type `ty`, whichever file that is in.
    fn source(&mut self, operand: &Operand<'a>, ty: ScalarType) -> Decoded<Slot> {
        match File::of(ty) {
            Some(File::Word) => self.word(operand, ty),
            Some(File::Long) => self.long(operand, ty),
            Some(File::Predicate) => self.predicate(operand),
            None => Err(format!("unsupported: operands of type .{}", ty.name())),
        }
    }

    /// A source in a 32-bit register: a register, special register, constant or address.
    fn word(&mut self, operand: &Operand<'a>, ty: ScalarType) -> Decoded<Slot> {
        let value = match operand {
            Operand::Name(name) => {
                if self.names.register(name)?.is_some() {
                    return self.register(name, File::Word);
                }
                if let Some(slot) = self.names.special(name)? {
                    return Ok(slot);
                }
                if let Some(at) = self.params.get(name) {
                    return self.word_constant(*at as u32);
                }
                match self.names.find_variable(name)? {
                    Some(Place::DynamicShared) => return self.dynamic_shared(File::Word),
                    Some(Place::Shared(at) | Place::Local(at)) => at,
                    Some(Place::Global(_)) => {
                        return Err(format!("the address of '{name}' takes 64 bits"));
                    }
                    Some(Place::Argument(..)) => return Err(address_of_argument(name)),
                    None => return Err(format!("'{name}' is not declared")),
                }
            }
            constant => constant_bits(constant, ty)?,
        };
        let mask = if ty.bytes() < 4 { (1 << (8 * ty.bytes())) - 1 } else { u64::from(u32::MAX) };
        self.word_constant((value & mask) as u32)
    }

    fn word_constant(&mut self, value: u32) -> Decoded<Slot> {
        if let Some(slot) = self.names.words.get(&value) {
            return Ok(*slot);
        }
        let slot = self.names.slot(File::Word)?;
        self.names.words.insert(value, slot);
        Ok(slot)
    }

    /// A source in a 64-bit register.
    fn long(&mut self, operand: &Operand<'a>, ty: ScalarType) -> Decoded<Slot> {
        let value = match operand {
            Operand::Name(name) => {
                if self.names.register(name)?.is_some() {
                    return self.register(name, File::Long);
                }
                if let Some(at) = self.params.get(name) {
                    let at = *at as u64;
                    return self.long_constant(at);
                }
                match self.names.find_variable(name)? {
                    Some(Place::DynamicShared) => return self.dynamic_shared(File::Long),
                    Some(Place::Shared(at) | Place::Local(at) | Place::Global(at)) => at,
                    Some(Place::Argument(..)) => return Err(address_of_argument(name)),
                    None => return Err(format!("'{name}' is not declared, or not of 64 bits")),
                }
            }
            constant => constant_bits(constant, ty)?,
        };
        self.long_constant(value)
    }

    fn long_constant(&mut self, value: u64) -> Decoded<Slot> {
        if let Some(slot) = self.names.longs.get(&value) {
            return Ok(*slot);
        }
        let slot = self.names.slot(File::Long)?;
        self.names.longs.insert(value, slot);
        Ok(slot)
    }

    /// The address of the launch's shared memory, known once all variables of fixed size are.
    fn dynamic_shared(&mut self, file: File) -> Decoded<Slot> {
        let known = if file == File::Word { self.names.dynamic } else { self.names.dynamic_long };
        if let Some(slot) = known {
            return Ok(slot);
        }
        let slot = self.names.slot(file)?;
        *(if file == File::Word {
            &mut self.names.dynamic
        } else {
            &mut self.names.dynamic_long
        }) = Some(slot);
        Ok(slot)
    }

    fn predicate(&mut self, operand: &Operand<'a>) -> Decoded<Slot> {
        let value = match operand {
            Operand::Name(name) => return self.register(name, File::Predicate),
            Operand::Int(value) => *value != 0,
            _ => return Err("expected a predicate".to_owned()),
        };
        if let Some(slot) = self.names.truth.get(&value) {
            return Ok(*slot);
        }
        let slot = self.names.slot(File::Predicate)?;
        self.names.truth.insert(value, slot);
        Ok(slot)
    }

    /// The base of an address: its slot, and whether that is a 64-bit one. A missing base is the constant 0.
    fn base(&mut self, address: &Address<'a>) -> Decoded<(Slot, bool)> {
        if !address.coordinates.is_empty() {
            return Err("unsupported: tensor coordinates".to_owned());
        }
        let Some(name) = address.base else {
            return Ok((self.long(&Operand::Int(0), ScalarType::B64)?, true));
        };
        match self.names.register(name)? {
            Some((File::Word, slot)) => Ok((slot, false)),
            Some((File::Long, slot)) => Ok((slot, true)),
            Some((File::Predicate, _)) => Err(format!("predicate '{name}' as an address")),
            None => Ok((self.long(&Operand::Name(name), ScalarType::B64)?, true)),
        }
    }
}

/// The bits of a constant as type `ty` has them.
fn constant_bits(operand: &Operand<'_>, ty: ScalarType) -> Decoded<u64> {
    Ok(match (operand, ty) {
        (Operand::Int(value), _) => *value,
        (Operand::F32(bits), ScalarType::F64) => f64::from(f32::from_bits(*bits)).to_bits(),
        (Operand::F32(bits), _) => u64::from(*bits),
        (Operand::F64(bits), ScalarType::F32) => {
            u64::from((f64::from_bits(*bits) as f32).to_bits())
        }
        (Operand::F64(bits), _) => *bits,
        _ => return Err("expected a register or constant".to_owned()),
    })
}

fn address_of_argument(name: &str) -> String {
    format!("unsupported: the address of '{name}', a parameter of a call")
}

/// An operand list of fixed length.
fn exactly<'o, 'a, const N: usize>(operands: &'o [Operand<'a>]) -> Decoded<&'o [Operand<'a>; N]> {
    operands.try_into().map_err(|_| format!("expected {N} operands, found {}", operands.len()))
}
