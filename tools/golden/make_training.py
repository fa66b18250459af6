#!/usr/bin/env python3
"""One training step of the tiny models in tests/fixtures/families, as PyTorch and Transformers make it.

    python -m venv venv && venv/bin/pip install torch transformers safetensors numpy     (written by 2.13.0 and 5.19.0)
    venv/bin/python tools/golden/make_training.py [NAME ...]

Each case becomes tests/fixtures/training/NAME.safetensors:

    tokens          [T] i64
    teacher         [T, vocabulary] f32   logits of a teacher
    loss            [1] f32               mean over T - 1 predictions of 0.4 x cross-entropy + 0.6 x KL(teacher || model)
    gradient.TENSOR f32                   of that loss, by every parameter
    updated.TENSOR  f32                   after one step of AdamW (rate 1e-2, betas 0.9 and 0.95, eps 1e-8, weight decay 0.1 on
                                          matrices alone) with the gradient's norm clipped to 0.5; of the cases in UPDATED
"""
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

FIXTURES = Path(__file__).resolve().parents[2] / "tests" / "fixtures"
CASES = ["llama2_gqa_tied", "llama_biases", "llama3", "llama_linear", "llama_dynamic", "llama_longrope_short", "llama_yarn",
         "mistral_window", "qwen2_window_layers", "qwen3", "smollm3_interval", "deepseek_v3_half_split"]
UPDATED = {"llama_biases", "deepseek_v3_half_split"}
TOKENS = 13


def make(name):
    torch.manual_seed(7)
    model = AutoModelForCausalLM.from_pretrained(FIXTURES / "families" / name, dtype=torch.float32, attn_implementation="eager")
    model.train()
    vocabulary = model.config.vocab_size
    tokens = torch.randint(0, vocabulary, (TOKENS,))
    teacher = 2 * torch.randn(TOKENS, vocabulary)
    logits = model(input_ids=tokens[None], use_cache=False).logits[0, :-1]
    ce = torch.nn.functional.cross_entropy(logits, tokens[1:])
    kl = torch.nn.functional.kl_div(logits.log_softmax(-1), teacher[:-1].log_softmax(-1), log_target=True, reduction="batchmean")
    loss = 0.4 * ce + 0.6 * kl
    loss.backward()
    out = {"tokens": tokens, "teacher": teacher, "loss": loss.detach()[None]}
    parameters = dict(model.named_parameters())
    out.update({f"gradient.{n}": p.grad.clone() for n, p in parameters.items()})
    if name in UPDATED:
        torch.nn.utils.clip_grad_norm_(parameters.values(), 0.5)
        decay = [p for n, p in parameters.items() if p.dim() > 1]
        plain = [p for n, p in parameters.items() if p.dim() == 1]
        torch.optim.AdamW([{"params": decay, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}], lr=1e-2,
                          betas=(0.9, 0.95), eps=1e-8).step()
        out.update({f"updated.{n}": p.detach().clone() for n, p in parameters.items()})
    (FIXTURES / "training").mkdir(exist_ok=True)
    save_file({n: t.contiguous() for n, t in out.items()}, FIXTURES / "training" / f"{name}.safetensors")
    print(f"{name}: loss {loss.item():.6f}")


for case in sys.argv[1:] or CASES:
    make(case)
