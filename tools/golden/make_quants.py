#!/usr/bin/env python3
"""Golden vectors of the ggml block quantisations: random blocks and what the PyPI package `gguf` decodes them to.

    python3 -m venv /tmp/venv && /tmp/venv/bin/pip install gguf safetensors numpy
    /tmp/venv/bin/python tools/golden/make_quants.py tests/fixtures/quants/quants.safetensors

Two tensors a type: TYPE.blocks (u8, the stored bytes) and TYPE.values (f32).
"""
import sys

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize
from safetensors.numpy import save_file

# Where the half-precision scales stand in a block.
HALVES = {"Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208]}


def main(path):
    random = np.random.default_rng(20250101)
    tensors = {}
    for name, halves in HALVES.items():
        kind = GGMLQuantizationType[name]
        block, size = GGML_QUANT_SIZES[kind]
        count = 512 // block if block > 32 else 6
        blocks = random.integers(0, 256, (count, size), dtype=np.uint8)
        for at in halves:  # random bits would give NaN and infinity; one scale is subnormal
            scales = random.normal(0, 0.05, count).astype(np.float16)
            scales[0] = 3e-6
            blocks[:, at : at + 2] = scales.view(np.uint8).reshape(count, 2)
        tensors[f"{name.lower()}.blocks"] = blocks
        tensors[f"{name.lower()}.values"] = dequantize(blocks, kind).astype(np.float32).reshape(count, block)
    save_file(tensors, path)


main(sys.argv[1])
