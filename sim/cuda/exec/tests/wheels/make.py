"""Compiles kernels of packages of PyPI, without a GPU, to ptx/NAME.ARCH.ptx.

    python3 -m venv /tmp/wheels && /tmp/wheels/bin/pip install --no-deps -r requirements.txt
    /tmp/wheels/bin/python make.py

main.rs executes them; SOURCES.md says whose the kernels are and under which licences. What differs from the text for the
architecture before in nothing but its target has no file of its own: that text is executed on the newer device, too.
"""

import ast
import ctypes
import importlib.metadata
import math
import os
import pathlib
import re
import site
import types

os.environ["NUMBA_CUDA_LOW_OCCUPANCY_WARNINGS"] = "0"

import numba.cuda
import numba.cuda.random
from numba.cuda import boolean, float32, float64, int32, int64, uint32, uint64
from numba.cuda.kernels.reduction import _gpu_reduce_factory

HERE = pathlib.Path(__file__).parent
PACKAGES = pathlib.Path(site.getsitepackages()[0])
PTX = HERE / "ptx"
ARCHS = (80, 89, 90)
WANTED = dict(line.split("==") for line in (HERE / "requirements.txt").read_text().split())


# --- NVRTC -----------------------------------------------------------------------------------------------------------


class Nvrtc:
    """The functions of the wheel's library that a compilation needs."""

    def __init__(self):
        folder = PACKAGES / "nvidia/cuda_nvrtc/lib"
        ctypes.CDLL(str(next(folder.glob("libnvrtc-builtins.so*"))), ctypes.RTLD_GLOBAL)
        self.library = ctypes.CDLL(str(next(folder.glob("libnvrtc.so*"))))
        self.library.nvrtcGetErrorString.restype = ctypes.c_char_p

    def call(self, name, *args):
        status = getattr(self.library, name)(*args)
        if status:
            raise RuntimeError(f"{name}: {self.library.nvrtcGetErrorString(status).decode()}")

    def text(self, kind, program):
        size = ctypes.c_size_t()
        self.call(f"nvrtcGet{kind}Size", program, ctypes.byref(size))
        text = ctypes.create_string_buffer(size.value)
        self.call(f"nvrtcGet{kind}", program, text)
        return text.value.decode()

    def compile(self, source, arch, options, expressions):
        """The PTX, and the name in it of each of `expressions`."""
        program = ctypes.c_void_p()
        self.call("nvrtcCreateProgram", ctypes.byref(program), source.encode(), b"kernel.cu", 0, None, None)
        for expression in expressions:
            self.call("nvrtcAddNameExpression", program, expression.encode())
        options = [f"--gpu-architecture=compute_{arch}", "--std=c++17", "-default-device", "--device-int128", *options]
        array = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
        try:
            self.call("nvrtcCompileProgram", program, len(options), array)
        except RuntimeError as error:
            raise RuntimeError(f"{error}\n{self.text('ProgramLog', program)}") from None
        names = {}
        for expression in expressions:
            name = ctypes.c_char_p()
            self.call("nvrtcGetLoweredName", program, expression.encode(), ctypes.byref(name))
            names[expression] = name.value.decode()
        return self.text("PTX", program), names


RUNTIME = f"-I{PACKAGES}/nvidia/cuda_runtime/include"
CCCL = [f"-I{PACKAGES}/nvidia/cuda_cccl/include", RUNTIME]
CUPY = [
    f"-I{PACKAGES}/cupy/_core/include",
    *(f"-I{PACKAGES}/cupy/_core/include/cupy/_cccl/{part}" for part in ("libcudacxx", "thrust", "cub")),
    RUNTIME,
]


def text_of(file, name):
    """The string constant `name` of a module, which is not imported: cupy wants a driver."""
    for node in ast.walk(ast.parse((PACKAGES / file).read_text())):
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", None) == name:
            return ast.literal_eval(node.value)
    raise KeyError(f"{name} in {file}")


# The parts of cccl.cu.
CCCL_KERNELS = ["reduce", "scan", "radix", "merge", "histogram", "atomics", "copies", "wide"]

# File, module, its string, and what kernels that are instances of templates are called here.
SIGNAL, INTERPOLATE = "cupyx/scipy/signal", "cupyx/scipy/interpolate"
CUPY_KERNELS = {
    "lombscargle": (f"{SIGNAL}/_spectral_impl.py", "LOMBSCARGLE_KERNEL", {}),
    "upfirdn": (f"{SIGNAL}/_upfirdn.py", "UPFIRDN_KERNEL", {}),
    "max_len_seq": (f"{SIGNAL}/_max_len_seq.py", "MAX_LEN_SEQ_KERNEL", {}),
    "find_interval": (f"{INTERPOLATE}/_bspline.py", "INTERVAL_KERNEL", {}),
    "d_boor": (f"{INTERPOLATE}/_bspline.py", "D_BOOR_KERNEL", {"d_boor": "d_boor<double>"}),
    "ppoly": (f"{INTERPOLATE}/_interpolate.py", "PPOLY_KERNEL", {"eval_ppoly": "eval_ppoly<thrust::complex<double>>"}),
    "peaks": (f"{SIGNAL}/_peak_finding.py", "PEAKS_KERNEL", {
        "local_maxima": "local_maxima_1d<half>", "peak_prominences": "peak_prominences<half>", "peak_widths": "peak_widths<half>"}),
}


# --- numba-cuda ------------------------------------------------------------------------------------------------------


def function_of(file, name, names):
    """The function `name` of a module of numba-cuda's, wherever it is in the file, without its decorators."""
    path = PACKAGES / "numba_cuda/numba/cuda/tests" / file
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef) and node.name == name:
            node.decorator_list = []
            # Numba reads a function's source by its file and line, which stay.
            exec(compile(ast.Module([node], []), str(path), "exec"), names)
            return names[name]
    raise KeyError(f"{name} in {file}")


def device(file, *wanted, **names):
    """Device functions that a kernel of the file calls."""
    for name in wanted:
        names[name] = numba.cuda.jit(device=True)(function_of(file, name, {"cuda": numba.cuda, "math": math, **names}))
    return names


def constants_of(file, *wanted):
    """Numbers that a module assigns to names."""
    path = PACKAGES / "numba_cuda/numba/cuda/tests" / file
    nodes = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.Assign)]
    values = {node.targets[0].id: node.value for node in nodes if isinstance(node.targets[0], ast.Name)}
    return {name: ast.literal_eval(values[name]) for name in wanted}


def row(ty):
    return ty[::1]


def rows(ty):
    return ty[:, ::1]


def numba_kernels():
    """File, and for each kernel in it: name there, module, function, types of its parameters, what it refers to."""
    warps, sync, atomics = "cudapy/test_warp_ops.py", "cudapy/test_sync.py", "cudapy/test_atomics.py"
    pair = lambda ty: (row(ty), row(ty))
    yield "numba_matmul", "cudapy/test_matmul.py", "cu_square_matrix_mul", (rows(float32),) * 3, {"SM_SIZE": (16, 16), "tpb": 16, "bpg": 3, "n": 48}
    for name, params in [
        ("use_shfl_sync_idx", (row(int32), int32)), ("use_shfl_sync_up", (row(float64), int32)),
        ("use_vote_sync_all", pair(int32)), ("use_vote_sync_any", pair(int32)), ("use_vote_sync_eq", pair(int32)),
        ("use_match_any_sync", (row(int64), row(int32))), ("use_match_all_sync", pair(int32)),
        ("use_independent_scheduling", (row(uint32),)),
    ]:
        yield f"numba_{name[4:]}", warps, name, params, {}
    for name, params in [
        ("coop_syncwarp", (row(int32),)), ("use_syncthreads_count", pair(int32)), ("use_syncthreads_and", pair(int32)),
        ("use_syncthreads_or", pair(int32)), ("dyn_shared_memory", (row(float32),)),
    ]:
        yield f"numba_{name.removeprefix('use_')}", sync, name, params, {}
    for name in "sin tan exp log acosh erf erfc gamma lgamma".split():
        yield f"numba_{name}", "cudapy/test_math.py", f"math_{name}", pair(float64), {}
    for name in "pow atan2 fmod hypot copysign".split():
        yield f"numba_{name}", "cudapy/test_math.py", f"math_{name}", (row(float64),) * 3, {}
    yield "numba_sin32", "cudapy/test_math.py", "math_sin", pair(float32), {}
    yield "numba_pow32", "cudapy/test_math.py", "math_pow", (row(float32),) * 3, {}
    helpers = device(atomics, "atomic_cast_none", "atomic_cast_to_int", "atomic_binary_1dim_shared", "atomic_binary_1dim_shared2", "atomic_binary_1dim_global")
    helpers |= {"uint32": uint32, "uint64": uint64, "float64": float64}
    for name, params in [
        ("atomic_add_double", (row(int64), row(float64))), ("atomic_inc32", (row(uint32), row(uint32), uint32)),
        ("atomic_dec_global", (row(uint32), row(uint32), uint32)), ("atomic_exch", (row(uint32), row(uint32), uint32)),
        ("atomic_cas_1dim", (row(int64), row(int64), row(int64), int64)),
    ]:
        yield f"numba_{name}", atomics, name, params, helpers
    states = row(numba.from_dtype(numba.cuda.random.xoroshiro128p_dtype))
    generators = {"UNIFORM": 1, "NORMAL": 2} | {name: getattr(numba.cuda.random, name) for name in dir(numba.cuda.random) if name.startswith("xoroshiro128p_")}
    for bits, ty in [(32, float32), (64, float64)]:
        yield f"numba_random{bits}", "cudapy/test_random.py", f"rng_kernel_float{bits}", (states, row(ty), int64, int32), generators
    scholes = "cudapy/test_blackscholes.py"
    names = constants_of(scholes, "RSQRT2PI", "A1", "A2", "A3", "A4", "A5")
    yield "numba_black_scholes", scholes, "black_scholes_cuda", (row(float64),) * 5 + (float64, float64), device(scholes, "cnd_cuda", **names)


def compile_numba(function, params, arch, name):
    capability = (arch // 10, arch % 10)
    # Numba compiles what a kernel calls for the device that is there: for this one, where none is.
    numba.cuda.dispatcher.get_current_device = lambda: types.SimpleNamespace(compute_capability=capability)
    ptx, _ = numba.cuda.compile_ptx(function, params, cc=capability)
    entry = re.search(r"\.visible \.entry (\w+)\(", ptx).group(1)
    # Numba counts the arrays of all that it has compiled.
    for at, array in enumerate(dict.fromkeys(re.findall(r"_cudapy_\w+_\d+", ptx))):
        ptx = re.sub(rf"\b{array}\b", f"array_{at}", ptx)
    return ptx.replace(entry, name)


# --- Files -----------------------------------------------------------------------------------------------------------


def bare(ptx):
    """Without comments, blank lines, and variables that nothing names (CCCL's constants)."""
    lines = [re.sub(r"//.*", "", line).rstrip() for line in ptx.splitlines()]
    lines = [line for line in lines if line]
    words = re.findall(r"[\w$]+", "\n".join(lines))
    count = {word: 0 for word in words}
    for word in words:
        count[word] += 1
    variable = re.compile(r"^(?:\.\w+ )*\.(?:global|const) (?:\.align \d+ )?\.\w+ ([\w$]+)(?:\[\d*\])?(?: = .*)?;$")
    unused = lambda line: (found := variable.match(line)) and count[found.group(1)] == 1
    return "\n".join(line for line in lines if not unused(line)) + "\n"


def write(name, what, compile):
    """The PTX that `compile` makes for each architecture."""
    before = None
    for arch in ARCHS:
        ptx = bare(compile(arch))
        neutral = re.sub(r"\.target sm_\d+", "", ptx)
        if neutral != before:
            (PTX / f"{name}.sm_{arch}.ptx").write_text(f"// {what}, for sm_{arch}. See SOURCES.md.\n{ptx}")
        before = neutral


def main():
    for package, version in WANTED.items():
        there = importlib.metadata.version(package)
        assert there == version, f"{package} {there}: the files are of {version}"
    for file in PTX.glob("*.ptx"):
        file.unlink()
    nvrtc = Nvrtc()
    compiler = f"NVRTC {WANTED['nvidia-cuda-nvrtc-cu12']}"

    source = (HERE / "cccl.cu").read_text()
    for name in CCCL_KERNELS:
        what = f"{name.upper()} of cccl.cu with CCCL's headers, compiled by {compiler}"
        write(f"cccl_{name}", what, lambda arch: nvrtc.compile(source, arch, [*CCCL, f"-D{name.upper()}"], [])[0])

    for name, (file, string, kernels) in CUPY_KERNELS.items():
        def compile_cupy(arch):
            ptx, names = nvrtc.compile(text_of(file, string), arch, CUPY, list(kernels.values()))
            for short, expression in kernels.items():
                ptx = ptx.replace(names[expression], short)
            return ptx

        write(f"cupy_{name}", f"{string} of CuPy's {file}, compiled by {compiler}", compile_cupy)

    for name, file, function, params, names in numba_kernels():
        what = f"{function} of numba-cuda's tests/{file}, compiled by numba-cuda {WANTED['numba-cuda']}"
        names = {"cuda": numba.cuda, "math": math, "int32": int32, "float32": float32, **names}
        write(name, what, lambda arch: compile_numba(function_of(file, function, names), params, arch, name))
    reduction = _gpu_reduce_factory(lambda a, b: a + b, float64).py_func
    what = f"gpu_reduce_block_strided of numba-cuda's kernels/reduction.py, compiled by numba-cuda {WANTED['numba-cuda']}"
    params = (row(float64), row(float64), float64, boolean)
    write("numba_reduction", what, lambda arch: compile_numba(reduction, params, arch, "numba_reduction"))


if __name__ == "__main__":
    main()
