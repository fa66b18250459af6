#!/usr/bin/env python3
"""The benchmarks of `./dev bench NAME [--json]`.

    prefill        SmolLM2-135M, 2,048 and 512 tokens, against oneDNN's own matmul, PyTorch + Transformers and llama.cpp
    decode         Llama-3.2-1B's shape and SmolLM2-135M, token by token, against the memory's bandwidth and the same peers
    long-context   absorbed latent attention at 8k and 32k tokens of context against the grouped original
    convert        seconds per layer and peak memory on eight layers of Llama-2-7B's shape; SmolLM2-135M whole
    train          SmolLM2-135M, 1,024 tokens a step, fine-tuned and distilled from itself, against oneDNN's own matmul and PyTorch +
                   Transformers, with everyone's peak memory; ours at longer contexts too

Everyone is run in turn, round after round, and the median of the rounds counts, because machines are noisy. With --json one
object is printed: ours, peers (name: figure), limit, unit, and all cases with the same keys; the first is the headline.
Models and the peers' environment stand in ${XDG_CACHE_HOME:-~/.cache}/kvfold. Options: --build DIR (build/release),
--no-build, --rounds N (3), --threads N (all), --only TEXT (the cases whose name has TEXT in it).
"""
import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

sys.dont_write_bytecode = True  # leaves no __pycache__ in the source tree
import peers  # noqa: E402

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
STORE = peers.CACHE / "bench"
SMOLLM2 = peers.CACHE / "SmolLM2-135M-Instruct.Q4_1.gguf"


class Bench:
    """Programs, models and options of one run."""

    def __init__(self, o):
        self.o = o
        self.build = (ROOT / o.build).resolve()
        self.kvfold = self.build / "bin" / "kvfold"
        STORE.mkdir(parents=True, exist_ok=True)
        if not o.no_build:
            if not (self.build / "CMakeCache.txt").exists():
                self.sh("cmake", "--preset", "release", "-B", self.build)
            self.sh("cmake", "--build", self.build, "--target", "kvfold-cli", "benches")
        self.python = peers.setup()

    def sh(self, *command):
        """Runs a program whose output is for people."""
        subprocess.run([str(c) for c in command], check=True, stdout=sys.stderr, cwd=ROOT)

    def ask(self, *command):
        """Runs a program that prints one JSON object."""
        done = subprocess.run([str(c) for c in command], check=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        return json.loads(done.stdout.splitlines()[-1])

    # ---------------------------------------------------------------------------------------- figures

    def ours(self, model, prompt, new, repeat=3):
        return self.ask(self.build / "bin" / "bench_run_model", model, prompt, new, repeat, self.o.threads)

    def peer(self, name, model, what, tokens):
        return self.ask(self.python, HERE / "peers.py", name, model, what, tokens, "--threads", self.o.threads)["tokens_per_second"]

    def bandwidth(self):
        return self.ask(self.build / "bin" / "bench_read_bandwidth", self.o.threads)["bytes_per_second"]

    def rounds(self, runs):
        """{name: median of what its function gives}, everyone in turn."""
        figures = {name: [] for name in runs}
        for i in range(self.o.rounds):
            for name, run in runs.items():
                figures[name].append(run())
                print(f"  round {i + 1}/{self.o.rounds} {name}: {figures[name][-1]:.4g}", file=sys.stderr)
        return {name: statistics.median(f) for name, f in figures.items()}

    # ---------------------------------------------------------------------------------------- models

    def made(self, path, make):
        """path, made once: make(temporary path) and a rename."""
        if not path.exists():
            print(f"making {path}", file=sys.stderr)
            temporary = Path(f"{path}.making{path.suffix}")
            shutil.rmtree(temporary, ignore_errors=True)
            make(temporary)
            os.replace(temporary, path)
        return path

    def random(self, shape, context=None):
        extra = ["--context", context] if context else []
        name = f"{shape}-{context}" if context else shape
        return self.made(STORE / name, lambda to: self.sh(self.python, HERE / "make_random.py", shape, to, *extra))

    def smollm2(self):
        """bf16, in the Hugging Face layout."""
        if not SMOLLM2.exists():
            sys.exit(f"bench: {SMOLLM2} is not there; ./dev fetch gets it")
        return self.made(STORE / "SmolLM2-135M-bf16",
                         lambda to: self.sh(self.kvfold, "convert", SMOLLM2, to, "--method", "none", "--dtype", "bf16"))

    def gguf(self, model, original=None):
        extra = [original] if original else []
        return self.made(Path(f"{model}.gguf"), lambda to: self.sh(self.python, HERE / "peers.py", "gguf", model, to, *extra))

    def latent(self, model, *options):
        """model converted by this build (made anew each time: the converter may have changed)."""
        to = STORE / f"{model.name}-latent"
        shutil.rmtree(to, ignore_errors=True)
        self.sh(self.kvfold, "convert", model, to, *options)
        return to


def read_config(model):
    return json.loads((model / "config.json").read_text())


def case(name, unit, ours, others, limit, **more):
    return dict(name=name, ours=ours, peers=others, limit=limit, unit=unit, **more)


# ------------------------------------------------------------------------------------------------ prefill


def products(config, tokens):
    """M:N:K:COUNT of every matmul of a prefill: q, k, v and gate, up stacked; the head for the last token only."""
    d, f, layers = config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"]
    head_dim = config.get("head_dim") or d // config["num_attention_heads"]
    q, kv = config["num_attention_heads"] * head_dim, config["num_key_value_heads"] * head_dim
    shapes = [(tokens, q + 2 * kv, d, layers), (tokens, d, q, layers), (tokens, 2 * f, d, layers), (tokens, d, f, layers),
              (1, config["vocab_size"], d, 1)]
    return [":".join(map(str, s)) for s in shapes]


def attention_products(config, tokens):
    """The same of Q K^T and P V, a head at a time: 512 queries against the keys that they see on average."""
    heads, layers, rows = config["num_attention_heads"], config["num_hidden_layers"], min(tokens, 512)
    d, keys = config.get("head_dim") or config["hidden_size"] // heads, (tokens + 1) // 2
    count = layers * heads * tokens // rows
    return [f"{rows}:{keys}:{d}:{count}", f"{rows}:{d}:{keys}:{count}"]


def prefill_case(b, name, tokens):
    model = b.smollm2()
    file = b.gguf(model, SMOLLM2)
    config = read_config(model)
    shapes = products(config, tokens)
    compute = b.ours(model, 8, 0, 1)["compute"]

    def onednn(list_of_shapes):
        return b.ask(b.build / "bin" / "bench_onednn_peak", compute, b.o.threads, *list_of_shapes)["seconds"]

    figures = b.rounds({
        "kvfold": lambda: b.ours(model, tokens, 0)["prefill_tokens_per_second"],
        "PyTorch + Transformers": lambda: b.peer("torch", model, "prefill", tokens),
        "llama.cpp": lambda: b.peer("llama", file, "prefill", tokens),
        "oneDNN": lambda: tokens / onednn(shapes),
        "oneDNN with attention": lambda: tokens / onednn(shapes + attention_products(config, tokens)),
    })
    ours, limit, whole = figures.pop("kvfold"), figures.pop("oneDNN"), figures.pop("oneDNN with attention")
    return case(name, "prefill tokens/s", ours, figures, limit, compute=compute, limit_with_attention=whole,
                share_with_attention=ours / whole)


def prefill(b):
    for tokens in (2048, 512):
        yield f"SmolLM2-135M, {tokens} tokens", lambda name, tokens=tokens: prefill_case(b, name, tokens)


# ------------------------------------------------------------------------------------------------ decode


def decode_case(b, name, model, original, context):
    file = b.gguf(model, original)
    seen = {}

    def ours():
        seen.update(b.ours(model, context, 64))
        return seen["decode_tokens_per_second"]

    figures = b.rounds({
        "kvfold": ours,
        "PyTorch + Transformers": lambda: b.peer("torch", model, "decode", context),
        "llama.cpp": lambda: b.peer("llama", file, "decode", context),
        "bandwidth": b.bandwidth,
    })
    rate, bandwidth = figures.pop("kvfold"), figures.pop("bandwidth")
    return case(name, "decode tokens/s", rate, figures, bandwidth / (seen["weight_bytes"] + seen["cache_bytes"]),
                read_bandwidth=bandwidth, weight_bytes=seen["weight_bytes"], cache_bytes=seen["cache_bytes"])


def decode(b):
    yield "Llama-3.2-1B's shape, context 64", lambda name: decode_case(b, name, b.random("llama-3.2-1b"), None, 64)
    for context in (64, 512, 2048):
        yield (f"SmolLM2-135M, context {context}",
               lambda name, context=context: decode_case(b, name, b.smollm2(), SMOLLM2, context))


# ------------------------------------------------------------------------------------------------ long context


def long_case(b, name, model, context, repeat, *options):
    latent = b.latent(model, *options)
    seen = {}

    def run(key, path):
        seen[key] = b.ours(path, context, 24, repeat)
        return seen[key]["decode_tokens_per_second"]

    figures = b.rounds({"kvfold": lambda: run("latent", latent), "grouped original": lambda: run("grouped", model), "bandwidth": b.bandwidth})
    shutil.rmtree(latent)
    rate, bandwidth = figures.pop("kvfold"), figures.pop("bandwidth")
    read = {key: s["weight_bytes"] + s["cache_bytes"] for key, s in seen.items()}
    return case(name, "decode tokens/s", rate, figures, bandwidth / read["latent"], faster=rate / figures["grouped original"],
                cache_smaller=seen["grouped"]["cache_bytes"] / seen["latent"]["cache_bytes"], read_smaller=read["grouped"] / read["latent"],
                seconds_per_token=1 / rate)


def long_context(b):
    for method in ("mha2mla", "x-ecomla"):
        options = ("--method", method, "--cache", "25%")
        yield f"SmolLM2-135M by {method} at 25%, context 8k", lambda name, o=options: long_case(b, name, b.smollm2(), 8192 - 64, 1, *o)
        yield (f"SmolLM2-135M's shape by {method} at 25%, random weights, context 32k",
               lambda name, o=options: long_case(b, name, b.random("smollm2-135m", 32768), 32768 - 64, 1, *o))


# ------------------------------------------------------------------------------------------------ convert


def anonymous_bytes(pid):
    """RssAnon now; 0 when the process is gone."""
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


def convert_once(b, model, *options):
    """(seconds, peak bytes of anonymous memory)"""
    to = STORE / "converted"
    shutil.rmtree(to, ignore_errors=True)
    shutil.rmtree(Path(f"{to}.partial"), ignore_errors=True)
    start, peak = time.perf_counter(), 0
    process = subprocess.Popen([str(b.kvfold), "convert", str(model), str(to), "--threads", str(b.o.threads), *options],
                               stdout=sys.stderr, stderr=subprocess.PIPE, text=True)
    try:
        while process.poll() is None:
            peak = max(peak, anonymous_bytes(process.pid))
            time.sleep(0.01)
    finally:
        process.kill()  # nothing happens to one that has ended
    seconds = time.perf_counter() - start
    complaint = process.stderr.read()
    if process.returncode:
        sys.exit(f"bench: kvfold convert failed: {complaint.strip()}")
    shutil.rmtree(to)
    return seconds, peak


def convert_case(b, name, method, svd):
    """Peer: the SVD alone of one layer's matrix, as the published programs call it."""
    model, peaks = b.random("llama-2-7b-8-layers"), []

    def ours():
        seconds, peak = convert_once(b, model, "--method", method, "--cache", "25%")
        peaks.append(peak)
        return seconds / read_config(model)["num_hidden_layers"]

    figures = b.rounds({"kvfold": ours, "torch.linalg.svd of one layer alone":
                        lambda: b.ask(b.python, HERE / "peers.py", "svd", *svd, "--threads", b.o.threads)["seconds"]})
    return case(name, "seconds/layer", figures.pop("kvfold"), figures, None, peak_anonymous_bytes=max(peaks), peak_limit_bytes=3e9)


def convert_small(b, name, method):
    figures = b.rounds({"kvfold": lambda: convert_once(b, b.smollm2(), "--method", method, "--cache", "25%")[0]})
    return case(name, "seconds", figures["kvfold"], {}, None)


def convert(b):
    # K without the kept rotations and V, stacked, by the hidden width
    yield "Llama-2-7B's shape by mha2mla at 25%", lambda name: convert_case(b, name, "mha2mla", (32 * (128 - 16) + 32 * 128, 4096))
    yield "Llama-2-7B's shape by x-ecomla at 25%", lambda name: convert_case(b, name, "x-ecomla", (32 * 64 + 32 * 128, 4096))
    for method in ("mha2mla", "x-ecomla"):
        yield f"SmolLM2-135M by {method} at 25%", lambda name, method=method: convert_small(b, name, method)


# ------------------------------------------------------------------------------------------------ train

TEXT = ROOT / "examples" / "books-7m" / "held-out.txt"


def training_products(config, tokens, distils):
    """Those of a step: each product forward, and in the backward one for either factor; a teacher's forward."""
    shapes = []
    for m, n, k, count in (map(int, s.split(":")) for s in products(config, tokens)):
        if m == 1:
            m = tokens  # the head, for every token
        shapes += [(m, n, k, count * (2 if distils else 1)), (m, k, n, count), (n, k, m, count)]
    return [":".join(map(str, s)) for s in shapes]


def train_once(b, model, tokens, steps, *objective):
    """tokens_per_second (the median of the steps after the first) and peak_bytes (all that was resident) of one run."""
    to = STORE / "trained"
    for path in (to, Path(f"{to}.run")):
        shutil.rmtree(path, ignore_errors=True)
    command = [b.kvfold, *objective, model, "--data", TEXT, "--out", to, "--steps", steps, "--length", tokens, "--batch", 1,
               "--dtype", "bf16", "--threads", b.o.threads]
    process = subprocess.Popen([str(c) for c in command], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"bench: kvfold {objective[0]} failed")
    log = [json.loads(line) for line in (to / "train.jsonl").read_text().splitlines()]
    shutil.rmtree(to)
    return {"tokens_per_second": statistics.median(step["tokens_per_second"] for step in log[1:]), "peak_bytes": usage.ru_maxrss * 1024}


def train_case(b, name, tokens, what):
    model, peaks = b.smollm2(), {"ours": [], "peer": []}
    objective = [what, "--teacher", model] if what == "distill" else [what]
    shapes = training_products(read_config(model), tokens, what == "distill")
    compute = b.ours(model, 8, 0, 1)["compute"]

    def seen(who, run):
        peaks[who].append(run["peak_bytes"])
        return run["tokens_per_second"]

    figures = b.rounds({
        "kvfold": lambda: seen("ours", train_once(b, model, tokens, 3, *objective)),
        "PyTorch + Transformers": lambda: seen("peer", b.ask(b.python, HERE / "peers.py", "torch", model, what, tokens,
                                                             "--threads", b.o.threads, "--repeat", 2)),
        "oneDNN": lambda: tokens / b.ask(b.build / "bin" / "bench_onednn_peak", compute, b.o.threads, *shapes)["seconds"],
    })
    ours, limit = figures.pop("kvfold"), figures.pop("oneDNN")
    own, other = max(peaks["ours"]), max(peaks["peer"])
    return case(name, "training tokens/s", ours, figures, limit, compute=compute, faster=ours / figures["PyTorch + Transformers"],
                peak_bytes=own, peer_peak_bytes=other, memory_share=own / other)


def train_long_case(b, name, tokens):
    run = {}

    def ours():
        run.update(train_once(b, b.smollm2(), tokens, 2, "finetune"))
        return run["tokens_per_second"]

    return case(name, "training tokens/s", b.rounds({"kvfold": ours})["kvfold"], {}, None, peak_bytes=run["peak_bytes"])


def train(b):
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # which kvfold sets for itself: everyone waits for threads in the same way
    for what in ("finetune", "distill"):
        yield f"SmolLM2-135M, {what}, 1024 tokens", lambda name, what=what: train_case(b, name, 1024, what)
    for tokens in (4096, 8192):
        yield f"SmolLM2-135M, finetune, {tokens} tokens", lambda name, tokens=tokens: train_long_case(b, name, tokens)


# ------------------------------------------------------------------------------------------------ the command


def number(x):
    if x is None or isinstance(x, str):
        return x or "-"
    return f"{x:,.1f}" if x >= 10 else f"{x:.3g}"


def print_table(cases):
    for c in cases:
        print(f"{c['name']} ({c['unit']})")
        rows = {"kvfold": c["ours"], **c["peers"]}
        if c["limit"]:
            rows["limit"] = c["limit"]
        for name, figure in rows.items():
            share = f"  {100 * c['ours'] / c['limit']:.0f}% of the limit" if name == "kvfold" and c["limit"] else ""
            print(f"  {name:40} {number(figure):>12}{share}")
        for key in sorted(set(c) - {"name", "ours", "peers", "limit", "unit"}):
            print(f"  {key:40} {number(c[key]):>12}")


def main():
    names = {"prefill": prefill, "decode": decode, "long-context": long_context, "convert": convert, "train": train}
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("name", choices=names)
    p.add_argument("--json", action="store_true")
    p.add_argument("--build", default="build/release")
    p.add_argument("--no-build", action="store_true", help="the programs are there already")
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    p.add_argument("--only", default="")
    o = p.parse_args()
    b, cases = Bench(o), []
    for name, run in names[o.name](b):
        if o.only in name:
            print(name, file=sys.stderr)
            cases.append(run(name))
    if not cases:
        sys.exit(f"bench: no case of {o.name} has '{o.only}' in its name")
    if o.json:
        headline = {key: cases[0][key] for key in ("ours", "peers", "limit", "unit")}
        print(json.dumps({**headline, "cases": cases}))
    else:
        print_table(cases)


if __name__ == "__main__":
    try:
        main()
    except subprocess.CalledProcessError as failed:
        sys.exit(f"bench: {' '.join(map(str, failed.cmd))} failed\n{failed.stderr or ''}".rstrip())
