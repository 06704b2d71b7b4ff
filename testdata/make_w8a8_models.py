#!/usr/bin/env python3
# /// script
# requires-python = ">=3.10"
# dependencies = ["numpy>=1.26,<2.4"]
# ///
"""Golden models of int8 weights and int8 activations, from the models of 16 bits beside them.

    python3 testdata/make_w8a8_models.py [MODEL ...]

writes below models/
    qwen2_w8a8        as LLM Compressor stores it (compressed-tensors, int-quantized), scales in bf16
    qwen3_moe_w8a8    as msModelSlim stores it (AscendV1, W8A8_DYNAMIC), scales in f32, offsets of zero
each with config.json, generation_config.json, the weights, and
    golden.tensors        as the other models have it: p{k}.input_ids, .logits, .generated, .gen_logits, k = 0, 1, 2
    golden-tp2.tensors    the same of two ranks, which quantise the inputs of o_proj and down_proj in halves, each with a scale of its own

Every layer of a decoder block but the router has codes round(w / s), s = max |w| / 127 a row, and takes inputs as codes
round(x / t), t = max |x| / 127 a token: half to even, t in f32, products and their sums in integers, then times s and t. All else is
in f64 here, so that what an engine of f32 differs by is its own rounding.

An activation close to halfway between two codes would be one code in f64 and may be the other in f32, and everything after it would
differ by more than rounding. So prompts are built a token at a time, and tokens are passed over if an activation of theirs is within TIE of
halfway; the same holds for what is generated. The likeliest token leads the next by MARGIN, also where all activations are rounded to
bf16 and where two ranks share the model, so that engines of 16 bits choose it, too.
"""
import json
import shutil
import struct
import sys
from pathlib import Path

import numpy as np

MODELS = Path(__file__).parent / "models"
# Of a code. What f32 loses of an activation of 127 codes is about 127 * 2^-22.
TIE = 2e-4
# Between the probabilities of experts that are chosen and that are not.
ROUTER_MARGIN = 0.01
# Of logits.
MARGIN = 0.4
GENERATED = 6
# Ids from here on have a meaning for templates.
FIRST_SPECIAL = 1016
LENGTHS = {"golden": (6, 20, 48), "golden-tp2": (5, 12, 24)}


def bf16(x):
    """Rounded to bf16, half to even."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)
    return bits.view(np.float32).astype(np.float64)


def read_safetensors(path):
    raw = path.read_bytes()
    (size,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8:8 + size])
    tensors = {}
    for name, entry in header.items():
        if name != "__metadata__":
            assert entry["dtype"] == "BF16", name
            first, last = entry["data_offsets"]
            bits = np.frombuffer(raw[8 + size:][first:last], np.uint16).reshape(entry["shape"])
            tensors[name] = (bits.astype(np.uint32) << 16).view(np.float32)
    return tensors


def write_safetensors(path, tensors):
    """`tensors`: name to (type, array of the bytes' own type)."""
    header, offset = {}, 0
    for name, (dtype, array) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [offset, offset + array.nbytes]}
        offset += array.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, array in tensors.values():
            file.write(np.ascontiguousarray(array).tobytes())


class Layer:
    """A quantised linear layer."""

    def __init__(self, weight, scale_in_bf16):
        scale = (np.abs(weight).max(1) / np.float32(127)).astype(np.float32)
        self.scale = bf16(scale).astype(np.float32) if scale_in_bf16 else scale
        self.codes = np.clip(np.rint(weight / self.scale[:, None]), -128, 127).astype(np.int8)
        self._codes = self.codes.astype(np.float64)
        self._scale = self.scale.astype(np.float64)

    def __call__(self, codes, scale, columns=slice(None)):
        # Products of codes and their sums are whole numbers far below 2^53.
        return self._codes[:, columns] @ codes * self._scale * scale


class Ties(Exception):
    """An activation is close to halfway between two codes, or experts are nearly as good."""


class Model:
    """The decoder, a token at a time. `ranks`: parts in which inputs of o_proj and down_proj are quantised."""

    def __init__(self, config, tensors, layers, ranks=1, rounded=lambda x: x, strict=True):
        self.c, self.t, self.layers, self.ranks = config, tensors, layers, ranks
        self.rounded, self.strict = rounded, strict
        self.cache = [[] for _ in range(config["num_hidden_layers"])]
        dim = config["head_dim"]
        self.inverse = config["rope_theta"] ** (-np.arange(0, dim, 2) / dim)

    @property
    def length(self):
        return len(self.cache[0])

    def cut(self, length):
        for layer in self.cache:
            del layer[length:]

    def quantised(self, x):
        scale = float(np.float32(np.abs(x).max() / 127)) or 1.0
        codes = np.rint(x / scale)
        if self.strict and np.abs(np.abs(x / scale - np.trunc(x / scale)) - 0.5).min() < TIE:
            raise Ties
        return np.clip(codes, -128, 127), scale

    def in_parts(self, name, x):
        """A layer whose inputs the ranks share."""
        width, out = len(x) // self.ranks, 0
        for rank in range(self.ranks):
            columns = slice(rank * width, (rank + 1) * width)
            out = out + self.rounded(self.layers[name](*self.quantised(x[columns]), columns))
        return self.rounded(out)

    def whole(self, name, quantised):
        bias = self.t.get(name + ".bias")
        return self.rounded(self.layers[name](*quantised) + (0 if bias is None else bias))

    def norm(self, x, name):
        mean = (x * x).mean(-1, keepdims=True)
        return self.rounded(x / np.sqrt(mean + self.c["rms_norm_eps"]) * self.t[name + ".weight"])

    def rope(self, x, position):
        """Pairs (i, i + dim / 2)."""
        angle = position * self.inverse
        low, high = np.split(x, 2, axis=-1)
        cos, sin = np.cos(angle), np.sin(angle)
        return self.rounded(np.concatenate([low * cos - high * sin, high * cos + low * sin], -1))

    def attention(self, index, prefix, x):
        c, dim, position = self.c, self.c["head_dim"], len(self.cache[index])
        codes = self.quantised(x)
        q, k, v = (self.whole(f"{prefix}.{n}_proj", codes).reshape(-1, dim) for n in "qkv")
        if c["model_type"] == "qwen3_moe":
            q, k = self.norm(q, f"{prefix}.q_norm"), self.norm(k, f"{prefix}.k_norm")
        self.cache[index].append((self.rope(k, position), v))
        keys = np.stack([k for k, _ in self.cache[index]])
        values = np.stack([v for _, v in self.cache[index]])
        q = self.rope(q, position)
        out, group = [], len(q) // c["num_key_value_heads"]
        for head, query in enumerate(q):
            scores = keys[:, head // group] @ query / np.sqrt(dim)
            weights = np.exp(scores - scores.max())
            out.append(weights / weights.sum() @ values[:, head // group])
        return self.in_parts(f"{prefix}.o_proj", self.rounded(np.concatenate(out)))

    def mlp(self, prefix, codes):
        gate, up = (self.whole(f"{prefix}.{n}_proj", codes) for n in ("gate", "up"))
        inner = self.rounded(gate / (1 + np.exp(-gate)) * up)
        return self.in_parts(f"{prefix}.down_proj", inner)

    def experts(self, prefix, x):
        logits = self.t[f"{prefix}.gate.weight"].astype(np.float64) @ x
        weights = np.exp(logits - logits.max())
        weights /= weights.sum()
        order = np.argsort(-weights, kind="stable")
        top = self.c["num_experts_per_tok"]
        if self.strict and weights[order[top - 1]] - weights[order[top]] < ROUTER_MARGIN:
            raise Ties
        chosen = weights[order[:top]]
        if self.c["norm_topk_prob"]:
            chosen = chosen / chosen.sum()
        codes = self.quantised(x)
        outs = (self.mlp(f"{prefix}.experts.{e}", codes) for e in order[:top])
        return self.rounded(sum(weight * out for weight, out in zip(chosen, outs)))

    def step(self, token):
        """Logits after one more token; the cache stays as it was if that token is refused."""
        length = self.length
        try:
            return self._step(token)
        except Ties:
            self.cut(length)
            raise

    def _step(self, token):
        stream = self.t["model.embed_tokens.weight"][token].astype(np.float64)
        for index in range(self.c["num_hidden_layers"]):
            prefix = f"model.layers.{index}"
            x = self.norm(stream, f"{prefix}.input_layernorm")
            stream = self.rounded(stream + self.attention(index, f"{prefix}.self_attn", x))
            x = self.norm(stream, f"{prefix}.post_attention_layernorm")
            dense = self.c["model_type"] == "qwen2"
            delta = self.mlp(f"{prefix}.mlp", self.quantised(x)) if dense else self.experts(f"{prefix}.mlp", x)
            stream = self.rounded(stream + delta)
        return self.t["lm_head.weight"].astype(np.float64) @ self.norm(stream, "model.norm")


def lead(logits):
    """How far the likeliest token is ahead."""
    first, second = np.sort(logits)[-2:][::-1]
    return first - second


class Search:
    """Prompts and what follows them, with room for the rounding of others."""

    def __init__(self, make, ranks, seed):
        self.model = make(ranks)
        self.others = [make(3 - ranks, strict=False), make(ranks, rounded=bf16, strict=False)]
        self.rng = np.random.default_rng(seed)

    def random_token(self):
        while True:
            token = int(self.rng.integers(0, FIRST_SPECIAL))
            try:
                return token, self.model.step(token)
            except Ties:
                continue

    def generate(self, logits):
        """Tokens and what each was chosen from; None if one is not clear."""
        tokens, rows = [], []
        for at in range(GENERATED):
            token = int(logits.argmax())
            if lead(logits) < MARGIN or token >= FIRST_SPECIAL:
                return None
            tokens.append(token)
            rows.append(logits)
            if at + 1 < GENERATED:
                try:
                    logits = self.model.step(token)
                except Ties:
                    return None
        return tokens, rows

    def others_agree(self, prompt, generated):
        for other in self.others:
            other.cut(0)
            rows = [other.step(token) for token in prompt + generated[:-1]][len(prompt) - 1:]
            for token, row in zip(generated, rows):
                if int(row.argmax()) != token or lead(row) < MARGIN / 2:
                    return False
        return True

    def prompt(self, length):
        self.model.cut(0)
        ids, rows = [], []
        for _ in range(length - 1):
            token, logits = self.random_token()
            ids.append(token)
            rows.append(logits)
        for attempt in range(1, 200000):
            self.model.cut(length - 1)
            token, logits = self.random_token()
            found = self.generate(logits)
            if found and self.others_agree(ids + [token], found[0]):
                print(f"  {length} tokens after {attempt} attempts, leads of {min(map(lead, found[1])):.2f}")
                return ids + [token], rows + [logits], *found
        sys.exit(f"no prompt of {length} tokens")


def golden(make, ranks, lengths, seed):
    search, tensors = Search(make, ranks, seed), {}
    for k, length in enumerate(lengths):
        ids, logits, generated, generated_logits = search.prompt(length)
        tensors[f"p{k}.input_ids"] = ("I32", np.array(ids, np.int32))
        tensors[f"p{k}.logits"] = ("F32", np.array(logits, np.float32))
        tensors[f"p{k}.generated"] = ("I32", np.array(generated, np.int32))
        tensors[f"p{k}.gen_logits"] = ("F32", np.array(generated_logits, np.float32))
    return tensors


def bf16_bits(array):
    return (np.ascontiguousarray(array, np.float32).view(np.uint32) >> 16).astype(np.uint16)


def compressed(config, out, stored):
    """The files of LLM Compressor."""
    eight = {"num_bits": 8, "type": "int", "symmetric": True, "actorder": None, "block_structure": None,
             "group_size": None}
    config["quantization_config"] = {
        "quant_method": "compressed-tensors", "format": "int-quantized", "quantization_status": "compressed",
        "global_compression_ratio": None, "ignore": ["lm_head"], "kv_cache_scheme": None,
        "config_groups": {"group_0": {
            "targets": ["Linear"], "output_activations": None,
            "weights": {**eight, "strategy": "channel", "dynamic": False, "observer": "minmax"},
            "input_activations": {**eight, "strategy": "token", "dynamic": True, "observer": None}}}}
    tensors = {}
    for name, value in stored.items():
        if isinstance(value, Layer):
            tensors[f"{name}.weight"] = ("I8", value.codes)
            tensors[f"{name}.weight_scale"] = ("BF16", bf16_bits(value.scale[:, None]))
        else:
            tensors[name] = ("BF16", bf16_bits(value))
    write_safetensors(out / "model.safetensors", tensors)


def ascend(config, out, stored):
    """The files of msModelSlim."""
    tensors = {}
    description = {"model_quant_type": "W8A8_DYNAMIC", "version": "1.0.0", "group_size": 0, "metadata": {}}
    for name, value in stored.items():
        if isinstance(value, Layer):
            parts = {"weight": ("I8", value.codes), "weight_scale": ("F32", value.scale[:, None]),
                     "weight_offset": ("F32", np.zeros((len(value.scale), 1), np.float32))}
            for leaf, part in parts.items():
                tensors[f"{name}.{leaf}"] = part
                description[f"{name}.{leaf}"] = "W8A8_DYNAMIC"
        else:
            tensors[name] = ("BF16", bf16_bits(value))
            description[name] = "FLOAT"
    write_safetensors(out / "quant_model_weights.safetensors", tensors)
    (out / "quant_model_description.json").write_text(json.dumps(description, indent=1) + "\n")


KINDS = {"qwen2_w8a8": ("qwen2", compressed, 21), "qwen3_moe_w8a8": ("qwen3_moe", ascend, 22)}


def make_model(name):
    base, store, seed = KINDS[name]
    out = MODELS / name
    out.mkdir(exist_ok=True)
    config = json.loads((MODELS / base / "config.json").read_text())
    tensors = read_safetensors(MODELS / base / "model.safetensors")

    def is_quantised(tensor):
        return tensor.endswith("_proj.weight")

    layers = {n.removesuffix(".weight"): Layer(t, store is compressed) for n, t in tensors.items() if is_quantised(n)}
    stored = {n.removesuffix(".weight") if is_quantised(n) else n: layers.get(n.removesuffix(".weight"), t)
              for n, t in tensors.items()}
    tensors = {n: t for n, t in tensors.items() if not is_quantised(n)}
    store(config, out, stored)
    (out / "config.json").write_text(json.dumps(config, indent=2))
    shutil.copy(MODELS / base / "generation_config.json", out)

    def make(ranks, **options):
        return Model(config, tensors, layers, ranks, **options)

    for file, ranks in (("golden", 1), ("golden-tp2", 2)):
        print(f"{name}/{file}")
        write_safetensors(out / f"{file}.tensors", golden(make, ranks, LENGTHS[file], [seed, ranks]))


if __name__ == "__main__":
    for model in sys.argv[1:] or KINDS:
        make_model(model)
