#!/usr/bin/env python3
# /// script
# dependencies = ["gguf==0.19.0", "numpy"]
# ///
"""Random blocks of every GGUF scheme, dequantised by the `gguf` package: prints dequant.txt.

A line a block: the scheme, its bytes in hex, then the values as hex bits of f32. Scales are set to moderate numbers of
either sign, everything else is random, so every bit of a block has a say.
"""
import numpy as np
from gguf import GGMLQuantizationType as Q
from gguf.quants import dequantize

# scheme: bytes a block, offsets of its f16 scales
BLOCKS = {
    "Q4_0": (18, [0]), "Q4_1": (20, [0, 2]), "Q5_0": (22, [0]), "Q5_1": (24, [0, 2]), "Q8_0": (34, [0]),
    "IQ4_NL": (18, [0]), "Q2_K": (84, [80, 82]), "Q3_K": (110, [108]), "Q4_K": (144, [0, 2]),
    "Q5_K": (176, [0, 2]), "Q6_K": (210, [208]),
}
rng = np.random.default_rng(20240229)
for name, (size, scales) in BLOCKS.items():
    for _ in range(2):
        block = rng.integers(0, 256, size, dtype=np.uint8)
        for at in scales:
            block[at:at + 2] = np.array([rng.uniform(-2, 2)], dtype=np.float16).view(np.uint8)
        values = dequantize(block.reshape(1, -1), Q[name]).astype(np.float32).reshape(-1)
        print(name.lower(), block.tobytes().hex(), *(f"{v:08x}" for v in values.view(np.uint32)))
