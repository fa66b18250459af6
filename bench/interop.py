#!/usr/bin/env python3
"""Do stock engines compute what kvfold computes? Converts MODEL, exports it, and has Transformers and llama.cpp run it.

    python3 bench/interop.py [MODEL ...] [--kvfold BINARY] [--methods x-ecomla,fold] [--json OUT]

MODEL defaults to examples/books-7m. Both engines come from the package registry into the environment of bench/peers.py; nothing of
them is patched. The same tokens go to kvfold (f32) and to the engine; limits (relative error of the logits for Transformers, largest
difference of the 20 likeliest tokens' log-probabilities over 200 greedy steps for llama.cpp) are the columns' own. Exit 1 when
one is exceeded or the tokenizers disagree.
"""
import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TEXT = ROOT / "examples/books-7m/held-out.txt"
STEPS = 200
SETTINGS = {"x-ecomla": [], "fold": ["--set", "rope_pairs=4", "--set", "selection=greedy"]}
# dtype of the file, cache of llama.cpp, largest difference of log-probabilities; bf16: what rounding the weights alone does
GGUF = [("f32", "f32", 1e-3), ("f32", "f16", 0.05), ("f16", "f32", 0.05), ("bf16", "f32", 0.5)]


def kvfold(o, *arguments):
    done = subprocess.run([o.kvfold, *map(str, arguments)], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"kvfold {' '.join(map(str, arguments))}: {done.stderr.strip()}")
    return json.loads(done.stdout) if "--json" in arguments else None


def engine(python, job):
    """Runs one of the functions below in the environment that has the engines."""
    done = subprocess.run([python, __file__, "--engine", json.dumps(job)], capture_output=True, text=True)
    if done.returncode:
        return {"failed": (done.stderr.strip().splitlines() or ["no message"])[-1]}
    return json.loads(done.stdout.splitlines()[-1])


# ------------------------------------------------------------------------------------------------ engines


def reference(path):
    from safetensors.numpy import load_file

    return load_file(path)["logits"].astype("float64")


def relative(found, expected):
    import numpy as np

    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def transformers_run(job):
    import torch
    import transformers

    torch.set_num_threads(job["threads"])
    torch.set_grad_enabled(False)
    model = transformers.AutoModelForCausalLM.from_pretrained(job["path"], dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(job["path"])
    ids = torch.tensor([job["ids"]])
    logits = model(ids).logits[0].double().numpy()
    new = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=STEPS, do_sample=False)[0, len(job["ids"]):].tolist()
    return {"class": type(model).__name__, "version": transformers.__version__, "relative": relative(logits, reference(job["logits"])),
            "tokens": tokenizer(job["text"])["input_ids"] == job["ids"], "new": new}


def llama_run(job):
    import xllamacpp

    p = xllamacpp.CommonParams()
    p.model.path = job["path"]
    p.n_ctx = len(job["ids"]) + STEPS + 16
    p.n_parallel = 1
    p.n_gpu_layers = 0
    p.verbosity = -1
    p.cache_ram_mib = 0
    p.cpuparams.n_threads = p.cpuparams_batch.n_threads = job["threads"]
    p.cache_type_k = p.cache_type_v = getattr(xllamacpp.ggml_type, "GGML_TYPE_" + job["cache"].upper())
    if job["cache"] == "f32":  # flash attention rounds keys and values to f16 whatever the cache holds
        p.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    server = xllamacpp.Server(p)
    ask = {"temperature": 0, "samplers": ["temperature"], "cache_prompt": False, "logprobs": 20}
    answer = server.handle_completions({**ask, "prompt": job["ids"], "n_predict": STEPS, "max_tokens": STEPS})
    text = server.handle_completions({**ask, "prompt": job["text"], "n_predict": 1, "max_tokens": 1})
    steps = answer["choices"][0]["logprobs"]["content"]
    return {"version": xllamacpp.__version__, "new": [s["id"] for s in steps],
            "top": [{t["id"]: t["logprob"] for t in s["top_logprobs"]} for s in steps],
            "tokens": text["usage"]["prompt_tokens"] == len(job["ids"])
            and abs(text["choices"][0]["logprobs"]["content"][0]["logprob"] - steps[0]["logprob"]) < 1e-3}


# ------------------------------------------------------------------------------------------------ comparison


def same(a, b):
    """How many tokens two greedy texts have in common from their start."""
    count = 0
    while count < min(len(a), len(b)) and a[count] == b[count]:
        count += 1
    return count


def log_probability_difference(o, python, model, ids, answer, scratch):
    """kvfold's log-probabilities along the engine's own text against what the engine said."""
    kvfold(o, "logits", model, "--tokens", ",".join(map(str, ids + answer["new"])), "--out", scratch, "--compute", "f32", "--json")
    return engine(python, {"run": "difference", "logits": str(scratch), "from": len(ids) - 1, "top": answer["top"]})["difference"]


def difference_run(job):
    import numpy as np

    logits = reference(job["logits"])[job["from"]:]
    worst = 0.0
    for row, top in zip(logits, job["top"]):
        log_sum = np.log(np.exp(row - row.max()).sum()) + row.max()
        worst = max([worst, *(abs(row[int(i)] - log_sum - p) for i, p in top.items())])
    return {"difference": float(worst)}


def report(o, rows, row):
    row["ok"] = "failed" not in row and row["error"] <= row["limit"] and row["tokens"]
    rows.append(row)
    what = row.get("failed") or f"{row['measure']} {row['error']:.2g} (at most {row['limit']:g}), greedy {row['same']} of {row['of']} tokens the same" + (
        "" if row["tokens"] else ", the tokenizer DIFFERS")
    print(f"{'ok ' if row['ok'] else 'BAD'} {row['model']} {row['method']}: {row['engine']} {row.get('version', '')} {row['file']}: {what}", flush=True)


def check_transformers(o, python, rows, base, made, d):
    kvfold(o, "export", made["path"], d / "hf", "--format", "deepseek-v3", "--dtype", "f32", "--json")
    answer = engine(python, {"run": "transformers", "path": str(d / "hf"), "threads": o.threads, **made["prompt"]})
    row = {**base, "engine": "Transformers", "file": "directory f32", "measure": "relative error of the logits", "limit": 1e-4}
    if "failed" not in answer:
        row.update(error=answer["relative"], same=same(answer["new"], made["new"]), of=len(made["new"]))
        row.update({k: answer[k] for k in ("class", "version", "tokens")})
    report(o, rows, {**row, **({"failed": answer["failed"]} if "failed" in answer else {})})


def check_llama(o, python, rows, base, made, d):
    for dtype, cache, limit in GGUF:
        path = d / f"model-{dtype}.gguf"
        if not path.exists():
            kvfold(o, "export", made["path"], path, "--format", "gguf", "--dtype", dtype, "--json")
        answer = engine(python, {"run": "llama", "path": str(path), "cache": cache, "threads": o.threads, **made["prompt"]})
        row = {**base, "engine": "llama.cpp (xllamacpp)", "file": f"gguf {dtype}, cache {cache}", "measure": "log-probabilities differ by",
               "limit": limit}
        if "failed" not in answer:
            row.update(error=log_probability_difference(o, python, made["path"], made["prompt"]["ids"], answer, d / "check.safetensors"),
                       same=same(answer["new"], made["new"]), of=len(made["new"]), version=answer["version"], tokens=answer["tokens"])
        report(o, rows, {**row, **({"failed": answer["failed"]} if "failed" in answer else {})})


def check(o, python, model, method, rows):
    with tempfile.TemporaryDirectory() as scratch:
        d = Path(scratch)
        text = TEXT.read_text()[:600].rstrip()
        (d / "prompt.txt").write_text(text)
        (d / "calibration.txt").write_text(TEXT.read_text()[600:])
        calibration = ["--calibration", d / "calibration.txt", "--calibration-tokens", 8192] if method == "fold" else []
        kvfold(o, "convert", model, d / "model", "--method", method, "--cache", "50%", "--dtype", "f32", *calibration, *SETTINGS[method], "--json")
        ids = kvfold(o, "tokenize", d / "model", "--file", d / "prompt.txt", "--special", "--json")["ids"]
        kvfold(o, "logits", d / "model", "--tokens", ",".join(map(str, ids)), "--out", d / "logits.safetensors", "--compute", "f32", "--json")
        new = kvfold(o, "generate", d / "model", "--prompt-file", d / "prompt.txt", "--max-new-tokens", STEPS, "--greedy", "--compute", "f32", "--json")
        made = {"path": d / "model", "new": new["ids"], "prompt": {"text": text, "ids": ids, "logits": str(d / "logits.safetensors")}}
        base = {"model": Path(model).name, "method": method}
        check_transformers(o, python, rows, base, made, d)
        check_llama(o, python, rows, base, made, d)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("models", nargs="*", default=[str(ROOT / "examples/books-7m")])
    p.add_argument("--kvfold", default=str(ROOT / "build/release/bin/kvfold"))
    p.add_argument("--methods", default=",".join(SETTINGS))
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--json", help="write the rows there")
    p.add_argument("--engine", help=argparse.SUPPRESS)
    o = p.parse_args()
    if o.engine:
        job = json.loads(o.engine)
        print(json.dumps(globals()[job["run"] + "_run"](job)))
        return 0
    sys.path.insert(0, str(ROOT / "bench"))
    import peers

    python, rows = peers.setup(), []
    for model in o.models:
        for method in o.methods.split(","):
            check(o, python, model, method, rows)
    if o.json:
        Path(o.json).write_text(json.dumps(rows, indent=2) + "\n")
    return 0 if all(row["ok"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
