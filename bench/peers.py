#!/usr/bin/env python3
"""What kvfold is compared with: PyTorch + Transformers and llama.cpp (xllamacpp), in a virtual environment of their own.

    python3 bench/peers.py setup                        makes the environment, prints its python
    PYTHON bench/peers.py torch MODEL prefill TOKENS    tokens per second, as one JSON line
    PYTHON bench/peers.py torch MODEL decode CONTEXT
    PYTHON bench/peers.py torch MODEL finetune TOKENS   the same of training, with the peak of resident memory
    PYTHON bench/peers.py torch MODEL distill TOKENS    from itself
    PYTHON bench/peers.py llama FILE.gguf prefill TOKENS
    PYTHON bench/peers.py llama FILE.gguf decode CONTEXT
    PYTHON bench/peers.py svd ROWS COLUMNS              seconds of one f32 torch.linalg.svd
    PYTHON bench/peers.py gguf MODEL OUT.gguf [ORIGINAL.gguf]   writes MODEL (bf16) for llama.cpp

Options: --threads N (2), --new N tokens to decode (64), --repeat N (3; the best counts, as for kvfold).
"""
import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kvfold"
PACKAGES = ["torch", "transformers==4.57.*", "safetensors", "gguf", "xllamacpp", "numpy"]


def setup():
    """The environment's python; made at the first call."""
    python = CACHE / "bench-venv" / "bin" / "python"
    ready = CACHE / "bench-venv" / "ready"
    if not ready.exists() or ready.read_text() != "\n".join(PACKAGES):
        print("installing PyTorch, Transformers and xllamacpp for the comparison (about 3 GB)", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", CACHE / "bench-venv"], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *PACKAGES], check=True, stdout=sys.stderr)
        ready.write_text("\n".join(PACKAGES))
    return python


def ids(count, vocabulary):
    """The tokens that every program is fed."""
    return [5 + (i * 7919 + 13) % (vocabulary - 10) for i in range(count)]


# ------------------------------------------------------------------------------------------------ PyTorch


def torch_model(path, threads):
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    return torch, transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16).eval()


def torch_prefill(o):
    torch, model = torch_model(o.model, o.threads)
    tokens = torch.tensor([ids(o.tokens, model.config.vocab_size)])
    seconds = []
    for _ in range(o.repeat + 1):  # the first is the warm-up
        start = time.perf_counter()
        model(tokens, use_cache=True, logits_to_keep=1)
        seconds.append(time.perf_counter() - start)
    return o.tokens / min(seconds[1:])


def torch_decode(o):
    torch, model = torch_model(o.model, o.threads)
    tokens = torch.tensor([ids(o.tokens, model.config.vocab_size)])
    cache = model(tokens, use_cache=True, logits_to_keep=1).past_key_values
    token, seconds = tokens[:, -1:], []
    for _ in range(o.new):
        start = time.perf_counter()
        out = model(token, past_key_values=cache, use_cache=True)
        token = out.logits[:, -1:].argmax(-1)
        seconds.append(time.perf_counter() - start)
    return 1 / statistics.median(seconds)


def torch_train(o, teacher=None):
    """fp32 masters, products in bf16 by autocast, every parameter by AdamW; the median of the steps after the first."""
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    torch.set_num_threads(o.threads)
    model = transformers.AutoModelForCausalLM.from_pretrained(o.model, dtype=torch.float32).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-5, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    tokens, rates = torch.tensor([ids(o.tokens, model.config.vocab_size)]), []
    for _ in range(o.repeat + 1):
        start = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16):
            loss = divergence(torch, model, teacher, tokens) if teacher else model(tokens, labels=tokens, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        rates.append(o.tokens / (time.perf_counter() - start))
    return statistics.median(rates[1:])


def divergence(torch, model, teacher, tokens):
    """KL(teacher || model), a mean over the tokens."""
    with torch.no_grad():
        wanted = teacher(tokens, use_cache=False).logits[0].float().log_softmax(-1)
    given = model(tokens, use_cache=False).logits[0].float().log_softmax(-1)
    return torch.nn.functional.kl_div(given, wanted, log_target=True, reduction="batchmean")


def torch_distill(o):
    import torch
    import transformers

    return torch_train(o, transformers.AutoModelForCausalLM.from_pretrained(o.model, dtype=torch.bfloat16).eval())


def peak_bytes():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


# ------------------------------------------------------------------------------------------------ llama.cpp


def llama_server(o, context):
    import xllamacpp

    p = xllamacpp.CommonParams()
    p.model.path = str(o.model)
    p.n_ctx = context
    p.n_parallel = 1
    p.n_batch = p.n_ubatch = 2048 if o.what == "prefill" else 512
    p.cpuparams.n_threads = p.cpuparams_batch.n_threads = o.threads
    p.n_gpu_layers = 0
    p.verbosity = -1
    p.cache_ram_mib = 0
    return xllamacpp.Server(p)


def gguf_vocabulary(path):
    from gguf import GGUFReader

    fields = GGUFReader(path).fields
    return int(fields[f"{fields['general.architecture'].contents()}.vocab_size"].contents())


def llama_timings(server, prompt, new):
    answer = server.handle_completions({"prompt": prompt, "n_predict": new, "max_tokens": new, "temperature": 0, "samplers": ["temperature"],
                                        "ignore_eos": True, "cache_prompt": False, "timings_per_token": False})
    return answer["timings"]


def llama_prefill(o):
    prompt = ids(o.tokens, gguf_vocabulary(o.model))
    server = llama_server(o, o.tokens + 64)
    return max(llama_timings(server, prompt, 1)["prompt_per_second"] for _ in range(o.repeat + 1))


def llama_decode(o):
    prompt = ids(o.tokens, gguf_vocabulary(o.model))
    server = llama_server(o, o.tokens + o.new + 64)
    return max(llama_timings(server, prompt, o.new)["predicted_per_second"] for _ in range(o.repeat))


# ------------------------------------------------------------------------------------------------ files


def names():
    layer = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
             "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
             "mlp.down_proj": "ffn_down"}
    whole = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}

    def name(key):
        stem = key.removesuffix(".weight")
        if stem in whole:
            return whole[stem] + ".weight"
        _, _, i, rest = stem.split(".", 3)
        return f"blk.{i}.{layer[rest]}.weight"

    return name


def tokenizer_fields(writer, original, vocabulary):
    """Copied from a GGUF of the same model; without one, a vocabulary of that size that is never looked at."""
    from gguf import GGUFReader

    if original:
        for key, field in GGUFReader(original).fields.items():
            if key.startswith("tokenizer."):
                sub = field.types[1] if len(field.types) > 1 else None
                writer.add_key_value(key, field.contents(), field.types[0], sub)
        return
    letters = [chr(c) for c in list(range(33, 127)) + list(range(161, 173)) + list(range(174, 324))]
    tokens = ["<unk>", "<s>", "</s>"] + letters + [f"x{i}" for i in range(vocabulary - 3 - len(letters))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3] * 3 + [1] * (vocabulary - 3))
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)


def write_gguf(o):
    """llama architecture, matrices in BF16, rows of q and k in llama.cpp's order."""
    import gguf
    import torch
    from safetensors.torch import load_file

    config = json.loads((Path(o.model) / "config.json").read_text())
    writer = gguf.GGUFWriter(f"{o.out}.tmp", "llama")
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_rope_dimension_count(head_dim)
    writer.add_vocab_size(config["vocab_size"])
    tokenizer_fields(writer, o.original, config["vocab_size"])
    name = names()
    for shard in sorted(Path(o.model).glob("*.safetensors")):
        for key, w in load_file(shard).items():
            for part, count in (("q_proj", heads), ("k_proj", kv_heads)):
                if part in key:
                    w = w.reshape(count, 2, head_dim // 2, -1).swapaxes(1, 2).reshape(w.shape)
            if w.dim() == 1:
                writer.add_tensor(name(key), w.float().numpy())
            else:
                data = w.to(torch.bfloat16).contiguous().view(torch.uint8).numpy()
                writer.add_tensor(name(key), data, raw_dtype=gguf.GGMLQuantizationType.BF16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    os.replace(f"{o.out}.tmp", o.out)


def torch_svd(o):
    import torch

    torch.set_num_threads(o.threads)
    torch.manual_seed(0)
    a = torch.randn(o.rows, o.columns)
    start = time.perf_counter()
    torch.linalg.svd(a, full_matrices=False)
    return time.perf_counter() - start


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = p.add_subparsers(dest="command", required=True)
    commands.add_parser("setup")
    figures = {"torch": {"prefill": torch_prefill, "decode": torch_decode, "finetune": torch_train, "distill": torch_distill},
               "llama": {"prefill": llama_prefill, "decode": llama_decode}}
    for peer, what in figures.items():
        c = commands.add_parser(peer)
        c.add_argument("model")
        c.add_argument("what", choices=what)
        c.add_argument("tokens", type=int)
        c.add_argument("--new", type=int, default=64)
        c.add_argument("--repeat", type=int, default=3)
        c.add_argument("--threads", type=int, default=2)
    c = commands.add_parser("svd")
    c.add_argument("rows", type=int)
    c.add_argument("columns", type=int)
    c.add_argument("--threads", type=int, default=2)
    c = commands.add_parser("gguf")
    c.add_argument("model")
    c.add_argument("out")
    c.add_argument("original", nargs="?")
    o = p.parse_args()
    if o.command == "setup":
        print(setup())
    elif o.command == "gguf":
        write_gguf(o)
    elif o.command == "svd":
        print(json.dumps({"seconds": torch_svd(o)}))
    else:
        rate = figures[o.command][o.what](o)
        print(json.dumps({"tokens_per_second": rate, "peak_bytes": peak_bytes()}))


if __name__ == "__main__":
    main()
