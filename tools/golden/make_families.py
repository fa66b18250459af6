#!/usr/bin/env python3
"""Tiny random models of every family, with the logits that Hugging Face computes for them.

    python -m venv venv && venv/bin/pip install torch 'transformers==4.57.*' safetensors numpy gguf
    venv/bin/python tools/golden/make_families.py [NAME ...]

Each case becomes tests/fixtures/families/NAME/: config.json, generation_config.json and model.safetensors as
save_pretrained writes them (or model.gguf), and expected.safetensors:

    tokens       [T] i64
    logits       [T, vocabulary] f32   one forward pass, eager attention, f32
    hidden.I     [T, hidden] f32       input of layer I; I = layers: output of the last one, before the final norm
    step_logits  [T, vocabulary] f32   token by token with a cache; only where that differs (RoPE that depends on the length)

Norm weights, biases and matrices are drawn wide enough that a wrong one shows in every logit.
"""
import json
import shutil
import sys
import zlib
from pathlib import Path

import gguf
import numpy as np
import torch
import transformers
from gguf.quants import dequantize, quantize
from safetensors.torch import load_file, save_file

OUT = Path(__file__).resolve().parents[2] / "tests" / "fixtures" / "families"
VOCABULARY = 48


def shape(**changes):
    base = dict(hidden_size=32, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                vocab_size=VOCABULARY, max_position_embeddings=64, rms_norm_eps=1e-5, tie_word_embeddings=True,
                bos_token_id=1, eos_token_id=2, pad_token_id=None, attn_implementation="eager")
    return {**base, **changes}


def small(**changes):
    """Enough to see a rotation: four pairs a head."""
    return shape(**{**dict(hidden_size=16, intermediate_size=20, num_attention_heads=2, num_key_value_heads=1), **changes})


def latent(**changes):
    return shape(**{**dict(hidden_size=24, num_attention_heads=3, num_key_value_heads=3, kv_lora_rank=12, q_lora_rank=20, qk_rope_head_dim=8, qk_nope_head_dim=6,
                           v_head_dim=10, n_routed_experts=2, first_k_dense_replace=2, rms_norm_eps=1e-2, head_dim=8,
                           tie_word_embeddings=False), **changes})


def randomise(model, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            if "norm" in name:
                p.copy_(1 + 0.2 * noise)
            elif p.dim() == 1:
                p.copy_(0.3 * noise)
            elif "embed_tokens" in name:
                p.copy_(noise)
            else:
                p.copy_(noise * 1.5 / p.shape[1] ** 0.5)


def cast(model, dtype):
    """Parameters only: the frequencies of RoPE are buffers and stay f32, as after loading."""
    for p in model.parameters():
        p.data = p.data.to(dtype)


def expected(model, seed, count):
    """The tensors of expected.safetensors."""
    tokens = torch.randint(3, model.config.vocab_size, (count,), generator=torch.Generator().manual_seed(seed + 1))
    hidden = []
    hooks = [layer.register_forward_pre_hook(lambda _, args: hidden.append(args[0][0].clone())) for layer in model.model.layers]
    hooks.append(model.model.norm.register_forward_pre_hook(lambda _, args: hidden.append(args[0][0].clone())))
    with torch.no_grad():
        logits = model(tokens[None], use_cache=False).logits[0]
        for hook in hooks:
            hook.remove()
        cache, steps = transformers.DynamicCache(), []
        for t in range(count):
            steps.append(model(tokens[None, t : t + 1], past_key_values=cache, cache_position=torch.tensor([t])).logits[0, 0])
    steps = torch.stack(steps)
    out = {"tokens": tokens, "logits": logits.float().contiguous()}
    out.update({f"hidden.{i}": h.float().contiguous() for i, h in enumerate(hidden)})
    if (steps - logits).abs().max() > 1e-4 * logits.abs().max():
        out["step_logits"] = steps.float().contiguous()
    return out


def note(name, result):
    print(f"{name:28} max |logit| {result['logits'].abs().max():6.2f}{'  (steps differ)' if 'step_logits' in result else ''}")


def make(name, model_type, options, count=20, dtype=torch.float32, after=None, shard="5GB"):
    """One Hugging Face directory. after(directory) rewrites what was saved."""
    seed = zlib.crc32(name.encode())
    config = transformers.AutoConfig.for_model(model_type, **options)
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    randomise(model, seed)
    cast(model, dtype)
    directory = OUT / name
    shutil.rmtree(directory, ignore_errors=True)
    model.save_pretrained(directory, max_shard_size=shard)
    cast(model, torch.float32)
    result = expected(model, seed, count)
    if after:
        after(directory)
    save_file(result, directory / "expected.safetensors")
    note(name, result)
    return model


def edit_config(change):
    def after(directory):
        path = directory / "config.json"
        config = json.loads(path.read_text())
        change(config)
        path.write_text(json.dumps(config, indent=2) + "\n")
    return after


def new_style(config):
    """As Transformers 5 writes it: one rope_parameters object, `dtype`."""
    rope = dict(config.pop("rope_scaling"))
    rope["rope_theta"] = config.pop("rope_theta")
    config["rope_parameters"] = rope
    config["transformers_version"] = "5.0.0"


def first_llama(config):
    """The keys that the first Llama checkpoints had, and the old name of the scaling's type."""
    keep = ("architectures", "bos_token_id", "eos_token_id", "hidden_act", "hidden_size", "initializer_range",
            "intermediate_size", "model_type", "num_attention_heads", "num_hidden_layers", "rms_norm_eps", "use_cache", "vocab_size")
    kept = {key: config[key] for key in keep}
    config.clear()
    config.update(kept, torch_dtype="float32", transformers_version="4.27.0.dev0")


def old_scaling(config):
    config["rope_scaling"] = {"type": config["rope_scaling"]["rope_type"], "factor": config["rope_scaling"]["factor"]}
    config["torch_dtype"] = config.pop("dtype")


def head_only(directory):
    """The tied matrix under the name of the head."""
    path = directory / "model.safetensors"
    tensors = load_file(path)
    tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")
    save_file(tensors, path, metadata={"format": "pt"})


LLAMA3 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32)
YARN = dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=16)
LONG = dict(rope_type="longrope", short_factor=[1.0, 1.05, 1.2, 1.4], long_factor=[1.0, 1.7, 2.9, 5.3])


def directories():
    """name: arguments of make(). Half of them are stored in bf16, to be small."""
    half = dict(dtype=torch.bfloat16)
    cases = {
        "llama1": ("llama", shape(num_key_value_heads=4, tie_word_embeddings=False)),
        "llama1_old_config": ("llama", small(num_key_value_heads=2, tie_word_embeddings=False, rms_norm_eps=1e-6), dict(after=edit_config(first_llama))),
        "llama2_gqa_tied": ("llama", shape()),
        "llama_head_dim": ("llama", small(head_dim=12, num_key_value_heads=2, num_attention_heads=4)),
        "llama3": ("llama", small(rope_theta=500.0, rope_scaling=LLAMA3, max_position_embeddings=256, eos_token_id=[2, 5]), half),
        "llama3_rope_parameters": ("llama", small(rope_theta=500.0, rope_scaling=LLAMA3, max_position_embeddings=256), dict(after=edit_config(new_style))),
        "llama_linear": ("llama", small(rope_scaling=dict(rope_type="linear", factor=2.5))),
        "llama_linear_old_name": ("llama", small(rope_scaling=dict(rope_type="linear", factor=4.0)), dict(after=edit_config(old_scaling))),
        "llama_dynamic": ("llama", small(rope_scaling=dict(rope_type="dynamic", factor=2.0), max_position_embeddings=12)),
        "llama_yarn": ("llama", small(rope_theta=100.0, rope_scaling=YARN), half),
        "llama_yarn_options": ("llama", small(rope_theta=100.0, rope_scaling={**YARN, "beta_fast": 4.0, "beta_slow": 0.5, "attention_factor": 1.3, "truncate": False}), half),
        "llama_yarn_mscale": ("llama", small(rope_theta=100.0, rope_scaling={**YARN, "mscale": 1.2, "mscale_all_dim": 0.7}), half),
        "llama_longrope_short": ("llama", small(rope_scaling=LONG, max_position_embeddings=128, original_max_position_embeddings=32), half),
        "llama_longrope_long": ("llama", small(rope_scaling=LONG, max_position_embeddings=128, original_max_position_embeddings=12), half),
        "llama_longrope_factor": ("llama", small(rope_scaling={**LONG, "factor": 3.0, "attention_factor": 1.1}, max_position_embeddings=12), half),
        "llama_biases": ("llama", small(attention_bias=True, mlp_bias=True), half),
        "llama_bf16": ("llama", shape(), dict(dtype=torch.bfloat16)),
        "llama_f16": ("llama", shape(tie_word_embeddings=False), dict(dtype=torch.float16)),
        "llama_sharded": ("llama", small(num_hidden_layers=3), dict(shard="12KB")),
        "llama_only_lm_head": ("llama", small(), dict(after=head_only)),
        "smollm3": ("smollm3", small(num_hidden_layers=3, no_rope_layers=[1, 0, 1], rope_theta=200.0)),
        "smollm3_interval": ("smollm3", small(num_hidden_layers=3, no_rope_layer_interval=2, attention_bias=True), half),
        "mistral_window": ("mistral", shape(sliding_window=6, head_dim=None)),
        "mistral_head_dim": ("mistral", small(sliding_window=None, head_dim=12), half),
        "qwen2": ("qwen2", shape(tie_word_embeddings=False, rms_norm_eps=1e-6)),
        "qwen2_window_layers": ("qwen2", small(num_hidden_layers=3, use_sliding_window=True, sliding_window=5, max_window_layers=1)),
        "qwen3": ("qwen3", small(head_dim=12, rms_norm_eps=1e-3)),
        "qwen3_bias_gqa": ("qwen3", small(num_attention_heads=4, num_key_value_heads=2, head_dim=8, attention_bias=True, tie_word_embeddings=False), half),
        "deepseek_v2": ("deepseek_v2", latent()),
        "deepseek_v2_full_q": ("deepseek_v2", latent(q_lora_rank=None, attention_bias=True), half),
        "deepseek_v2_yarn": ("deepseek_v2", latent(rope_theta=100.0, rope_scaling={**YARN, "mscale": 0.7, "mscale_all_dim": 0.7}), half),
        "deepseek_v3": ("deepseek_v3", latent(attention_bias=True)),
        "deepseek_v3_full_q": ("deepseek_v3", latent(q_lora_rank=None, tie_word_embeddings=True), half),
        "deepseek_v3_half_split": ("deepseek_v3", latent(rope_interleave=False), half),
        "deepseek_v3_yarn": ("deepseek_v3", latent(rope_theta=100.0, rope_scaling={**YARN, "mscale": 1.0, "mscale_all_dim": 1.0, "beta_fast": 32, "beta_slow": 1}), half),
        "deepseek_v3_yarn_mscales": ("deepseek_v3", latent(rope_theta=100.0, rope_scaling={**YARN, "mscale": 1.3, "mscale_all_dim": 0.6}), half),
    }
    return {name: (case[0], case[1], case[2] if len(case) > 2 else {}) for name, case in cases.items()}


# ------------------------------------------------------------------------------------------------------------ GGUF

GGUF_NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}


def gguf_name(name):
    stem, kind = name.rsplit(".", 1)
    if stem.startswith("model.layers."):
        _, _, layer, rest = stem.split(".", 3)
        return f"blk.{layer}.{GGUF_NAMES[rest]}.{kind}"
    return f"{GGUF_NAMES[stem]}.{kind}"


def permute(w, heads):
    """Rows of q and k as llama.cpp's converter orders them for its interleaved rotation."""
    return w.reshape(heads, 2, w.shape[0] // heads // 2, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)


def unpermute(w, heads):
    return w.reshape(heads, w.shape[0] // heads // 2, 2, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)


def metadata(writer, config, arch):
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_vocab_size(config.vocab_size)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if arch == "llama":
        writer.add_rope_dimension_count(head_dim)
    if head_dim != config.hidden_size // config.num_attention_heads:
        writer.add_key_length(head_dim)
        writer.add_value_length(head_dim)
    tokens = ["<unk>", "<s>", "</s>"] + [chr(33 + i) for i in range(config.vocab_size - 3)]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3] * 3 + [1] * (config.vocab_size - 3))
    writer.add_token_merges([f"{a} {b}" for a, b in (("a", "b"),) if a + b in tokens])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)


K_BLOCKS = {  # bytes of a block before and after its f16 scales, which are drawn apart: (type, bytes, scale offsets, centre)
    gguf.GGMLQuantizationType.Q4_K: (144, (0, 2), 7.5),
    gguf.GGMLQuantizationType.Q5_K: (176, (0, 2), 15.5),
    gguf.GGMLQuantizationType.Q6_K: (210, (208,), 1.0),
}


def random_blocks(kind, rows, columns, generator):
    """K-quants have no encoder in gguf-py: random bytes with small scales are as good a matrix as any."""
    size, scales, centre = K_BLOCKS[kind]
    blocks = generator.integers(0, 256, (rows * columns // 256, size), dtype=np.uint8)
    for place, offset in enumerate(scales):
        d = generator.uniform(0.5, 1.5, len(blocks)) * {0: 6e-3 / centre, 1: 6e-3}[place] / 6
        if kind == gguf.GGMLQuantizationType.Q6_K:
            d = generator.uniform(0.5, 1.5, len(blocks)) * 5e-5
        blocks[:, offset : offset + 2] = d.astype(np.float16).view(np.uint8).reshape(-1, 2)
    return blocks.reshape(rows, columns // 256 * size)


QUANTISED = ["Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K", "F16", "BF16"]


def encode(kind, w, generator):
    """(bytes to store, the f32 matrix that they mean)"""
    q = gguf.GGMLQuantizationType[kind]
    data = random_blocks(q, *w.shape, generator) if q in K_BLOCKS else quantize(w, q)
    return data, dequantize(data, q).reshape(w.shape).astype(np.float32)


def make_gguf(name, arch, options, kinds=None, factors=None, count=20):
    """kinds: {tensor's GGUF name: type}; else all F32. factors: llama3 frequency divisors written as rope_freqs."""
    seed = zlib.crc32(name.encode())
    generator = np.random.default_rng(seed)
    config = transformers.AutoConfig.for_model(arch, **options)
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    randomise(model, seed)
    directory = OUT / name
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    writer = gguf.GGUFWriter(directory / "model.gguf", arch)
    metadata(writer, config, arch)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for key, p in model.named_parameters():
        target, w = gguf_name(key), p.detach().numpy()
        h = heads.get(key.split(".")[-2]) if arch == "llama" else None
        w = permute(w, h) if h else w
        kind = (kinds or {}).get(target, "F32")
        if kind == "F32":
            writer.add_tensor(target, np.ascontiguousarray(w))
            continue
        data, meant = encode(kind, np.ascontiguousarray(w), generator)
        writer.add_tensor(target, data, raw_dtype=gguf.GGMLQuantizationType[kind])
        with torch.no_grad():
            p.copy_(torch.from_numpy(np.ascontiguousarray(unpermute(meant, h) if h else meant)))
    if factors is not None:
        writer.add_tensor("rope_freqs.weight", np.asarray(factors(config, model), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    result = expected(model, seed, count)
    save_file(result, directory / "expected.safetensors")
    note(name, result)


def llama3_factors(config, model):
    """What divides the plain frequencies to give the scaled ones."""
    plain = config.rope_theta ** -(np.arange(0, config.head_dim, 2) / config.head_dim)
    return plain / model.model.rotary_emb.inv_freq.numpy()


def mixed_kinds():
    matrices = [f"blk.{layer}.{m}.weight" for layer in range(2) for m in
                ("attn_q", "attn_k", "attn_v", "ffn_gate", "ffn_up")]
    kinds = dict(zip(matrices, QUANTISED[5:8] + QUANTISED[:2] + QUANTISED[2:5] + QUANTISED[8:]))
    short = [f"blk.{layer}.{m}.weight" for layer in range(2) for m in ("attn_output", "ffn_down")]  # rows of 128
    kinds.update(zip(short, ["Q5_1", "Q4_0", "Q8_0", "Q5_0"]))
    kinds["token_embd.weight"] = "Q6_K"
    kinds["output.weight"] = "Q4_K"
    return kinds


def files():
    """name: arguments of make_gguf()."""
    wide = shape(hidden_size=256, intermediate_size=128, num_attention_heads=4, num_key_value_heads=2, head_dim=32, tie_word_embeddings=False)
    return {
        "gguf_llama": ("llama", shape()),
        "gguf_llama3_factors": ("llama", small(rope_theta=500000.0, rope_scaling={**LLAMA3, "original_max_position_embeddings": 8192}, max_position_embeddings=131072,
                                                tie_word_embeddings=False), None, llama3_factors),
        "gguf_qwen2": ("qwen2", small(num_attention_heads=4, num_key_value_heads=2, hidden_size=32)),
        "gguf_qwen3": ("qwen3", small(head_dim=12)),
        "gguf_llama_quantised": ("llama", wide, mixed_kinds(), None, 12),
    }


def main():
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    wanted = sys.argv[1:]
    for name, (model_type, options, extra) in directories().items():
        if not wanted or name in wanted:
            make(name, model_type, options, **extra)
    for name, arguments in files().items():
        if not wanted or name in wanted:
            make_gguf(name, *arguments)


if __name__ == "__main__":
    main()
