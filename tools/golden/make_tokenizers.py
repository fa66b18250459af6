#!/usr/bin/env python3
"""Writes a tokenizer.json for each published vocabulary that is kept in another form.

usage: make_tokenizers.py TOKENIZERS OUT

TOKENIZERS holds llama2/tokenizer.model (SentencePiece), llama3/tokenizer.model (tiktoken ranks), mistral/tokenizer.model,
gpt2/ and qwen2/ (vocab.json and merges.txt); what is missing is passed over. OUT/NAME/tokenizer.json is written. Needs
nothing but Python.
"""
import base64
import json
import os
import struct
import sys

META = "\u2581"
GPT4 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+")


def byte_alphabet():
    """GPT-2's character for each byte."""
    keep = list(range(33, 127)) + list(range(161, 173)) + list(range(174, 256))
    rest = [b for b in range(256) if b not in keep]
    return {**{b: chr(b) for b in keep}, **{b: chr(256 + i) for i, b in enumerate(rest)}}


def varint(data, at):
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, at


def fields(data):
    """The fields of a protobuf message: (number, value)."""
    at = 0
    while at < len(data):
        key, at = varint(data, at)
        kind = key & 7
        if kind == 0:
            value, at = varint(data, at)
        elif kind == 1:
            value, at = data[at:at + 8], at + 8
        elif kind == 2:
            size, at = varint(data, at)
            value, at = data[at:at + size], at + size
        else:
            value, at = data[at:at + 4], at + 4
        yield key >> 3, value


def sentencepiece(path):
    """[(spelling, score, type)] of a SentencePiece model; types: 1 normal, 2 unknown, 3 control, 4 user-defined, 6 byte."""
    pieces = []
    for number, value in fields(open(path, "rb").read()):
        if number != 1:
            continue
        piece = {1: b"", 2: b"\0\0\0\0", 3: 1, **dict(fields(value))}
        pieces.append((piece[1].decode(), struct.unpack("<f", piece[2])[0], piece[3]))
    return pieces


def added(ident, content, special=True):
    return {"id": ident, "content": content, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
            "special": special}


def template(bos, ident):
    if bos is None:
        return None
    first, text = {"SpecialToken": {"id": bos, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
    return {"type": "TemplateProcessing", "single": [first, text],
            "pair": [first, text, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {bos: {"id": bos, "ids": [ident], "tokens": [bos]}}}


def document(model, normalizer, pre, post, decoder, tokens):
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": tokens, "normalizer": normalizer,
            "pre_tokenizer": pre, "post_processor": post, "decoder": decoder, "model": model}


def bpe(vocab, merges, **more):
    return {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None,
            "fuse_unk": False, "byte_fallback": False, "ignore_merges": False, "vocab": vocab, "merges": merges, **more}


def from_sentencepiece(path):
    pieces = sentencepiece(path)
    vocab = {text: i for i, (text, _, _) in enumerate(pieces)}
    cuts = [(score, cut, len(text) - cut, text) for text, score, _ in pieces for cut in range(1, len(text))
            if text[:cut] in vocab and text[cut:] in vocab]
    cuts.sort(key=lambda c: c[:3], reverse=True)
    merges = [[text[:cut], text[cut:]] for _, cut, _, text in cuts]
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": META}
    back = {"type": "Replace", "pattern": {"String": META}, "content": " "}
    return document(
        bpe(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True),
        {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": META}, replace]}, None, template("<s>", vocab["<s>"]),
        {"type": "Sequence", "decoders": [back, {"type": "ByteFallback"}, {"type": "Fuse"},
                                          {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        [added(i, text, kind != 4) for i, (text, _, kind) in enumerate(pieces) if kind in (2, 3, 4)])


def byte_level(regex):
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": regex is None}
    if regex is None:
        return level
    split = {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [split, level]}


def from_ranks(path):
    """A tiktoken file lists tokens by rank; a merge of a token is any cut of it into two others, in the order of ranks."""
    alphabet = byte_alphabet()
    ranks = {}
    for line in open(path, "rb"):
        if line.strip():
            token, rank = line.split()
            ranks[base64.b64decode(token)] = int(rank)
    spell = lambda token: "".join(alphabet[b] for b in token)
    merges = []
    for token, rank in ranks.items():
        cuts = [(token[:k], token[k:]) for k in range(1, len(token)) if token[:k] in ranks and token[k:] in ranks]
        merges += [(rank, ranks[left], ranks[right], left, right) for left, right in cuts]
    merges.sort(key=lambda m: m[:3])
    size = len(ranks)
    special = ["<|begin_of_text|>", "<|end_of_text|>"] + [f"<|reserved_special_token_{i}|>" for i in range(254)]
    special[6:10] = ["<|start_header_id|>", "<|end_header_id|>", "<|reserved_special_token_4|>", "<|eot_id|>"]
    special = list(dict.fromkeys(special))
    return document(bpe({spell(t): r for t, r in ranks.items()}, [[spell(m[3]), spell(m[4])] for m in merges], ignore_merges=True),
                    None, byte_level(GPT4 % "{1,3}"), template("<|begin_of_text|>", size), byte_level(None),
                    [added(size + i, text) for i, text in enumerate(special)])


def from_vocab(directory, regex, normalizer, tokens):
    vocab = json.load(open(os.path.join(directory, "vocab.json"), encoding="utf-8"))
    lines = open(os.path.join(directory, "merges.txt"), encoding="utf-8").read().split("\n")
    merges = [line for line in lines if line and not line.startswith("#version")]
    size = len(vocab)
    specials = [added(vocab.get(text, size + i), text) for i, text in enumerate(tokens)]
    return document(bpe(vocab, merges), normalizer, byte_level(regex), None, byte_level(None), specials)


def main():
    source, target = sys.argv[1:3]
    made = {
        "llama2": ("tokenizer.model", from_sentencepiece),
        "mistral": ("tokenizer.model", from_sentencepiece),
        "llama3": ("tokenizer.model", from_ranks),
        "gpt2": ("", lambda d: from_vocab(d, None, None, ["<|endoftext|>"])),
        "qwen2": ("", lambda d: from_vocab(d, GPT4 % "", {"type": "NFC"}, ["<|endoftext|>", "<|im_start|>", "<|im_end|>"])),
    }
    for name, (file, make) in made.items():
        path = os.path.join(source, name, file)
        if not os.path.exists(path):
            continue
        os.makedirs(os.path.join(target, name), exist_ok=True)
        with open(os.path.join(target, name, "tokenizer.json"), "w", encoding="utf-8") as out:
            json.dump(make(path), out, ensure_ascii=False)


if __name__ == "__main__":
    main()
