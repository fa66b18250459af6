#!/usr/bin/env python3
"""What conversions without training lose: a Markdown table of perplexity ratio and KL by method, cache size and text, with time and peak memory.

    python3 bench/quality.py [--model MODEL] [--methods fold,transmla,...] [--caches 50%,25%] [--calibration FILE ... | --own] [--judge FILE ...]
                             [--set METHOD.KEY=VALUE ...] [--tokens N] [--long N] [--keep DIR]

By default the protocol of docs/QUALITY.md on SmolLM2-135M-Instruct (./dev fetch): calibration on 40 windows of 512 tokens of English
books, 32 to fit and 8 to choose by; judged on other books (8 windows) and on wikitext-2 (16 windows), in f32. --own: no calibration text
is given. --judge: judged on these files (16 windows each) instead. --long: also on four windows of N tokens of all books that nothing is
calibrated on. The texts come from KVFOLD_TEST_DATA (default ../shared/data).
"""
import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get("KVFOLD_TEST_DATA", ROOT / "../shared/data")) / "text"
SMOLLM2 = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kvfold/SmolLM2-135M-Instruct.Q4_1.gguf"


def texts(directory, window, long=0):
    """Calibration: records k of books-train with k mod 40 = 7 (from 1); books: lines of books-valid with index mod 9 = 3 (from 0)."""
    train = subprocess.run(f"zstdcat {DATA}/books-train.jsonl.zst | head -n 2000", shell=True, capture_output=True, text=True, check=True).stdout
    pick = [json.loads(line)["text"] for k, line in enumerate(train.splitlines(), 1) if k % 40 == 7]
    (directory / "cal.txt").write_text("\n".join(pick))
    with open(DATA / "books-valid.jsonl") as f:
        (directory / "books.txt").write_text("\n".join(json.loads(line)["text"] for i, line in enumerate(f) if i % 9 == 3))
    judged = [("books", directory / "books.txt", window, 8), ("wikitext-2", DATA / "wikitext2_raw_test.raw", window, 16)]
    return directory / "cal.txt", judged + [(f"books, {long:,} tokens", DATA / "books-valid.jsonl", long, 4)] * bool(long)


def kvfold(binary, *arguments):
    """Its JSON, with the processor's seconds and the peak memory in bytes."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        _, status, used = os.wait4(subprocess.Popen([binary, *map(str, arguments), "--json"], stdout=out, stderr=err).pid, 0)
        out.seek(0), err.seek(0)
        if status:
            raise RuntimeError((err.read().strip().splitlines() or [f"status {status}"])[-1])
        return json.load(out) | {"cpu_seconds": used.ru_utime + used.ru_stime, "peak_bytes": used.ru_maxrss * 1024}


def settings_of(o, method):
    return [s[len(method) + 1 :] for s in o.set if s.startswith(method + ".")]


def convert(o, method, cache, calibration, dst):
    settings = settings_of(o, method)
    given = ["--calibration", *calibration] if calibration else []
    given = [] if method == "x-ecomla" else [*given, "--calibration-tokens", o.calibration_tokens]
    return kvfold(o.kvfold, "convert", o.model, dst, "--method", method, "--cache", cache, "--dtype", "f32", "--compute", "f32", *given,
                  *(["--set", *settings] if settings else []))


def judge(o, model, judged):
    cells = []
    for _, text, window, windows in judged:
        e = kvfold(o.kvfold, "eval", model, "--reference", o.model, "--text", text, "--window", window, "--max-windows", windows, "--bos", "no",
                   "--compute", "f32")
        cells.append(f"{math.exp(e['nll'] - e['reference_nll']):.3f} / {e['kl']:.3f}")
    return cells


def row(o, method, cache, calibration, judged, directory):
    dst = (o.keep or directory) / f"{method}-{cache.rstrip('%')}"
    made = convert(o, method, cache, calibration, dst)
    cells = judge(o, dst, judged)
    if not o.keep:
        shutil.rmtree(dst)
    part = made["cache_elements_per_token"] / made["source_cache_elements_per_token"]
    return f"| {method} | {100 * part:.2f}% | {' '.join(settings_of(o, method))} | {' | '.join(cells)} | {made['seconds']:.0f}, {made['cpu_seconds']:.0f} | {made['peak_bytes'] / 1e6:.0f} |"


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", default=str(SMOLLM2))
    p.add_argument("--methods", default="fold,transmla,care,kv-heads,mha2mla,x-ecomla")
    p.add_argument("--caches", default="50%,31.25%,18.75%")
    p.add_argument("--calibration", nargs="+")
    p.add_argument("--own", action="store_true")
    p.add_argument("--judge", nargs="+", type=Path)
    p.add_argument("--set", nargs="+", default=[], metavar="METHOD.KEY=VALUE")
    p.add_argument("--tokens", dest="calibration_tokens", type=int, default=20480)
    p.add_argument("--window", type=int, default=512)
    p.add_argument("--long", type=int, default=0)
    p.add_argument("--keep", type=Path)
    p.add_argument("--kvfold", default=str(ROOT / "build/release/bin/kvfold"))
    o = p.parse_args()
    with tempfile.TemporaryDirectory() as d:
        cal, judged = texts(Path(d), o.window, o.long)
        judged = [(f.stem, f, o.window, 16) for f in o.judge] if o.judge else judged
        calibration = [] if o.own else o.calibration or [cal]
        print("| method | cache | settings | " + " | ".join(name for name, *_ in judged) + " | seconds, of the processor | MB |")
        print("| --- | --- | --- |" + " --- |" * (len(judged) + 2), flush=True)
        for cache in o.caches.split(","):
            for method in o.methods.split(","):
                try:
                    print(row(o, method, cache, calibration, judged, Path(d)), flush=True)
                except RuntimeError as e:
                    print(f"| {method} | {cache} | | {e} |" + " |" * (len(judged) + 1), flush=True)


if __name__ == "__main__":
    sys.exit(main())
