//! What a PTX module consists of. Names borrow from the text.

/// A whole PTX text.
#[derive(Clone, Debug, Default)]
pub struct Module<'a> {
    /// `.version`, as major and minor.
    pub version: (u32, u32),
    /// `.target`, such as `sm_80`.
    pub target: &'a str,
    /// Variables declared outside kernels.
    pub variables: Vec<Variable<'a>>,
    /// The `.entry` functions.
    pub kernels: Vec<Kernel<'a>>,
    /// The `.func` functions, and declarations of them.
    pub functions: Vec<Function<'a>>,
}

/// One `.entry`.
#[derive(Clone, Debug)]
pub struct Kernel<'a> {
    /// Its name.
    pub name: &'a str,
    /// The line of its `.entry`.
    pub line: u32,
    /// Parameters in order.
    pub params: Vec<Param<'a>>,
    /// What it declares about its launches.
    pub limits: Limits,
    /// Its body.
    pub body: Vec<Statement<'a>>,
}

/// One `.func`.
#[derive(Clone, Debug)]
pub struct Function<'a> {
    /// Its name.
    pub name: &'a str,
    /// The line of its `.func`.
    pub line: u32,
    /// What it gives back, in order.
    pub results: Vec<Param<'a>>,
    /// Parameters in order.
    pub params: Vec<Param<'a>>,
    /// Its body; `None` where it is only declared.
    pub body: Option<Vec<Statement<'a>>>,
}

/// Performance directives of a kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// `.maxntid`: at most so many threads a block, in each dimension.
    pub max_threads: Option<[u32; 3]>,
    /// `.reqntid`: exactly so many threads a block, in each dimension.
    pub required_threads: Option<[u32; 3]>,
    /// `.reqnctapercluster`: exactly so many blocks a cluster, in each dimension.
    pub required_cluster: Option<[u32; 3]>,
    /// `.minnctapersm`: blocks that should fit a multiprocessor.
    pub min_blocks: Option<u32>,
    /// `.maxnreg`: registers a thread.
    pub max_registers: Option<u32>,
}

/// One parameter of a kernel or function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Param<'a> {
    /// Its name.
    pub name: &'a str,
    /// Bytes that it takes.
    pub bytes: usize,
    /// Alignment in bytes.
    pub align: usize,
}

/// A variable in a state space.
#[derive(Clone, Debug)]
pub struct Variable<'a> {
    /// Its name.
    pub name: &'a str,
    /// The line of its declaration.
    pub line: u32,
    /// Where it lives.
    pub space: Space,
    /// `.extern`, `.visible`, ….
    pub linkage: Linkage,
    /// Type of an element.
    pub ty: ScalarType,
    /// Number of elements; `None` for an array without bounds (`[]`).
    pub count: Option<usize>,
    /// Alignment in bytes.
    pub align: usize,
    /// Initial elements, in order; missing ones are zero.
    pub init: Vec<Initial<'a>>,
}

impl Variable<'_> {
    /// Bytes that it takes; 0 for an array without bounds.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.count.unwrap_or(0).saturating_mul(self.ty.bytes())
    }
}

/// One element of an initialiser.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Initial<'a> {
    /// Its bits.
    Bits(u64),
    /// The address of a variable.
    Symbol(&'a str),
}

/// Who sees a name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Linkage {
    /// The module alone.
    #[default]
    Local,
    /// `.visible`.
    Visible,
    /// `.extern`: defined elsewhere; for shared memory, sized by the launch.
    Extern,
    /// `.weak` or `.common`.
    Weak,
}

/// A state space.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Space {
    /// `.global`
    Global,
    /// `.shared`
    Shared,
    /// `.local`
    Local,
    /// `.const`
    Const,
    /// `.param`
    Param,
}

/// One statement of a body.
#[derive(Clone, Debug)]
pub enum Statement<'a> {
    /// `name:`, and its line.
    Label(&'a str, u32),
    /// `.reg`.
    Reg(RegDecl<'a>),
    /// A variable of the body's scope.
    Variable(Variable<'a>),
    /// `{ … }`: a scope of names.
    Block(Vec<Statement<'a>>),
    /// An instruction.
    Instruction(Instruction<'a>),
    /// `name: .branchtargets …;`: the labels that a `brx.idx` with this name may go to.
    Targets(&'a str, Vec<&'a str>),
}

/// `.reg .ty name` or `.reg .ty name<count>`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegDecl<'a> {
    /// The name, or what the names begin with.
    pub name: &'a str,
    /// With `Some(n)`, the names are `name0` to `name{n-1}`.
    pub count: Option<u32>,
    /// Type of the registers.
    pub ty: ScalarType,
    /// Line of the declaration.
    pub line: u32,
}

/// `@p` or `@!p`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Guard<'a> {
    /// The predicate register.
    pub predicate: &'a str,
    /// Executed where the predicate is false.
    pub negated: bool,
}

/// An instruction.
#[derive(Clone, Debug)]
pub struct Instruction<'a> {
    /// Its line.
    pub line: u32,
    /// Where it is executed, if not everywhere.
    pub guard: Option<Guard<'a>>,
    /// The whole mnemonic, such as `ld.global.v4.u32`.
    pub mnemonic: &'a str,
    /// The operands in order.
    pub operands: Vec<Operand<'a>>,
}

/// One operand.
#[derive(Clone, Debug, PartialEq)]
pub enum Operand<'a> {
    /// A register, special register, variable or label.
    Name(&'a str),
    /// An integer constant in two's complement.
    Int(u64),
    /// `0f…`: bits of an f32.
    F32(u32),
    /// `0d…` or a decimal fraction: bits of an f64.
    F64(u64),
    /// `_`: a result that nobody wants.
    Sink,
    /// `!%p`
    Not(&'a str),
    /// `%r|%p`
    Pair(Box<Operand<'a>>, Box<Operand<'a>>),
    /// `{a, b, …}`, or `(a, b, …)` of a call
    Vector(Vec<Operand<'a>>),
    /// `[…]`
    Address(Address<'a>),
}

/// `[base + offset]`, or `[base, {coordinates}]` of a tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct Address<'a> {
    /// A register or a variable; `None` for an absolute address.
    pub base: Option<&'a str>,
    /// Bytes to add.
    pub offset: i64,
    /// Coordinates in a tensor.
    pub coordinates: Vec<Operand<'a>>,
}

macro_rules! scalar_types {
    ($($variant:ident $name:literal $bytes:literal)*) => {
        /// A type of the instruction set.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum ScalarType { $(#[doc = concat!("`.", $name, "`")] $variant),* }

        impl ScalarType {
            /// The type called `name` (without the dot).
            #[must_use]
            pub fn parse(name: &str) -> Option<Self> {
                match name { $($name => Some(Self::$variant),)* _ => None }
            }

            /// Its name without the dot.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),* }
            }

            /// Bytes of an element; 1 for a predicate.
            #[must_use]
            pub fn bytes(self) -> usize {
                match self { $(Self::$variant => $bytes),* }
            }
        }
    };
}

scalar_types! {
    Pred "pred" 1
    B8 "b8" 1 U8 "u8" 1 S8 "s8" 1
    B16 "b16" 2 U16 "u16" 2 S16 "s16" 2 F16 "f16" 2 Bf16 "bf16" 2 E4m3x2 "e4m3x2" 2 E5m2x2 "e5m2x2" 2
    B32 "b32" 4 U32 "u32" 4 S32 "s32" 4 F32 "f32" 4 F16x2 "f16x2" 4 Bf16x2 "bf16x2" 4 Tf32 "tf32" 4
    B64 "b64" 8 U64 "u64" 8 S64 "s64" 8 F64 "f64" 8
    B128 "b128" 16
    E4m3 "e4m3" 1 E5m2 "e5m2" 1
}
