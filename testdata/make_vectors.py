#!/usr/bin/env python3
# /// script
# requires-python = ">=3.10"
# dependencies = ["numpy>=1.26,<2.4", "gguf==0.19.0", "torch==2.9.1", "transformers==4.57.6"]
# ///
"""Reference vectors from independent implementations, for the tests of engine/weights.

    python3 testdata/make_vectors.py

writes beside itself
    quant_vectors.safetensors   TYPE.blocks (U8) and TYPE.values (F32): random blocks of every GGUF type and what the
                                gguf package makes of them
    spm_tokenizer.gguf          the vocabulary of models/mixtral as SentencePiece keeps it: scores instead of merges
    rope_vectors.json           inverse frequencies and magnitude factors of transformers, for each rope scaling
"""
import json
import struct
from pathlib import Path

import gguf
import numpy as np

HERE = Path(__file__).parent
NUM_BLOCKS = 6
# Where each block's f16 numbers lie: random bits there would be infinities and NaNs.
HALVES = {
    "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0], "Q2_K": [80, 82], "Q3_K": [108],
    "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208], "IQ4_NL": [0],
}


def quant_vectors() -> None:
    rng = np.random.default_rng(20)
    tensors: dict[str, np.ndarray] = {}
    for name, halves in HALVES.items():
        kind = gguf.GGMLQuantizationType[name]
        _, num_bytes = gguf.GGML_QUANT_SIZES[kind]
        blocks = rng.integers(0, 256, (NUM_BLOCKS, num_bytes), dtype=np.uint8)
        for at in halves:
            half = rng.normal(0, 0.05, NUM_BLOCKS).astype(np.float16)
            blocks[:, at:at + 2] = half.view(np.uint8).reshape(NUM_BLOCKS, 2)
        tensors[name + ".blocks"] = blocks
        tensors[name + ".values"] = gguf.quants.dequantize(blocks, kind).astype(np.float32).reshape(-1)
    header, offset = {}, 0
    for name, array in tensors.items():
        dtype = {"u": "U8", "f": "F32"}[array.dtype.kind]
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [offset, offset + array.nbytes]}
        offset += array.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(HERE / "quant_vectors.safetensors", "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        for array in tensors.values():
            f.write(array.tobytes())


def spm_tokenizer() -> None:
    source = json.loads((HERE / "models/mixtral/tokenizer.json").read_text())
    tokens = [token for token, _ in sorted(source["model"]["vocab"].items(), key=lambda item: item[1])]
    # SentencePiece trains the same merges and keeps their order as scores; single characters come last.
    ranks: dict[str, int] = {}
    for merge in source["model"]["merges"]:
        ranks.setdefault(merge.replace(" ", "", 1), len(ranks))
    control = {token["content"] for token in source["added_tokens"]}

    def kind(token: str) -> int:
        if token in control:
            return gguf.TokenType.UNKNOWN if token == "<unk>" else gguf.TokenType.CONTROL
        return gguf.TokenType.BYTE if token.startswith("<0x") else gguf.TokenType.NORMAL

    w = gguf.GGUFWriter(HERE / "spm_tokenizer.gguf", "llama")
    w.add_tokenizer_model("llama")
    w.add_token_list(tokens)
    w.add_token_scores([-float(ranks.get(token, len(ranks) + i)) for i, token in enumerate(tokens)])
    w.add_token_types([kind(token) for token in tokens])
    w.add_bos_token_id(1)
    w.add_eos_token_id(2)
    w.add_unk_token_id(0)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def rope_vectors() -> None:
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    cases = [
        (10000.0, 64, 4096, None),
        (500000.0, 128, 131072, {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                                 "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}),
        (500000.0, 16, 512, {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0,
                             "high_freq_factor": 4.0, "original_max_position_embeddings": 64}),
        (10000.0, 128, 16384, {"rope_type": "linear", "factor": 4.0}),
        (1000000.0, 128, 131072, {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}),
        (10000.0, 64, 163840, {"rope_type": "yarn", "factor": 40.0, "beta_fast": 32, "beta_slow": 1, "mscale": 1.0,
                               "mscale_all_dim": 0.5, "original_max_position_embeddings": 4096}),
        (150000.0, 64, 131072, {"rope_type": "yarn", "factor": 32.0, "truncate": False,
                                "original_max_position_embeddings": 4096}),
        (10000.0, 16, 256, {"rope_type": "yarn", "factor": 4.0, "attention_factor": 1.5,
                            "original_max_position_embeddings": 64}),
    ]
    out = []
    for theta, head_dim, positions, scaling in cases:
        config = {"model_type": "llama", "hidden_size": 4 * head_dim, "intermediate_size": 8, "num_hidden_layers": 1,
                  "num_attention_heads": 4, "head_dim": head_dim, "vocab_size": 8, "rope_theta": theta,
                  "max_position_embeddings": positions, "rope_scaling": scaling}
        hf = LlamaConfig(**{k: v for k, v in config.items() if k != "model_type"})
        kind = scaling["rope_type"] if scaling else "default"
        if kind == "default":
            import torch
            inv = 1.0 / (theta ** (torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim))
            magnitude = 1.0
        else:
            inv, magnitude = ROPE_INIT_FUNCTIONS[kind](hf, "cpu")
        out.append({"config": config, "magnitude": float(magnitude), "inverse_frequencies": [float(f) for f in inv]})
    lines = ",\n".join(json.dumps(case) for case in out)
    (HERE / "rope_vectors.json").write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    quant_vectors()
    spm_tokenizer()
    rope_vectors()
