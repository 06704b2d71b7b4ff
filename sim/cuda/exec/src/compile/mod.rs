//! Stretches of a kernel as machine code.
//!
//! A stretch is instructions one behind the other that compute in registers only: no thread sees when another executes them, and none of
//! them can fail. They are compiled to AVX-512 when the kernel is first launched, on processors that have it, and executed as one; elsewhere
//! the interpreter's handlers do the same. Lanes do not meet in a stretch, so it is done for one half of the lanes and then for the
//! other: then more values stay in vector registers. It is compiled twice, for all lanes and for those of a mask, whose results alone
//! are then written.

mod assembler;
mod exchange;
mod spread;
mod tensor;
mod translate;
mod vectors;

use crate::decode::{File, Role, roles};
use crate::program::{Flow, Ins, Lanes, OPERANDS, Op, Program, Slot};
use crate::warp::registers::{FULL, LANES, Longs, Registers, Words};
use halyard_sim_memory::Arena;
use memmap2::{Mmap, MmapMut};
use std::collections::HashMap;
use translate::{Fate, Translator};
use vectors::Name;

/// Words, longs, predicates and parameters of a warp, and the lanes that take part.
#[cfg(target_arch = "x86_64")]
type Entry = unsafe extern "sysv64" fn(*mut Words, *mut Longs, *mut u32, *const u8, u32);
/// Elsewhere nothing is compiled.
#[cfg(not(target_arch = "x86_64"))]
type Entry = unsafe extern "C" fn(*mut Words, *mut Longs, *mut u32, *const u8, u32);

/// A shorter stretch is not worth the call.
const SHORTEST: usize = 3;

/// The stretches of a program.
#[derive(Debug)]
pub(crate) struct Compiled {
    code: Mmap,
    /// For each instruction, the stretch that begins there.
    stretches: Vec<Stretch>,
    /// For each load, the code that puts into registers what it brings.
    spreads: Vec<Spread>,
}

/// Where a stretch is in the code.
#[derive(Clone, Copy, Debug, Default)]
struct Stretch {
    /// For all lanes.
    whole: u32,
    /// For those of a mask.
    part: u32,
    /// How many instructions it has: 0 for none, and for an instruction of all lanes together.
    len: u32,
}

/// Where the code is that spreads a load.
#[derive(Clone, Copy, Debug, Default)]
struct Spread {
    /// For all lanes.
    whole: u32,
    /// For those of a mask.
    part: u32,
    /// Words a lane; 0 where there is no such code.
    words: u8,
}

impl Compiled {
    /// Compiles what can be; nothing if this processor or its system lets no such code run.
    pub(crate) fn new(program: &Program) -> Option<Self> {
        if !cfg!(target_arch = "x86_64") || !crate::warp::has_avx512() {
            return None;
        }
        let constants = program.word_constants.iter().copied().collect();
        // Nothing begins at 0, which says that there is none.
        let mut code = vec![0xcc; 64];
        let mut stretches = vec![Stretch::default(); program.code.len()];
        for (first, len) in find(program, &constants) {
            let mut place = |whole| {
                let stretch = &program.code[first..first + len];
                append(&mut code, &translated(program, stretch, whole, &constants)?)
            };
            stretches[first] =
                Stretch { whole: place(true)?, part: place(false)?, len: len as u32 };
        }
        for (at, ins) in program.code.iter().enumerate() {
            let together = match ins.op {
                Op::Mma(op) => tensor::mma(op, &ins.o),
                Op::Lanes(Lanes::ShuffleXor) => exchange::butterfly(&ins.o, &constants),
                _ => None,
            };
            if let Some(together) = together.filter(|_| !program.hazards.watches(at)) {
                let whole = append(&mut code, &together)?;
                stretches[at] = Stretch { whole, part: 0, len: 0 };
            }
        }
        let mut spreads = vec![Spread::default(); program.code.len()];
        for (ins, spread) in program.code.iter().zip(&mut spreads) {
            if let Op::Load(a) = ins.op
                && let Some(whole) = spread::load(a, &ins.o, true)
                && let Some(part) = spread::load(a, &ins.o, false)
            {
                let (whole, part) = (append(&mut code, &whole)?, append(&mut code, &part)?);
                *spread = Spread { whole, part, words: a.count };
            }
        }
        let mut memory = MmapMut::map_anon(code.len().max(1)).ok()?;
        memory[..code.len()].copy_from_slice(&code);
        Some(Self { code: memory.make_exec().ok()?, stretches, spreads })
    }

    /// How many instructions the stretch that begins at `pc` has; 0 if none does.
    #[inline(always)]
    pub(crate) fn len(&self, pc: u32) -> u32 {
        self.stretches[pc as usize].len
    }

    /// Whether `pc` is an instruction of all lanes together that was compiled.
    #[inline(always)]
    pub(crate) fn is_together(&self, pc: u32) -> bool {
        let stretch = self.stretches[pc as usize];
        stretch.len == 0 && stretch.whole != 0
    }

    /// Executes what begins at `pc` for the lanes `m` of a warp of the program that this was made of, launched with `params`.
    #[inline(always)]
    pub(crate) fn run(&self, pc: u32, r: &mut Registers, params: &[u8], m: u32) {
        let stretch = self.stretches[pc as usize];
        let entry = self.entry(if m == FULL { stretch.whole } else { stretch.part });
        let (words, longs) = (r.words.as_mut_ptr(), r.longs.as_mut_ptr());
        let predicates = r.predicates.as_mut_ptr();
        // SAFETY: the code uses slots that the program's instructions name, all of which a warp of the program has, and parameters up to its
        // `param_bytes`, which a launch has (checked when `Env` gets this).
        unsafe { entry(words, longs, predicates, params.as_ptr(), m) };
    }

    /// Puts into registers what the load at `pc` brings for all lanes, which lies in `memory` from `at`; says whether there is code for that.
    #[inline(always)]
    pub(crate) fn spread(&self, pc: u32, r: &mut Registers, memory: &Arena, at: usize) -> bool {
        let spread = self.spreads[pc as usize];
        let bytes: *const u8 = match spread.words {
            2 => memory.pointer_to::<256>(at).cast(),
            4 => memory.pointer_to::<512>(at).cast(),
            _ => return false,
        };
        self.put(spread.whole, r, bytes, FULL);
        true
    }

    /// The same for the lanes `m`, of which what each loads lies in `buffer`, lane after lane.
    #[inline(always)]
    pub(crate) fn spread_buffer(&self, pc: u32, r: &mut Registers, buffer: &[u8], m: u32) -> bool {
        let spread = self.spreads[pc as usize];
        if spread.words == 0 || buffer.len() < usize::from(spread.words) * 4 * LANES {
            return false;
        }
        self.put(if m == FULL { spread.whole } else { spread.part }, r, buffer.as_ptr(), m);
        true
    }

    /// Executes code that spreads `bytes`, of which there are as many as it reads.
    #[inline(always)]
    fn put(&self, offset: u32, r: &mut Registers, bytes: *const u8, m: u32) {
        let entry = self.entry(offset);
        let words = r.words.as_mut_ptr();
        let numbers = (&raw const spread::TABLE).cast_mut().cast();
        // SAFETY: the code reads as many bytes where parameters would be as a load of all lanes brings, which its callers have looked for, and the
        // table where longs would be; it writes neither, but words that the load names, all of which a warp of the program has. It uses no
        // predicates.
        unsafe { entry(words, numbers, std::ptr::null_mut(), bytes, m) };
    }

    /// The code that begins at `offset`.
    #[inline(always)]
    fn entry(&self, offset: u32) -> Entry {
        let start = self.code[offset as usize..].as_ptr();
        // SAFETY: code begins at `offset` that `new` made with this signature, for the features that it checked; it stays mapped as long as `self`
        // lives.
        unsafe { std::mem::transmute::<*const u8, Entry>(start) }
    }
}

/// Appends a function to `code`, as far as the next begins on a cache line of its own; gives where it begins.
fn append(code: &mut Vec<u8>, function: &[u8]) -> Option<u32> {
    let offset = u32::try_from(code.len()).ok()?;
    code.extend(function);
    code.resize(code.len().next_multiple_of(64), 0xcc);
    Some(offset)
}

/// Where stretches begin, and their lengths.
fn find(program: &Program, constants: &HashMap<Slot, u32>) -> Vec<(usize, usize)> {
    let code = &program.code;
    let mut entered = vec![false; code.len() + 1];
    for ins in code.iter().filter(|ins| ins.op == Op::Flow(Flow::Branch)) {
        entered[ins.imm as usize] = true;
    }
    let mut found = Vec::new();
    let mut first = 0;
    while first < code.len() {
        let mut trial = Translator::new(true, constants, program.param_bytes);
        let fits = |(at, ins): &(usize, &Ins)| {
            let begins = *at == first || !entered[*at];
            let free = ins.plain && !program.hazards.watches(*at);
            begins && free && trial.add(ins, &[Fate::Kept; OPERANDS]).is_some()
        };
        let len = code.iter().enumerate().skip(first).take_while(fits).count();
        if len >= SHORTEST {
            found.push((first, len));
        }
        first += len.max(1);
    }
    found
}

/// The machine code of a stretch, all of which has a translation.
fn translated(
    program: &Program,
    code: &[Ins],
    whole: bool,
    constants: &HashMap<Slot, u32>,
) -> Option<Vec<u8>> {
    let mut translator = Translator::new(whole, constants, program.param_bytes);
    for (ins, fates) in code.iter().zip(fates(code)) {
        translator.add(ins, &fates)?;
        translator.forget(&dead(ins, &fates));
    }
    Some(translator.finish())
}

/// A place that an instruction names: which file's register, and whether it writes it.
fn places(ins: &Ins) -> impl Iterator<Item = (usize, File, bool)> {
    let role = |(at, role)| match role {
        Role::Read(file) => Some((at, file, false)),
        Role::Write(file) => Some((at, file, true)),
        Role::Unused => None,
    };
    roles(ins.op).into_iter().enumerate().filter_map(role)
}

/// What becomes of the values that each instruction of a stretch names.
fn fates(code: &[Ins]) -> Vec<[Fate; OPERANDS]> {
    let mut next: HashMap<(File, Slot), Fate> = HashMap::new();
    let mut all = vec![[Fate::Kept; OPERANDS]; code.len()];
    for (ins, fates) in code.iter().zip(&mut all).rev() {
        let of = |at: usize, file| (file, ins.o[at]);
        for (at, file, _) in places(ins).filter(|place| place.2) {
            fates[at] = next.get(&of(at, file)).copied().unwrap_or(Fate::Kept);
        }
        for (at, file, _) in places(ins).filter(|place| place.2) {
            next.insert(of(at, file), Fate::Overwritten);
        }
        for (at, file, _) in places(ins).filter(|place| !place.2) {
            fates[at] = next.get(&of(at, file)).copied().unwrap_or(Fate::Kept);
        }
        for (at, file, _) in places(ins).filter(|place| !place.2) {
            next.insert(of(at, file), Fate::Read);
        }
    }
    all
}

/// Values that nobody needs behind `ins`.
fn dead(ins: &Ins, fates: &[Fate; OPERANDS]) -> Vec<Name> {
    let written = |file: File, slot: Slot| {
        places(ins).any(|(at, other, writes)| writes && other == file && ins.o[at] == slot)
    };
    places(ins)
        .filter(|(at, file, writes)| {
            fates[*at] == Fate::Overwritten && (*writes || !written(*file, ins.o[*at]))
        })
        .flat_map(|(at, file, _)| match file {
            File::Word => vec![Name::Word(ins.o[at])],
            File::Long => vec![Name::Low(ins.o[at]), Name::High(ins.o[at])],
            File::Predicate => Vec::new(),
        })
        .collect()
}
