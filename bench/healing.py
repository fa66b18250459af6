#!/usr/bin/env python3
"""What distillation gives back after a conversion: a Markdown table of perplexity ratio and KL before and after, by method, cache size and text.

    python3 bench/healing.py [--model MODEL] [--methods fold,transmla,...] [--caches 50%,31.25%] [--tokens N] [--keep DIR] [...]

By default SmolLM2-135M-Instruct (./dev fetch) heals itself: students converted by the protocol of bench/quality.py learn the model's own
predictions (forward KL) on English books, and are judged on other books and on wikitext-2, in f32. --objective ce learns the text alone.
--device cuda trains on the GPU. --keep DIR: conversions and students stay there, and what stands there already is not made again;
a run that was killed goes on.
"""
import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import quality


def heal(o, student, data):
    name = [student.name, o.objective, o.tokens, f"{o.lr:g}", *(o.train or []), *(Path(f).stem for f in o.data or []), *(o.weights or [])]
    dst = student.parent / "-".join(map(str, name)).replace("*", "")
    objective = ["finetune", student] if o.objective == "ce" else ["distill", student, "--teacher", o.model]
    if not dst.exists():
        more = [a for name in ("weights", "train") if getattr(o, name) for a in ("--" + name, *getattr(o, name))]
        more += ["--resume"] * dst.with_name(dst.name + ".run").exists()
        made = quality.kvfold(o.kvfold, *objective, "--data", *data, "--out", dst, "--tokens", o.tokens, "--length", o.length, "--batch", o.batch, "--lr",
                              o.lr, "--warmup", 0.1, "--device", o.device, *more)
        (dst / "speed.json").write_text(json.dumps(made))
    return dst, json.loads((dst / "speed.json").read_text())["tokens_per_second"]


def row(o, method, cache, calibration, data, judged, directory):
    student = directory / f"{method}-{cache.rstrip('%')}"
    if not student.exists():
        quality.convert(o, method, cache, calibration, student)
    healed, speed = heal(o, student, data)
    cells = [c for pair in zip(quality.judge(o, student, judged), quality.judge(o, healed, judged)) for c in pair]
    return f"| {method} | {cache} | {' | '.join(cells)} | {speed:.0f} |"


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", default=str(quality.SMOLLM2))
    p.add_argument("--methods", default="fold,transmla,mha2mla,x-ecomla")
    p.add_argument("--caches", default="50%,31.25%")
    p.add_argument("--set", nargs="+", default=[], metavar="METHOD.KEY=VALUE")
    p.add_argument("--calibration", nargs="+")
    p.add_argument("--calibration-tokens", type=int, default=20480)
    p.add_argument("--objective", choices=["kl", "ce"], default="kl")
    p.add_argument("--data", nargs="+", help="default: the first 2000 records of books-train")
    p.add_argument("--weights", nargs="+", help="shares of the files of --data; default: by their tokens")
    p.add_argument("--train", nargs="+", help="patterns of what is trained; default: everything")
    p.add_argument("--tokens", type=int, default=100000)
    p.add_argument("--length", type=int, default=512)
    p.add_argument("--batch", type=int, default=4)
    p.add_argument("--lr", type=float, default=5e-4)
    p.add_argument("--judge", nargs="+", type=Path, help="16 windows of each of these files")
    p.add_argument("--window", type=int, default=512)
    p.add_argument("--device", default="auto")
    p.add_argument("--keep", type=Path)
    p.add_argument("--kvfold", default=str(quality.ROOT / "build/release/bin/kvfold"))
    o = p.parse_args()
    with tempfile.TemporaryDirectory() as d:
        directory = o.keep or Path(d)
        directory.mkdir(parents=True, exist_ok=True)
        cal, judged = quality.texts(Path(d), o.window)
        judged = [(f.stem, f, o.window, 16) for f in o.judge] if o.judge else judged
        data = o.data or [directory / "train.jsonl"]
        if not o.data and not data[0].exists():
            subprocess.run(f"zstdcat {quality.DATA}/books-train.jsonl.zst | head -n 2000 >{data[0]}", shell=True, check=True)
        print("| method | cache | " + " | ".join(f"{n}: before | after" for n, *_ in judged) + " | tokens/s |")
        print("| --- | --- |" + " --- |" * (2 * len(judged) + 1), flush=True)
        for cache in o.caches.split(","):
            for method in o.methods.split(","):
                try:
                    print(row(o, method, cache, o.calibration or [cal], data, judged, directory), flush=True)
                except RuntimeError as e:
                    print(f"| {method} | {cache} | {e} |" + " |" * 2 * len(judged), flush=True)


sys.exit(main())
