"""Compiles the kernels below with Triton 3.9.0, without a GPU, to NAME.ARCH.ptx and launch.toml in this folder.

    python3 -m venv /tmp/triton && /tmp/triton/bin/pip install triton==3.9.0
    /tmp/triton/bin/python make.py

tests/triton.rs executes them. The kernels are ours, the PTX is Triton's: what no author of the simulator wrote. A parameter that
is a pointer or a multiple of 16 is declared so, since Triton copies in pieces of 16 bytes (cp.async, v4 loads) only then.
"""

import os
import pathlib
import re

os.environ["TRITON_DISABLE_LINE_INFO"] = "1"
os.environ["TRITON_DEFAULT_FP_FUSION"] = "1"

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

VERSION = "3.9.0"
HERE = pathlib.Path(__file__).parent


@triton.jit
def vector_add(out, a, b, count, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    total = tl.load(a + at, mask=inside) + tl.load(b + at, mask=inside)
    tl.store(out + at, total, mask=inside)


@triton.jit
def softmax(out, x, width, BLOCK: tl.constexpr):
    """A program a row, the row in registers."""
    column = tl.arange(0, BLOCK)
    inside = column < width
    start = tl.program_id(0) * width
    row = tl.load(x + start + column, mask=inside, other=float("-inf"))
    weight = tl.exp(row - tl.max(row, 0))
    tl.store(out + start + column, weight / tl.sum(weight, 0), mask=inside)


@triton.jit
def rms_norm(out, x, scale, epsilon, width, BLOCK: tl.constexpr):
    """A program a row, in two passes of BLOCK elements a step."""
    start = tl.program_id(0) * width
    squares = tl.zeros([BLOCK], tl.float32)
    for first in range(0, width, BLOCK):
        column = first + tl.arange(0, BLOCK)
        value = tl.load(x + start + column, mask=column < width, other=0.0).to(tl.float32)
        squares += value * value
    factor = tl.rsqrt(tl.sum(squares, 0) / width + epsilon)
    for first in range(0, width, BLOCK):
        column = first + tl.arange(0, BLOCK)
        inside = column < width
        value = tl.load(x + start + column, mask=inside, other=0.0).to(tl.float32)
        by = tl.load(scale + column, mask=inside, other=0.0).to(tl.float32)
        tl.store(out + start + column, (value * factor * by).to(out.dtype.element_ty), mask=inside)


@triton.jit
def matmul(out, a, b, m, n, k, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr):
    """out[m, n] = a[m, k] b[k, n], all row-major: b's fragments are transposed when they are loaded."""
    row = tl.program_id(1) * M + tl.arange(0, M)[:, None]
    column = tl.program_id(0) * N + tl.arange(0, N)[None, :]
    depth = tl.arange(0, K)
    total = tl.zeros([M, N], tl.float32)
    for first in range(0, k, K):
        left = first + depth[None, :]
        top = first + depth[:, None]
        x = tl.load(a + row * k + left, mask=(row < m) & (left < k), other=0.0)
        y = tl.load(b + top * n + column, mask=(top < k) & (column < n), other=0.0)
        total = tl.dot(x, y, total)
    tl.store(out + row * n + column, total.to(out.dtype.element_ty), mask=(row < m) & (column < n))


@triton.jit
def matmul_of_descriptors(out, a, b, m, n, k, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr):
    """The same of bf16 with tensor maps that the kernel makes itself, in scratch memory."""
    x_map = tl.make_tensor_descriptor(a, [m, k], [k, 1], [M, K])
    y_map = tl.make_tensor_descriptor(b, [k, n], [n, 1], [K, N])
    out_map = tl.make_tensor_descriptor(out, [m, n], [n, 1], [M, N])
    row = tl.program_id(1) * M
    column = tl.program_id(0) * N
    total = tl.zeros([M, N], tl.float32)
    for first in range(0, k, K):
        total = tl.dot(x_map.load([row, first]), y_map.load([first, column]), total)
    out_map.store([row, column], total.to(tl.bfloat16))


@triton.jit
def matmul_of_maps(out, a, b, m, n, k, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr):
    """The same with tensor maps that the host makes, which are parameters."""
    row = tl.program_id(1) * M
    column = tl.program_id(0) * N
    total = tl.zeros([M, N], tl.float32)
    for first in range(0, k, K):
        total = tl.dot(a.load([row, first]), b.load([first, column]), total)
    out.store([row, column], total.to(out.dtype))


@triton.jit
def linear(out, a, b, m, n, k, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr):
    """out[m, n] = a[m, k] b[n, k] transposed, for k a multiple of K. For wgmma, M must be at least 64."""
    row = tl.program_id(1) * M + tl.arange(0, M)[:, None]
    column = tl.program_id(0) * N + tl.arange(0, N)[None, :]
    depth = tl.arange(0, K)
    total = tl.zeros([M, N], out.dtype.element_ty)
    for first in range(0, k, K):
        x = tl.load(a + row * k + first + depth[None, :], mask=row < m, other=0.0)
        y = tl.load(b + column * k + first + depth[:, None], mask=column < n, other=0.0)
        total = tl.dot(x, y, total, out_dtype=out.dtype.element_ty)
    tl.store(out + row * n + column, total, mask=(row < m) & (column < n))


@triton.jit
def attention(out, q, k, v, tokens, scale, M: tl.constexpr, N: tl.constexpr, D: tl.constexpr):
    """Causal attention of a head a program of axis 1, q, k, v and out [heads, tokens, D], with a running softmax."""
    start = tl.program_id(1) * tokens * D
    token = tl.program_id(0) * M + tl.arange(0, M)
    lane = tl.arange(0, D)
    query = tl.load(q + start + token[:, None] * D + lane[None, :], mask=token[:, None] < tokens, other=0.0)
    highest = tl.full([M], float("-inf"), tl.float32)
    weights = tl.zeros([M], tl.float32)
    total = tl.zeros([M, D], tl.float32)
    for first in range(0, tl.minimum((tl.program_id(0) + 1) * M, tokens), N):
        key = first + tl.arange(0, N)
        inside = key < tokens
        keys = tl.load(k + start + key[None, :] * D + lane[:, None], mask=inside[None, :], other=0.0)
        score = tl.dot(query, keys) * (scale * 1.4426950408889634)
        score = tl.where((key[None, :] <= token[:, None]) & inside[None, :], score, float("-inf"))
        higher = tl.maximum(highest, tl.max(score, 1))
        shrink = tl.exp2(highest - higher)
        weight = tl.exp2(score - higher[:, None])
        weights = weights * shrink + tl.sum(weight, 1)
        values = tl.load(v + start + key[:, None] * D + lane[None, :], mask=inside[:, None], other=0.0)
        total = tl.dot(weight.to(values.dtype), values, total * shrink[:, None])
        highest = higher
    result = (total / weights[:, None]).to(out.dtype.element_ty)
    tl.store(out + start + token[:, None] * D + lane[None, :], result, mask=token[:, None] < tokens)


@triton.jit
def histogram(counts, values, count, BINS: tl.constexpr, BLOCK: tl.constexpr):
    """Counts in shared memory, then adds a program's counts to all others'. Values are from 0 to BINS - 1."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    here = tl.histogram(tl.load(values + at, mask=inside, other=0), BINS, mask=inside)
    tl.atomic_add(counts + tl.arange(0, BINS), here)


@triton.jit
def argmax(places, highest, x, width, BLOCK: tl.constexpr):
    """The first place of a row's highest value, and the value."""
    column = tl.arange(0, BLOCK)
    row = tl.load(x + tl.program_id(0) * width + column, mask=column < width, other=float("-inf"))
    value, place = tl.max(row, 0, return_indices=True)
    tl.store(places + tl.program_id(0), place)
    tl.store(highest + tl.program_id(0), value)


@triton.jit
def sort_and_sum(sorted_rows, sums, x, BLOCK: tl.constexpr):
    """A row of BLOCK integers in ascending order, and its running sums."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    row = tl.load(x + at)
    tl.store(sorted_rows + at, tl.sort(row))
    tl.store(sums + at, tl.cumsum(row, 0))


ALL = (80, 89, 90)
HOPPER = (90,)
F32, BF16, I32 = "*fp32", "*bf16", "*i32"
COUNT, SIXTEENS = "i32", "i32 of 16s"

# Type, architectures that multiply it, parameters.
LINEAR = [
    ("int8", ALL, I32, "*i8"),
    ("float16", ALL, F32, "*fp16"),
    ("tf32", ALL, F32, F32),
    ("e4m3", (89, 90), F32, "*fp8e4nv"),
    ("e5m2", ALL, F32, "*fp8e5"),
]


# The types again, and how deep and wide a tile is that is multiplied by wgmma.
WIDE = [
    ("int8", I32, "*i8", {"M": 64, "N": 64, "K": 64}),
    ("float16", F32, "*fp16", {"M": 128, "N": 64, "K": 32}),
    ("tf32", F32, F32, {"M": 64, "N": 32, "K": 32}),
    ("e4m3", F32, "*fp8e4nv", {"M": 64, "N": 128, "K": 64}),
    ("e5m2", F32, "*fp8e5", {"M": 64, "N": 64, "K": 32}),
]


def linear_of(name, archs, out, x):
    params = [out, x, x, COUNT, COUNT, SIXTEENS]
    return f"linear_{name}", linear, archs, params, {"M": 32, "N": 32, "K": 64}, {"num_stages": 2}


def wide_linear_of(name, out, x, tile):
    params = [out, x, x, COUNT, COUNT, SIXTEENS]
    return f"linear_wide_{name}", linear, HOPPER, params, tile, {"num_stages": 3}


def tensor_map(*tile):
    return f"tensordesc<bf16[{tile[0]},{tile[1]}]>"


# Name, kernel, architectures, parameters in order, constants, options.
KERNELS = [
    ("vector_add", vector_add, ALL, [F32, F32, F32, COUNT], {"BLOCK": 256}, {}),
    ("softmax", softmax, ALL, [F32, F32, COUNT], {"BLOCK": 256}, {}),
    ("rms_norm", rms_norm, ALL, [BF16, BF16, BF16, "fp32", COUNT], {"BLOCK": 512}, {}),
    ("matmul", matmul, ALL, [BF16, BF16, BF16, COUNT, SIXTEENS, SIXTEENS], {"M": 64, "N": 64, "K": 32}, {"num_stages": 3}),
    ("matmul_wide", matmul, HOPPER, [BF16, BF16, BF16, COUNT, SIXTEENS, SIXTEENS], {"M": 128, "N": 128, "K": 64}, {"num_stages": 3, "num_warps": 8}),
    ("matmul_of_descriptors", matmul_of_descriptors, HOPPER, [BF16, BF16, BF16, COUNT, SIXTEENS, SIXTEENS], {"M": 64, "N": 64, "K": 64}, {"num_stages": 3}),
    ("matmul_of_maps", matmul_of_maps, HOPPER, [tensor_map(64, 128), tensor_map(64, 32), tensor_map(32, 128), COUNT, SIXTEENS, SIXTEENS], {"M": 64, "N": 128, "K": 32}, {"num_stages": 4}),
    *(linear_of(*types) for types in LINEAR),
    *(wide_linear_of(*types) for types in WIDE),
    ("attention", attention, ALL, [BF16, BF16, BF16, BF16, COUNT, "fp32"], {"M": 64, "N": 32, "D": 64}, {"num_stages": 2}),
    ("histogram", histogram, ALL, [I32, I32, COUNT], {"BINS": 64, "BLOCK": 512}, {}),
    ("argmax", argmax, ALL, [I32, F32, F32, COUNT], {"BLOCK": 256}, {}),
    ("sort_and_sum", sort_and_sum, ALL, [I32, I32, I32], {"BLOCK": 256}, {}),
]


def compile_kernel(kernel, arch, params, constants, options):
    names = kernel.arg_names
    types = {name: param.split()[0] for name, param in zip(names, params)}
    types |= dict.fromkeys(constants, "constexpr")
    assert list(types) == names, f"{kernel.__name__}: parameters {names}"
    sixteens = {
        (at,): [["tt.divisibility", 16]] for at, param in enumerate(params) if param[0] == "*" or param == SIXTEENS
    }
    source = ASTSource(kernel, types, constants, sixteens)
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options={"num_warps": 4, **options})


def bare(ptx):
    """Without comments and blank lines."""
    lines = (re.sub(r"//.*", "", line).rstrip() for line in ptx.splitlines())
    return "\n".join(line for line in lines if line) + "\n"


def maps_of(meta):
    """The extents of the tile of each tensor map, the outer first, and its swizzle mode."""
    return [[*of["block_size"], of["swizzle"]] for of in meta.tensordesc_meta]


def main():
    assert triton.__version__ == VERSION, f"Triton {triton.__version__}: the files are of {VERSION}"
    tables = [f"# Made by make.py with Triton {VERSION}: the constants of each kernel, and what a launch of it needs.\n"]
    for name, kernel, archs, params, constants, options in KERNELS:
        tables.append(f"[{name}]\nentry = \"{kernel.__name__}\"\n" + "".join(f"{key} = {value}\n" for key, value in constants.items()))
        for arch in archs:
            compiled = compile_kernel(kernel, arch, params, constants, options)
            meta = compiled.metadata
            assert meta.profile_scratch_size == 0, f"{name} wants memory of a profiler"
            head = f"// {name} of make.py, compiled by Triton {VERSION} for sm_{arch}.\n"
            (HERE / f"{name}.sm_{arch}.ptx").write_text(head + bare(compiled.asm["ptx"]))
            tables.append(
                f"[{name}.sm_{arch}]\n"
                f"threads = {32 * meta.num_warps}\n"
                f"shared_bytes = {meta.shared}\n"
                + (f"maps = {maps_of(meta)}\n" if meta.tensordesc_meta else "")
                + (f"scratch_bytes = {meta.global_scratch_size}\n" if meta.global_scratch_size else "")
            )
    (HERE / "launch.toml").write_text("\n".join(tables))


if __name__ == "__main__":
    main()
