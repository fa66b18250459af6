#!/usr/bin/env python3
"""Writes a Llama of a given shape with random bf16 weights, shard by shard (numpy only; memory: one tensor).

    python3 bench/make_random.py SHAPE DIR [--context N]

SHAPE: llama-3.2-1b, llama-2-7b-8-layers, llama-2-7b-2-layers, smollm2-135m. No tokenizer is written: such a model is fed token ids.
"""
import argparse
import json
import os
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np

SHAPES = {
    "llama-3.2-1b": dict(hidden_size=2048, num_hidden_layers=16, num_attention_heads=32, num_key_value_heads=8, head_dim=64,
                         intermediate_size=8192, vocab_size=128256, max_position_embeddings=131072, rope_theta=500000.0, tie_word_embeddings=True),
    "llama-2-7b-8-layers": dict(hidden_size=4096, num_hidden_layers=8, num_attention_heads=32, num_key_value_heads=32, head_dim=128,
                                intermediate_size=11008, vocab_size=32000, max_position_embeddings=4096, rope_theta=10000.0, tie_word_embeddings=False),
    "smollm2-135m": dict(hidden_size=576, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3, head_dim=64,
                         intermediate_size=1536, vocab_size=49152, max_position_embeddings=8192, rope_theta=100000.0, tie_word_embeddings=True),
}
SHAPES["llama-2-7b-2-layers"] = {**SHAPES["llama-2-7b-8-layers"], "num_hidden_layers": 2}
SHARD = 1 << 30  # bytes


def tensors(c):
    """(name, shape) in the order of a checkpoint."""
    d, f = c["hidden_size"], c["intermediate_size"]
    q, kv = c["num_attention_heads"] * c["head_dim"], c["num_key_value_heads"] * c["head_dim"]
    yield "model.embed_tokens.weight", (c["vocab_size"], d)
    for i in range(c["num_hidden_layers"]):
        for name, shape in (("input_layernorm", (d,)), ("self_attn.q_proj", (q, d)), ("self_attn.k_proj", (kv, d)),
                            ("self_attn.v_proj", (kv, d)), ("self_attn.o_proj", (d, q)), ("post_attention_layernorm", (d,)),
                            ("mlp.gate_proj", (f, d)), ("mlp.up_proj", (f, d)), ("mlp.down_proj", (d, f))):
            yield f"model.layers.{i}.{name}.weight", shape
    yield "model.norm.weight", (d,)
    if not c["tie_word_embeddings"]:
        yield "lm_head.weight", (c["vocab_size"], d)


def values(name, shape):
    """bf16 bits: a norm is 1; a matrix is normal with the deviation that keeps its output at its input's size."""
    if len(shape) == 1:
        return np.full(shape, 0x3F80, np.uint16)
    generator = np.random.Generator(np.random.SFC64(zlib.crc32(name.encode())))
    x = generator.standard_normal(shape[0] * shape[1], np.float32)
    x *= shape[1] ** -0.5
    bits = x.view(np.uint32)
    bits += 0x8000
    return (bits >> 16).astype(np.uint16)


def split(c):
    """Lists of tensors, each of at most SHARD bytes (or one tensor)."""
    shard, total = [], 0
    for name, shape in tensors(c):
        size = 2 * int(np.prod(shape))
        if shard and total + size > SHARD:
            yield shard
            shard, total = [], 0
        shard.append((name, shape, size))
        total += size
    yield shard


def write_shard(path, shard):
    header, at = {"__metadata__": {"format": "pt"}}, 0
    for name, shape, size in shard:
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        for name, shape, _ in shard:
            values(name, shape).tofile(f)


def write_model(directory, c):
    partial = Path(f"{directory}.tmp")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    shards = list(split(c))
    where = {}
    for i, shard in enumerate(shards):
        file = "model.safetensors" if len(shards) == 1 else f"model-{i + 1:05}-of-{len(shards):05}.safetensors"
        write_shard(partial / file, shard)
        where.update({name: file for name, _, _ in shard})
    if len(shards) > 1:
        total = sum(size for shard in shards for _, _, size in shard)
        index = {"metadata": {"total_size": total}, "weight_map": where}
        (partial / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))
    config = dict(architectures=["LlamaForCausalLM"], model_type="llama", hidden_act="silu", rms_norm_eps=1e-5, bos_token_id=1,
                  eos_token_id=2, attention_bias=False, mlp_bias=False, torch_dtype="bfloat16", **c)
    (partial / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    os.replace(partial, directory)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("shape", choices=SHAPES)
    p.add_argument("directory")
    p.add_argument("--context", type=int, help="max_position_embeddings")
    o = p.parse_args()
    c = dict(SHAPES[o.shape])
    c["max_position_embeddings"] = o.context or c["max_position_embeddings"]
    write_model(o.directory, c)


if __name__ == "__main__":
    main()
