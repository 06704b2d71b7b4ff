#!/usr/bin/env python3
# /// script
# requires-python = ">=3.10"
# dependencies = ["numpy>=1.26,<2.4", "torch==2.9.1"]
# ///
"""Golden vectors of an independent implementation, which pin the oracle (backends/cpu-ref) from outside.

    python3 conformance/golden/make_golden.py

writes golden.json beside itself: cases of one launch each (op, attributes, tensors by slot, what the outputs hold), and the
distributions that SAMPLE draws from. Everything is computed in float64 by torch's own functions (scaled_dot_product_attention,
softmax, topk, rms_norm, view_as_complex, float8 casts) from the formulas of the literature, never by Halyard. Inputs are exact in
the dtype that they are stored in. In the file, null is -inf.
"""
import json
import math
from pathlib import Path

import torch
import torch.nn.functional as F

torch.manual_seed(7)
CASES: list[dict] = []
INF = float("inf")


def rand(*dims: int, scale: float = 1.0) -> torch.Tensor:
    """Normal numbers that f32 holds, as f64."""
    return (torch.randn(*dims) * scale).float().double()


def numbers(x: torch.Tensor) -> list:
    """Nine digits name an f32 exactly; whole numbers are written as such."""
    short = lambda v: int(v) if v == int(v) else float(f"{v:.9g}")
    return [None if v == -INF else short(v) for v in x.double().reshape(-1).tolist()]


def tensor(x: torch.Tensor, dtype: str = "f32") -> dict:
    return {"dtype": dtype, "dims": list(x.shape), "values": numbers(x)}


def ints(values: list, dims: list | None = None) -> dict:
    return {"dtype": "i32", "dims": dims or [len(values)], "values": values}


def case(name: str, op: str, attrs: dict, tensors: list, want: dict, weights: list = ()) -> None:
    """`want` maps slots to (dtype, values); the slots of `tensors` that it names are outputs if they are None."""
    tensors = list(tensors)
    for slot, (dtype, value) in want.items():
        if tensors[slot] is None:
            tensors[slot] = {"dtype": dtype, "dims": list(value.shape), "values": None}
    CASES.append({
        "name": name, "op": op, "attrs": attrs, "tensors": tensors,
        "weights": [{"groups": w.shape[0], "n": w.shape[1], "k": w.shape[2], "values": numbers(w)} for w in weights],
        "want": {str(slot): numbers(value) for slot, (_, value) in want.items()},
    })


# Attention ----------------------------------------------------------------------------------------------------------------------

def visible(q_len: int, kv_len: int, causal: bool, window: int) -> torch.Tensor:
    if not causal:
        return torch.ones(q_len, kv_len, dtype=torch.bool)
    p = torch.arange(kv_len - q_len, kv_len)[:, None]
    j = torch.arange(kv_len)[None, :]
    mask = j <= p
    return mask & (j >= p - window) if window >= 0 else mask


def attend(q, k, v, mask, scale, softcap, sinks):
    """q [Hq, Tq, D], k [Hk, Tk, D], v [Hk, Tk, Dv] -> o [Hq, Tq, Dv], lse [Hq, Tq]; rows that see nothing give 0 and -inf."""
    group = q.shape[0] // k.shape[0]
    k, v = (x.repeat_interleave(group, dim=0) for x in (k, v))
    z = scale * q @ k.transpose(1, 2)
    if softcap > 0:
        z = softcap * torch.tanh(z / softcap)
    z = z.masked_fill(~mask, -INF)
    columns = z if sinks is None else torch.cat([z, sinks[:, None, None].expand(-1, z.shape[1], 1)], dim=-1)
    lse = torch.logsumexp(columns, dim=-1)
    if softcap > 0 or sinks is not None:
        o = torch.softmax(columns, dim=-1)[..., : z.shape[-1]] @ v
    else:
        o = F.scaled_dot_product_attention(q[None], k[None], v[None], attn_mask=mask, scale=scale)[0]
    nothing = ~mask.any(dim=-1)
    return o.masked_fill(nothing[None, :, None], 0.0), lse.masked_fill(nothing[None, :], -INF)


def paged(rows: list, block: int, blocks: int, order: list) -> tuple:
    """Sequences' rows [n, ...] into blocks in the given order, garbage around them; the block table, padded with 0."""
    width = max(math.ceil(len(r) / block) for r in rows)
    cache, table, at = torch.full((blocks, block, *rows[0].shape[1:]), 1e4, dtype=torch.float64), [], 0
    for r in rows:
        line = []
        for first in range(0, len(r), block):
            piece = r[first:first + block]
            cache[order[at], : len(piece)] = piece
            line.append(order[at])
            at += 1
        table += line + [0] * (width - len(line))
    return cache, table, width


def attention(name, q_lens, kv_lens, heads, dims, causal=True, window=-1, softcap=0.0, with_sinks=False):
    (hq, hk), (dk, dv) = heads, dims
    scale = dk ** -0.5
    q = rand(sum(q_lens), hq, dk)
    ks, vs = [rand(n, hk, dk) for n in kv_lens], [rand(n, hk, dv) for n in kv_lens]
    sinks = rand(hq) if with_sinks else None
    o, lse, at = [], [], 0
    for q_len, kv_len, k, v in zip(q_lens, kv_lens, ks, vs):
        mine = q[at:at + q_len].transpose(0, 1)
        mask = visible(q_len, kv_len, causal, window)
        out, sums = attend(mine, k.transpose(0, 1), v.transpose(0, 1), mask, scale, softcap, sinks)
        o.append(out.transpose(0, 1))
        lse.append(sums.transpose(0, 1))
        at += q_len
    want_o, want_lse = torch.cat(o), torch.cat(lse)
    attrs = {"scale": scale, "causal": causal, "window": window, "softcap": softcap}
    cu = lambda lens: ints([sum(lens[:i]) for i in range(len(lens) + 1)])
    sink = None if sinks is None else tensor(sinks)
    case(f"varlen/{name}", "varlen_attention", attrs,
         [tensor(q), tensor(torch.cat(ks)), tensor(torch.cat(vs)), cu(q_lens), cu(kv_lens), None, None, sink],
         {5: ("f32", want_o), 6: ("f32", want_lse)})
    order = torch.randperm(10).tolist()
    k_cache, table, width = paged(ks, 4, 10, order)
    v_cache, _, _ = paged(vs, 4, 10, order)
    case(f"paged/{name}", "paged_attention", attrs,
         [tensor(q), tensor(k_cache), tensor(v_cache), ints(table, [len(kv_lens), width]), cu(q_lens), ints(kv_lens),
          None, None, None, None, sink],
         {6: ("f32", want_o), 7: ("f32", want_lse)})


def attentions() -> None:
    mixed = ([1, 5, 3], [9, 5, 12])
    attention("causal", *mixed, (4, 4), (16, 16))
    attention("gqa", *mixed, (6, 2), (16, 16))
    attention("values_of_another_width", *mixed, (4, 1), (24, 8))
    attention("window", *mixed, (4, 2), (16, 16), window=3)
    attention("softcap", *mixed, (4, 2), (16, 16), softcap=1.5)
    attention("sinks", *mixed, (4, 2), (16, 16), with_sinks=True)
    attention("all_at_once", *mixed, (4, 2), (16, 16), window=2, softcap=2.0, with_sinks=True)
    attention("bidirectional", *mixed, (4, 2), (16, 16), causal=False)
    attention("more_queries_than_keys", [4, 2], [2, 5], (4, 2), (16, 16))


def latent_attention() -> None:
    """DeepSeek's: the absorbed form that the op has, checked here against the unabsorbed one."""
    heads, nope, rope, latent, value, kv_len, q_len = 3, 8, 4, 16, 6, 11, 4
    w_uk, w_uv = rand(heads, nope, latent, scale=0.3), rand(heads, value, latent, scale=0.3)
    q_nope, qr = rand(q_len, heads, nope), rand(q_len, heads, rope)
    c, r = rand(kv_len, latent), rand(kv_len, rope)
    scale = (nope + rope) ** -0.5
    mask = visible(q_len, kv_len, True, -1)

    exact = torch.einsum("thn,hnc->thc", q_nope, w_uk)
    case("mla/absorb", "batched_linear", {}, [tensor(q_nope), None], {1: ("f32", exact)}, [w_uk.transpose(1, 2)])
    qc = exact.float().double()
    queries = torch.cat([qc, qr], dim=-1).transpose(0, 1)
    keys = torch.cat([c, r], dim=-1)[None]
    o, lse = attend(queries, keys, c[None], mask, scale, 0.0, None)
    cache, table, width = paged([torch.cat([c, r], dim=-1)], 4, 5, [3, 0, 4, 1, 2])
    c_cache, r_cache = cache[..., :latent], cache[..., latent:]
    case("mla/attention", "mla_attention", {"scale": scale, "causal": True, "window": -1, "softcap": 0.0},
         [tensor(qc), tensor(qr), tensor(c_cache), tensor(r_cache), ints(table, [1, width]), ints([0, q_len]), ints([kv_len]),
          None, None],
         {7: ("f32", o.transpose(0, 1)), 8: ("f32", lse.transpose(0, 1))})
    oc = o.transpose(0, 1).float().double()
    out = torch.einsum("thc,hvc->thv", oc, w_uv)
    case("mla/values", "batched_linear", {}, [tensor(oc), None], {1: ("f32", out)}, [w_uv])

    k = torch.cat([torch.einsum("jc,hnc->hjn", c, w_uk), r[None].expand(heads, -1, -1)], dim=-1)
    v = torch.einsum("jc,hvc->hjv", c, w_uv)
    q = torch.cat([q_nope, qr], dim=-1).transpose(0, 1)
    unabsorbed = F.scaled_dot_product_attention(q[None], k[None], v[None], attn_mask=mask, scale=scale)[0].transpose(0, 1)
    assert torch.allclose(out, unabsorbed, atol=1e-5), "absorbing must not change the result"


def merging() -> None:
    """Attention over ten keys is the merge of those over four and six."""
    q, k, v = rand(2, 3, 8), rand(2, 10, 8), rand(2, 10, 8)
    all_of = lambda k, v: attend(q, k, v, torch.ones(3, k.shape[1], dtype=torch.bool), 0.5, 0.0, None)
    (o1, lse1), (o2, lse2) = all_of(k[:, :4], v[:, :4]), all_of(k[:, 4:], v[:, 4:])
    rows = [x.float().double().transpose(0, 1) for x in (o1, lse1, o2, lse2)]
    lse = torch.logsumexp(torch.stack([rows[1], rows[3]]), dim=0)
    o = sum(o * torch.exp(part - lse)[..., None] for o, part in (rows[:2], rows[2:]))
    whole, _ = all_of(k, v)
    assert torch.allclose(o, whole.transpose(0, 1), atol=1e-6), "a merge must be the whole"
    case("merge", "merge_attention", {}, [*map(tensor, rows), None, None], {4: ("f32", o), 5: ("f32", lse)})


# Experts ------------------------------------------------------------------------------------------------------------------------

def router(name, experts, top, sigmoid, norm, scale, n_group=1, topk_group=1, two=False, biased=False) -> None:
    logits = rand(7, experts)
    bias = rand(experts, scale=0.2) if biased else None
    scores = torch.sigmoid(logits) if sigmoid else torch.softmax(logits, dim=-1)
    choice = scores if bias is None else scores + bias
    if n_group > 1:
        groups = choice.view(7, n_group, -1)
        group_scores = groups.topk(2, dim=-1)[0].sum(-1) if two else groups.max(-1)[0]
        kept = torch.zeros_like(group_scores).scatter_(1, group_scores.topk(topk_group, dim=-1)[1], 1.0)
        choice = groups.masked_fill(kept[..., None] == 0, -INF).view(7, experts)
    ids = choice.topk(top, dim=-1)[1]
    weight = scores.gather(1, ids)
    if norm:
        weight = weight / (weight.sum(-1, keepdim=True) + 1e-20)
    attrs = {"sigmoid": sigmoid, "n_group": n_group, "topk_group": topk_group, "group_sum_of_two": two, "norm": norm, "scale": scale}
    case(f"router/{name}", "moe_router", attrs, [tensor(logits), None if bias is None else tensor(bias), None, None],
         {2: ("i32", ids), 3: ("f32", weight * scale)})


def activation(act: int, g: torch.Tensor) -> torch.Tensor:
    return [F.silu, lambda g: F.gelu(g, approximate="tanh"), F.gelu][act](g)


def experts(name, act, limit=0.0) -> None:
    tokens, hidden, inner, count, top = 5, 12, 7, 4, 2
    x, weight = rand(tokens, hidden), torch.rand(tokens, top).double().float().double()
    w0, w1 = rand(count, 2 * inner, hidden, scale=0.4), rand(count, hidden, inner, scale=0.4)
    ids = torch.stack([torch.randperm(count + 1)[:top] for _ in range(tokens)])  # the last is not of the slice
    y = rand(tokens, hidden)
    add = tensor(y)
    y = y.clone()
    for t in range(tokens):
        for j in range(top):
            e = int(ids[t, j])
            if e < count:
                g, u = F.linear(x[t], w0[e]).chunk(2)
                if limit > 0:
                    g, u = g.clamp(max=limit), u.clamp(-limit, limit)
                y[t] += weight[t, j] * F.linear(activation(act, g) * u, w1[e])
    case(f"experts/{name}", "moe_experts", {"expert_start": 3, "act": act, "limit": limit},
         [tensor(x), tensor(ids + 3, "i32"), tensor(weight), None, add], {3: ("f32", y)}, [w0, w1])


# Rope ---------------------------------------------------------------------------------------------------------------------------

def frequencies(kind: str, r: int) -> tuple:
    """Inverse frequencies and the magnitude of cos and sin."""
    base, exponent = 10000.0, torch.arange(0, r, 2).double() / r
    inv = base ** -exponent
    if kind == "llama3":  # Llama 3.1: factor 8, low 1, high 4, trained on 64 positions here
        wavelength, factor, low, high, trained = 2 * math.pi / inv, 8.0, 1.0, 4.0, 64.0
        smooth = ((trained / wavelength - low) / (high - low)).clamp(0, 1)
        return (1 - smooth) * inv / factor + smooth * inv, 1.0
    if kind == "yarn":  # Peng et al. 2023: factor 4, beta 32 and 1
        factor, trained = 4.0, 64.0
        at = lambda rotations: r * math.log(trained / (rotations * 2 * math.pi)) / (2 * math.log(base))
        low, high = max(math.floor(at(32)), 0), min(math.ceil(at(1)), r - 1)
        ramp = ((torch.arange(r // 2).double() - low) / (high - low)).clamp(0, 1)
        return inv / factor * ramp + inv * (1 - ramp), 0.1 * math.log(factor) + 1
    return inv, 1.0


def rope(name, kind, interleaved, dim, r, offset) -> None:
    inv, magnitude = frequencies(kind, r)
    angle = torch.outer(torch.arange(40).double(), inv)
    table = torch.cat([angle.cos() * magnitude, angle.sin() * magnitude], dim=-1).float().double()
    q, k, pos = rand(4, 3, dim), rand(4, 2, dim), torch.tensor([0, 1, 39, 17])
    cos, sin = table[pos, : r // 2][:, None], table[pos, r // 2:][:, None]

    def turned(x):
        part = x[..., offset:offset + r]
        if interleaved:
            by = torch.complex(cos, sin)
            new = torch.view_as_real(torch.view_as_complex(part.reshape(*part.shape[:-1], -1, 2).contiguous()) * by).flatten(-2)
        else:
            first, second = part.chunk(2, dim=-1)
            half = torch.cat([-second, first], dim=-1)
            new = part * torch.cat([cos, cos], dim=-1) + half * torch.cat([sin, sin], dim=-1)
        return torch.cat([x[..., :offset], new, x[..., offset + r:]], dim=-1)

    case(f"rope/{name}", "rope", {"interleaved": interleaved, "offset": offset},
         [tensor(q), tensor(k), ints(pos.tolist()), tensor(table)], {0: ("f32", turned(q)), 1: ("f32", turned(k))})


# Rows ---------------------------------------------------------------------------------------------------------------------------

def rows() -> None:
    x, gamma = rand(5, 24), rand(24)
    case("rms_norm", "rms_norm", {"eps": 1e-5, "plus_one": False}, [tensor(x), tensor(gamma), None],
         {2: ("f32", F.rms_norm(x, (24,), gamma, 1e-5))})
    case("rms_norm/plus_one", "rms_norm", {"eps": 1e-6, "plus_one": True}, [tensor(x), tensor(gamma), None],
         {2: ("f32", F.rms_norm(x, (24,), gamma + 1, 1e-6))})
    gate, up = rand(3, 9, scale=3.0), rand(3, 9)
    for act, name in enumerate(["silu", "gelu_tanh", "gelu"]):
        case(f"act_mul/{name}", "act_mul", {"act": act, "limit": 0.0}, [tensor(torch.cat([gate, up], dim=-1)), None],
             {1: ("f32", activation(act, gate) * up)})
    logits, ids = rand(3, 50, scale=4.0), torch.randint(0, 50, (3, 4))
    case("logprobs", "logprobs", {}, [tensor(logits), tensor(ids, "i32"), None],
         {2: ("f32", torch.log_softmax(logits, dim=-1).gather(1, ids))})


# Eight bits ---------------------------------------------------------------------------------------------------------------------

def to_fp8(x: torch.Tensor, kind: torch.dtype, largest: float) -> torch.Tensor:
    return x.clamp(-largest, largest).float().to(kind).double()


def eight_bits() -> None:
    for dtype, kind, largest in [("f8e4m3", torch.float8_e4m3fn, 448.0), ("f8e5m2", torch.float8_e5m2, 57344.0)]:
        codes = torch.arange(256, dtype=torch.uint8).view(kind).double()
        codes = codes[codes.isfinite()].sort()[0]
        between = (codes[1:] + codes[:-1]) / 2  # ties
        x = torch.cat([codes, between, between * 1.001, rand(100, scale=0.01), rand(100, scale=300.0), torch.tensor([1e6, -1e6])])
        x = x.float().double()
        case(f"copy/{dtype}", "copy", {}, [tensor(x), None], {1: (dtype, to_fp8(x, kind, largest))})
    x = rand(4, 300, scale=5.0)
    x[1] = 0
    scale = (x.abs().amax(-1, keepdim=True) / 127).float().double()
    scale[scale == 0] = 1
    case("quant_act/int8", "quant_act", {"mode": 1}, [tensor(x), None, None],
         {1: ("i8", (x / scale).round().clamp(-128, 127)), 2: ("f32", scale)})
    groups = F.pad(x, (0, 84)).view(4, 3, 128)
    scale = (groups.abs().amax(-1) / 448).float().double()
    scale[scale == 0] = 1
    q = to_fp8(groups / scale[..., None], torch.float8_e4m3fn, 448.0).view(4, 384)[:, :300]
    case("quant_act/fp8", "quant_act", {"mode": 2}, [tensor(x), None, None], {1: ("f8e4m3", q), 2: ("f32", scale)})


# Sampling -----------------------------------------------------------------------------------------------------------------------

def philox4x32_10(counter: list, key: list) -> list:
    """Salmon et al. 2011; the answers below are those published with it."""
    c, k = list(counter), list(key)
    for _ in range(10):
        (h0, l0), (h1, l1) = divmod(0xD2511F53 * c[0], 2 ** 32), divmod(0xCD9E8D57 * c[2], 2 ** 32)
        c = [h1 ^ c[1] ^ k[0], l1, h0 ^ c[3] ^ k[1], l0]
        k = [(k[0] + 0x9E3779B9) % 2 ** 32, (k[1] + 0xBB67AE85) % 2 ** 32]
    return c


def sampling() -> dict:
    assert philox4x32_10([0] * 4, [0] * 2) == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    assert philox4x32_10([2 ** 32 - 1] * 4, [2 ** 32 - 1] * 2) == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]
    uniforms = []
    for seed, offset in [(0, 0), (1, 0), (0, 1), (42, 7), (2 ** 63 + 5, 2 ** 40 + 3), (2 ** 64 - 1, 2 ** 64 - 1)]:
        word = philox4x32_10([offset % 2 ** 32, offset >> 32, 0, 0], [seed % 2 ** 32, seed >> 32])[0]
        uniforms.append({"seed": str(seed), "offset": str(offset), "bits": word >> 8})
    filters = []
    for temperature, top_k, top_p, min_p in [
        (1.0, 0, 1.0, 0.0), (0.7, 0, 1.0, 0.0), (1.0, 5, 1.0, 0.0), (1.0, 0, 0.8, 0.0), (1.3, 0, 1.0, 0.1), (0.8, 12, 0.9, 0.02),
        (2.0, 3, 0.5, 0.0), (1.0, 100, 0.95, 0.05),
    ]:
        logits = rand(40, scale=2.0)
        values, ids = torch.sort(logits / temperature, descending=True, stable=True)
        if top_k:
            values, ids = values[:top_k], ids[:top_k]
        p = torch.softmax(values, dim=-1)
        before = p.cumsum(-1) - p
        p = p[(before < top_p) & (p >= min_p * p[0])]
        p = p / p.sum()
        filters.append({"logits": numbers(logits), "temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p,
                        "ids": ids[: len(p)].tolist(), "p": p.tolist()})
    return {"uniforms": uniforms, "filters": filters}


attentions()
latent_attention()
merging()
router("mixtral", 8, 2, sigmoid=False, norm=True, scale=1.0)
router("deepseek_v2", 16, 3, sigmoid=False, norm=False, scale=16.0, n_group=4, topk_group=2)
router("deepseek_v3", 16, 4, sigmoid=True, norm=True, scale=2.5, n_group=4, topk_group=2, two=True, biased=True)
for index, act_name in enumerate(["silu", "gelu_tanh", "gelu"]):
    experts(act_name, index)
experts("clamped", 0, limit=0.7)
for style, interleaved in [("neox", False), ("interleaved", True)]:
    rope(style, "plain", interleaved, 16, 16, 0)
    rope(f"{style}/partial", "plain", interleaved, 20, 8, 6)
rope("llama3", "llama3", False, 16, 16, 0)
rope("yarn", "yarn", True, 16, 16, 0)
rows()
eight_bits()
golden = {"cases": CASES, "sampling": sampling()}
path = Path(__file__).parent / "golden.json"
lines = ",\n".join(json.dumps(c, separators=(",", ":")) for c in CASES)
path.write_text('{"cases":[\n' + lines + '],\n"sampling":' + json.dumps(golden["sampling"], separators=(",", ":")) + "}\n")
print(f"{len(CASES)} cases, {path.stat().st_size} bytes")
