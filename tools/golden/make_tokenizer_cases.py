#!/usr/bin/env python3
"""Writes tests/fixtures/tokenizers/*.json: texts and what Hugging Face's `tokenizers` and `transformers` make of them.

usage: make_tokenizer_cases.py ROOT     (ROOT: the repository; needs tokenizers 0.22, transformers 4.57)

books-7m.json: cases for examples/books-7m. small.json: cases for handmade tokenizers, one for each part that a
tokenizer.json may have; they stand in the file. Each case: text, ids (plain), special (with the tokenizer's own BOS and
EOS), decoded (all of `special`), clean (the same without special tokens).
"""
import json
import os
import sys
import tempfile

from tokenizers import Tokenizer
from transformers import AutoTokenizer

META = "\u2581"
TEXTS = [
    "", "a", " ", "ab", "abba ab", "  ab  ba ", "a1b22 333,a.b!!", "\n\na \n b\n", "ab\u00a0ba", "aB AB", "\u00e9e\u0301a",
    "a\u3000b", "<s>ab</s> b", "a<x> b <x>  ,", "ab<w>ba <w> a<w>", "b <s> a", "\u65e5a\u672c", "\U0001f600", "a\u2581b",
    "\u00e9\u00e9b", "\ufb01a", "ab\r\nab", "a" * 21, "aaab" * 5, "!!..,,", "1\u00bd2", "<n>a <n>",
]
BOOK_TEXTS = TEXTS + [
    "\"You get all the loot when you bring down a machine, do you?\" he said.",
    "It was the best of times, it was the worst of times; 1859.\n\n\tChapter II\n",
    "<|begin_of_text|>Once upon a time<|end_of_text|>  and don't  WE'LL it's\u2014\u201cquoted\u201d",
    "na\u00efve caf\u00e9 \u4f60\u597d \U0001f469\u200d\U0001f469\u200d\U0001f467 123456789", " " * 17 + "x" + "\n" * 5 + "y",
]


def byte_alphabet():
    keep = list(range(33, 127)) + list(range(161, 173)) + list(range(174, 256))
    rest = [b for b in range(256) if b not in keep]
    return [chr(b) for b in keep] + [chr(256 + i) for i in range(len(rest))]


def added(ident, content, **flags):
    return {"id": ident, "content": content, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
            "special": True, **flags}


def tokenizer(characters, pairs, normalizer=None, pre=None, post=None, decoder=None, bytes_=False, strings=False, **model):
    """A vocabulary of characters in which any two of `pairs` merge, and any two such pairs."""
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2, "<x>": 3, "<w>": 4, "<n>": 5}
    for text in list(characters) + ([f"<0x{b:02X}>" for b in range(256)] if bytes_ else []):
        vocab.setdefault(text, len(vocab))
    merges = []
    twos = [a + b for a in pairs for b in pairs]
    for left, right in [(t[:len(t) // 2], t[len(t) // 2:]) for t in twos] + [(a, b) for a in twos[:6] for b in twos[:6]]:
        if left + right not in vocab:
            vocab[left + right] = len(vocab)
        merges.append(f"{left} {right}" if strings else [left, right])
    tokens = [added(0, "<unk>"), added(1, "<s>"), added(2, "</s>"), added(3, "<x>", lstrip=True, rstrip=True),
              added(4, "<w>", single_word=True, special=False), added(5, "<n>", normalized=True, special=False)]
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": tokens, "normalizer": normalizer,
            "pre_tokenizer": pre, "post_processor": post, "decoder": decoder,
            "model": {"type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None,
                      "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": bytes_, "ignore_merges": False,
                      "vocab": vocab, "merges": merges, **model}}


def split(pattern, behavior, invert=False, kind="Regex"):
    return {"type": "Split", "pattern": {kind: pattern}, "behavior": behavior, "invert": invert}


def sequence(key, *parts):
    return {"type": "Sequence", key: list(parts)}


def template(*single):
    parts = [{"Sequence": {"id": "A", "type_id": 0}} if p == "A" else {"SpecialToken": {"id": p, "type_id": 0}} for p in single]
    ids = {"<s>": 1, "</s>": 2, "<x>": 3}
    return {"type": "TemplateProcessing", "single": parts, "pair": parts + [{"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {p: {"id": p, "ids": [ids[p]], "tokens": [p]} for p in single if p != "A"}}


def small():
    plain = "ab12,.!AB \n\u2581\u00e9"
    pairs = "ab1,. "
    meta = "ab1,.\u2581"
    byte_pairs = "ab1,\u0120\u010a"
    level = lambda **k: {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True, **k}
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": META}
    spm = {"normalizer": sequence("normalizers", {"type": "Prepend", "prepend": META}, replace),
           "decoder": sequence("decoders", {"type": "Replace", "pattern": {"String": META}, "content": " "},
                               {"type": "ByteFallback"}, {"type": "Fuse"},
                               {"type": "Strip", "content": " ", "start": 1, "stop": 0})}
    yield "sentencepiece", tokenizer(plain, meta, bytes_=True, fuse_unk=True, post=template("<s>", "A"), **spm), None
    yield "sentencepiece without bytes", tokenizer(plain, meta, fuse_unk=True, post=template("<s>", "A", "</s>"), **spm), None
    yield "unknown characters apart", tokenizer(plain, meta, **spm), None
    yield "no decoder", tokenizer(plain, pairs), None
    yield "no unk", tokenizer(plain, pairs, unk_token=None), None
    yield "llama class", tokenizer(plain, meta, bytes_=True, fuse_unk=True, **spm), {
        "tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": {"__type": "AddedToken", "content": "</s>", "lstrip": False, "rstrip": False,
                                                                              "single_word": False, "normalized": True},
        "unk_token": "<unk>", "add_bos_token": True, "add_eos_token": True}
    yield "llama class, no bos", tokenizer(plain, meta, post=template("<s>", "A"), **spm), {
        "tokenizer_class": "LlamaTokenizerFast", "add_bos_token": False}
    yield "special tokens from the configuration", tokenizer(plain, meta, **spm), {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "pad_token": "ab", "add_bos_token": True,
        "additional_special_tokens": ["ba"]}
    for name, pre in {
        "ByteLevel": level(), "ByteLevel with prefix": sequence("pretokenizers", level(add_prefix_space=True)),
        "ByteLevel without regex": level(use_regex=False),
        "Digits": sequence("pretokenizers", {"type": "Digits", "individual_digits": True}, level()),
        "Digits together": sequence("pretokenizers", {"type": "Digits", "individual_digits": False}, level(use_regex=False)),
        "Llama 3": sequence("pretokenizers", split(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
            "Isolated"), level(use_regex=False)),
    }.items():
        yield name, tokenizer(byte_alphabet(), byte_pairs, pre=pre, decoder=level(), post=sequence(
            "processors", level(), template("<s>", "A"))), None
    for behavior in ["Isolated", "Removed", "Contiguous", "MergedWithPrevious", "MergedWithNext"]:
        for invert in [False, True]:
            yield f"Split {behavior} {invert}", tokenizer(plain, pairs, pre=split("[ab,]", behavior, invert)), None
        yield f"Split at a string {behavior}", tokenizer(plain, pairs, pre=split("b", behavior, kind="String")), None
    yield "Split at nothing", tokenizer(plain, pairs, pre=split("(?=b)", "Isolated")), None
    yield "Split at lines", tokenizer(plain, pairs, pre=split("^a|b$", "Isolated")), None
    for name, pre in {
        "Whitespace": {"type": "Whitespace"}, "WhitespaceSplit": {"type": "WhitespaceSplit"},
        "Punctuation": {"type": "Punctuation", "behavior": "Isolated"},
        "Punctuation together": {"type": "Punctuation", "behavior": "Contiguous"},
    }.items():
        yield name, tokenizer(plain, pairs, pre=pre), None
    for scheme in ["always", "first", "never"]:
        for cut in [True, False]:
            space = {"type": "Metaspace", "replacement": META, "prepend_scheme": scheme, "split": cut}
            yield f"Metaspace {scheme} {cut}", tokenizer(plain, meta, pre=space, decoder=space), None
    for form in ["NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents"]:
        yield form, tokenizer(plain + "e\u0301fi", pairs, normalizer={"type": form}), None
    yield "NFD and StripAccents", tokenizer(plain + "e", pairs, normalizer=sequence(
        "normalizers", {"type": "NFD"}, {"type": "StripAccents"}, {"type": "Lowercase"})), None
    yield "Strip", tokenizer(plain, pairs, normalizer={"type": "Strip", "strip_left": True, "strip_right": True}), None
    yield "Replace by a regex", tokenizer(plain, pairs, normalizer={
        "type": "Replace", "pattern": {"Regex": "[ab]+\\s"}, "content": "b,"}), None
    yield "ignore merges", tokenizer(plain, pairs, pre=split(" ", "Isolated"), ignore_merges=True), None
    yield "merges as strings", tokenizer(plain, "ab1,.", strings=True), None


def cases(encode, decode, texts):
    for text in texts:
        special = encode(text, True)
        yield {"text": text, "ids": encode(text, False), "special": special, "decoded": decode(special, False),
               "clean": decode(special, True)}


def by_tokenizers(document):
    t = Tokenizer.from_str(json.dumps(document))
    return (lambda text, special: t.encode(text, add_special_tokens=special).ids,
            lambda ids, skip: t.decode(ids, skip_special_tokens=skip))


def by_transformers(directory):
    t = AutoTokenizer.from_pretrained(directory)
    return (lambda text, special: t(text, add_special_tokens=special)["input_ids"],
            lambda ids, skip: t.decode(ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False))


def main():
    root = sys.argv[1]
    out = os.path.join(root, "tests", "fixtures", "tokenizers")
    os.makedirs(out, exist_ok=True)
    made = []
    for name, document, config in small():
        if config:
            with tempfile.TemporaryDirectory() as directory:
                json.dump(document, open(os.path.join(directory, "tokenizer.json"), "w"))
                json.dump(config, open(os.path.join(directory, "tokenizer_config.json"), "w"))
                pair = by_transformers(directory)
        else:
            pair = by_tokenizers(document)
        made.append({"name": name, "tokenizer": document, "config": config, "cases": list(cases(*pair, TEXTS))})
    for file, content in {
        "small.json": {"tokenizers": made},
        "books-7m.json": {"cases": list(cases(*by_transformers(os.path.join(root, "examples", "books-7m")), BOOK_TEXTS))},
    }.items():
        with open(os.path.join(out, file), "w", encoding="utf-8") as f:
            json.dump(content, f, separators=(",", ":"))
            f.write("\n")


if __name__ == "__main__":
    main()
