//! Encodes the few instructions of AVX-512 that stretches are made of, as Intel's manual of the instruction set (volume 2) has them.
//!
//! Vectors are 512 bits wide: 16 lanes of a 32-bit register, 8 of a 64-bit one. Addresses are a base and a displacement of 32 bits.

/// Registers that hold where a warp's files and the parameters begin, by the calling convention of System V.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Base {
    Words = 7,
    Longs = 6,
    Predicates = 2,
    Params = 1,
}

/// Where a source is, or a result goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// A vector register.
    Vector(u8),
    Memory(Base, i32),
}

/// A vector instruction: its table of opcodes (1 to 3: `0F`, `0F38`, `0F3A`), prefix (0 none, 1 `66`, 2 `F3`, 3 `F2`), the bit W, and opcode.
#[derive(Clone, Copy, Debug)]
pub(super) struct Code {
    table: u8,
    prefix: u8,
    w: u8,
    opcode: u8,
}

const fn code(table: u8, prefix: u8, w: u8, opcode: u8) -> Code {
    Code { table, prefix, w, opcode }
}

pub(super) const LOAD: Code = code(1, 2, 0, 0x6f);
pub(super) const STORE: Code = code(1, 2, 0, 0x7f);
pub(super) const ADD32: Code = code(1, 1, 0, 0xfe);
pub(super) const SUB32: Code = code(1, 1, 0, 0xfa);
pub(super) const MUL32: Code = code(2, 1, 0, 0x40);
pub(super) const AND: Code = code(1, 1, 0, 0xdb);
pub(super) const OR: Code = code(1, 1, 0, 0xeb);
pub(super) const XOR: Code = code(1, 1, 0, 0xef);
pub(super) const ADD64: Code = code(1, 1, 1, 0xd4);
pub(super) const SUB64: Code = code(1, 1, 1, 0xfb);
pub(super) const MUL64: Code = code(2, 1, 1, 0x40);
pub(super) const MIN_S32: Code = code(2, 1, 0, 0x39);
pub(super) const MIN_U32: Code = code(2, 1, 0, 0x3b);
pub(super) const MAX_S32: Code = code(2, 1, 0, 0x3d);
pub(super) const MAX_U32: Code = code(2, 1, 0, 0x3f);
pub(super) const MIN_S64: Code = code(2, 1, 1, 0x39);
pub(super) const MIN_U64: Code = code(2, 1, 1, 0x3b);
pub(super) const MAX_S64: Code = code(2, 1, 1, 0x3d);
pub(super) const MAX_U64: Code = code(2, 1, 1, 0x3f);
pub(super) const SHL32: Code = code(2, 1, 0, 0x47);
pub(super) const SHR_U32: Code = code(2, 1, 0, 0x45);
pub(super) const SHR_S32: Code = code(2, 1, 0, 0x46);
pub(super) const SHL64: Code = code(2, 1, 1, 0x47);
pub(super) const SHR_U64: Code = code(2, 1, 1, 0x45);
pub(super) const SHR_S64: Code = code(2, 1, 1, 0x46);
/// The product of the lower halves of each 64 bits.
pub(super) const MUL_WIDE_U: Code = code(1, 1, 1, 0xf4);
pub(super) const MUL_WIDE_S: Code = code(2, 1, 1, 0x28);
/// Any function of three bits; the result replaces the first.
pub(super) const TERNARY: Code = code(3, 1, 0, 0x25);
pub(super) const ADD_F32: Code = code(1, 0, 0, 0x58);
pub(super) const SUB_F32: Code = code(1, 0, 0, 0x5c);
pub(super) const MUL_F32: Code = code(1, 0, 0, 0x59);
pub(super) const DIV_F32: Code = code(1, 0, 0, 0x5e);
pub(super) const MIN_F32: Code = code(1, 0, 0, 0x5d);
pub(super) const MAX_F32: Code = code(1, 0, 0, 0x5f);
pub(super) const SQRT_F32: Code = code(1, 0, 0, 0x51);
/// The result replaces the addend.
pub(super) const FMA231_F32: Code = code(2, 1, 0, 0xb8);
/// The result replaces a factor; the last source is the addend.
pub(super) const FMA213_F32: Code = code(2, 1, 0, 0xa8);
pub(super) const COMPARE_S32: Code = code(3, 1, 0, 0x1f);
pub(super) const COMPARE_U32: Code = code(3, 1, 0, 0x1e);
pub(super) const COMPARE_S64: Code = code(3, 1, 1, 0x1f);
pub(super) const COMPARE_U64: Code = code(3, 1, 1, 0x1e);
pub(super) const COMPARE_F32: Code = code(1, 0, 0, 0xc2);
/// The last source where the mask has a one, else the first.
pub(super) const BLEND32: Code = code(2, 1, 0, 0x64);
pub(super) const BLEND64: Code = code(2, 1, 1, 0x64);
/// Half a vector of 32-bit values as a vector of 64-bit ones.
pub(super) const WIDEN_U: Code = code(2, 1, 0, 0x35);
pub(super) const WIDEN_S: Code = code(2, 1, 0, 0x25);
/// The reverse; the result is the last operand, as it is of the next two.
pub(super) const NARROW_64: Code = code(2, 2, 0, 0x35);
pub(super) const NARROW_32: Code = code(2, 2, 0, 0x33);
pub(super) const UPPER_HALF: Code = code(3, 1, 1, 0x3b);
pub(super) const JOIN_HALVES: Code = code(3, 1, 1, 0x3a);
/// Half a vector of 16-bit values as a vector of 32-bit ones.
pub(super) const WIDEN_16: Code = code(2, 1, 0, 0x33);
pub(super) const F16_TO_F32: Code = code(2, 1, 0, 0x13);
/// The result is the last operand.
pub(super) const F32_TO_F16: Code = code(3, 1, 0, 0x1d);
pub(super) const S32_TO_F32: Code = code(1, 0, 0, 0x5b);
pub(super) const U32_TO_F32: Code = code(1, 3, 0, 0x7a);
pub(super) const SPREAD32: Code = code(2, 1, 0, 0x58);
pub(super) const SPREAD64: Code = code(2, 1, 1, 0x59);
/// Each quarter's lanes by a pattern in the instruction.
pub(super) const SHUFFLE: Code = code(1, 1, 0, 0x70);
/// Lanes of two vectors, by the numbers that the result's register has.
pub(super) const PERMUTE: Code = code(2, 1, 0, 0x76);
/// Quarters by a pattern in the instruction.
pub(super) const SHUFFLE_QUARTERS: Code = code(3, 1, 0, 0x43);
/// Of a general register.
const SPREAD_GENERAL: Code = code(2, 1, 0, 0x7c);
const SHIFT_BY_CONSTANT32: Code = code(1, 1, 0, 0x72);
const SHIFT_BY_CONSTANT64: Code = code(1, 1, 1, 0x73);

/// The mask register of the 16 lanes that take part, and of the last eight of them.
pub(super) const TAKEN: u8 = 7;
pub(super) const TAKEN_HIGH: u8 = 6;

/// Takes the lanes of the next half from r8: `kmovw TAKEN, r8d; shr r8d, 16`.
const TAKE_HALF: [u8; 9] = [0xc4, 0xc1, 0x78, 0x92, 0xc0 | TAKEN << 3, 0x41, 0xc1, 0xe8, 16];

/// Which way a shift by a constant goes: the digit of its opcode.
#[derive(Clone, Copy, Debug)]
pub(super) enum Way {
    RightUnsigned = 2,
    RightSigned = 4,
    Left = 6,
}

/// What masks are combined by: the opcode.
#[derive(Clone, Copy, Debug)]
pub(super) enum MaskOp {
    And = 0x41,
    /// The second but where the first is.
    AndNot = 0x42,
    Or = 0x45,
    Same = 0x46,
    Xor = 0x47,
}

/// Machine code under way.
#[derive(Debug, Default)]
pub(super) struct Assembler {
    pub(super) bytes: Vec<u8>,
}

impl Assembler {
    /// `to = a op b`. Where an instruction has one source, that is `b`, and `a` is 0.
    pub(super) fn op(&mut self, code: Code, to: u8, a: u8, b: Place) {
        self.evex(code, (to, a, b), 0);
    }

    /// The same with a last operand in the instruction.
    pub(super) fn op_with(&mut self, code: Code, to: u8, a: u8, b: Place, last: u8) {
        self.evex(code, (to, a, b), 0);
        self.bytes.push(last);
    }

    /// `to = mask ? b : a`, for a blend.
    pub(super) fn op_masked(&mut self, code: Code, to: u8, a: u8, b: Place, mask: u8) {
        self.evex(code, (to, a, b), mask);
    }

    /// Shifts 32-bit lanes by a constant.
    pub(super) fn shift32(&mut self, way: Way, to: u8, from: u8, by: u8) {
        self.op_with(SHIFT_BY_CONSTANT32, way as u8, to, Place::Vector(from), by);
    }

    /// Shifts 64-bit lanes by a constant: left, or right with zeros.
    pub(super) fn shift64(&mut self, way: Way, to: u8, from: u8, by: u8) {
        self.op_with(SHIFT_BY_CONSTANT64, way as u8, to, Place::Vector(from), by);
    }

    /// Sets every 32-bit lane.
    pub(super) fn constant(&mut self, to: u8, value: u32) {
        // mov eax, value
        self.bytes.push(0xb8);
        self.bytes.extend(value.to_le_bytes());
        self.op(SPREAD_GENERAL, to, 0, Place::Vector(0));
    }

    /// Sets every four lanes.
    pub(super) fn quarters(&mut self, to: u8, lanes: [u32; 4]) {
        for (at, pair) in lanes.chunks_exact(2).enumerate() {
            // mov rax, pair
            self.bytes.extend([0x48, 0xb8]);
            pair.iter().for_each(|lane| self.bytes.extend(lane.to_le_bytes()));
            // vmovq xmm, rax; vpinsrq xmm, xmm, rax, 1, of xmm0
            self.bytes.extend(if at == 0 {
                [0xc4, 0xe1, 0xf9, 0x6e, 0xc0].to_vec()
            } else {
                [0xc4, 0xe3, 0xf9, 0x22, 0xc0, 1].to_vec()
            });
        }
        self.op_with(SHUFFLE_QUARTERS, to, 0, Place::Vector(0), 0);
    }

    /// Loads a mask of 16 lanes.
    pub(super) fn load_mask(&mut self, to: u8, displacement: i32) {
        self.bytes.extend([0xc5, 0xf8, 0x90]);
        self.memory(to, Base::Predicates, displacement);
    }

    pub(super) fn store_mask(&mut self, from: u8, displacement: i32) {
        self.bytes.extend([0xc5, 0xf8, 0x91]);
        self.memory(from, Base::Predicates, displacement);
    }

    pub(super) fn masks(&mut self, op: MaskOp, to: u8, a: u8, b: u8) {
        self.bytes.extend([0xc5, 0x84 | (!a & 15) << 3, op as u8, 0xc0 | to << 3 | b]);
    }

    pub(super) fn not_mask(&mut self, to: u8, from: u8) {
        self.bytes.extend([0xc5, 0xf8, 0x44, 0xc0 | to << 3 | from]);
    }

    /// Shifts a mask by 8 lanes: left, else right.
    pub(super) fn shift_mask(&mut self, left: bool, to: u8, from: u8) {
        let opcode = if left { 0x32 } else { 0x30 };
        self.bytes.extend([0xc4, 0xe3, 0xf9, opcode, 0xc0 | to << 3 | from, 8]);
    }

    /// Lanes that do not take part keep, in the mask that will be stored, what they have in memory.
    pub(super) fn keep_others(&mut self, mask: u8, displacement: i32) {
        const OTHER: u8 = 3;
        self.load_mask(OTHER, displacement);
        self.masks(MaskOp::AndNot, OTHER, TAKEN, OTHER);
        self.masks(MaskOp::And, mask, mask, TAKEN);
        self.masks(MaskOp::Or, mask, mask, OTHER);
    }

    /// From now on those lanes take part that the function's last argument has ones for: first of the lower half, then of the upper one.
    pub(super) fn take_half(&mut self) {
        self.bytes.extend(TAKE_HALF);
    }

    /// A function that does what was said.
    pub(super) fn once(mut self) -> Vec<u8> {
        // vzeroupper; ret
        self.bytes.extend([0xc5, 0xf8, 0x77, 0xc3]);
        self.bytes
    }

    /// A function that does `body` for either half of the lanes, of which those take part that its last argument, in r8, has ones for. `masks`
    /// are where it stores masks.
    pub(super) fn twice(body: &[u8], masks: &[i32]) -> Vec<u8> {
        // mov r9d, 2
        let mut bytes = vec![0x41, 0xb9, 2, 0, 0, 0];
        let first = bytes.len();
        bytes.extend(TAKE_HALF);
        // kshiftrw TAKEN_HIGH, TAKEN, 8
        bytes.extend([0xc4, 0xe3, 0xf9, 0x30, 0xc0 | TAKEN_HIGH << 3 | TAKEN, 8]);
        bytes.extend(body);
        // add rdi, 64; add rsi, 128; add rdx, 2; dec r9d
        bytes.extend([0x48, 0x83, 0xc7, 64]);
        bytes.extend([0x48, 0x81, 0xc6, 128, 0, 0, 0]);
        bytes.extend([0x48, 0x83, 0xc2, 2]);
        bytes.extend([0x41, 0xff, 0xc9]);
        // jnz first
        bytes.extend([0x0f, 0x85]);
        let back = first as i32 - (bytes.len() as i32 + 4);
        bytes.extend(back.to_le_bytes());
        masks.iter().for_each(|mask| bytes.extend(Self::joined(mask - 4)));
        // vzeroupper; ret
        bytes.extend([0xc5, 0xf8, 0x77, 0xc3]);
        bytes
    }

    /// Stores the halves of a mask once more, as one: whoever reads all of it would wait until both have left the processor.
    fn joined(displacement: i32) -> Vec<u8> {
        let [low, high] = [displacement, displacement + 2].map(i32::to_le_bytes);
        // movzx eax, word [rdx + low]; movzx ecx, word [rdx + high]; shl ecx, 16; or eax, ecx; mov [rdx + low], eax
        let parts: [&[u8]; 7] = [
            &[0x0f, 0xb7, 0x82],
            &low,
            &[0x0f, 0xb7, 0x8a],
            &high,
            &[0xc1, 0xe1, 16, 0x09, 0xc8],
            &[0x89, 0x82],
            &low,
        ];
        parts.concat()
    }

    fn evex(&mut self, code: Code, (reg, v, rm): (u8, u8, Place), mask: u8) {
        let inverted = |value: u8, bit: u8| !value >> bit & 1;
        // Two bits of the last operand, if it is a register, beside the three of the byte that names operands.
        let (x, b) = match rm {
            Place::Vector(rm) => (inverted(rm, 4), inverted(rm, 3)),
            Place::Memory(..) => (1, 1),
        };
        self.bytes.extend([
            0x62,
            inverted(reg, 3) << 7 | x << 6 | b << 5 | inverted(reg, 4) << 4 | code.table,
            code.w << 7 | (!v & 15) << 3 | 4 | code.prefix,
            0b10 << 5 | inverted(v, 4) << 3 | mask,
            code.opcode,
        ]);
        match rm {
            Place::Vector(rm) => self.bytes.push(0xc0 | (reg & 7) << 3 | rm & 7),
            Place::Memory(base, displacement) => self.memory(reg, base, displacement),
        }
    }

    fn memory(&mut self, reg: u8, base: Base, displacement: i32) {
        self.bytes.push(0x80 | (reg & 7) << 3 | base as u8);
        self.bytes.extend(displacement.to_le_bytes());
    }
}
