"""Measures an exported pair: loss, agreement, acceptance, and the same answers from mlx-lm.

Everything is measured on the float16 files as they ship, computed in float32.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional

from .corpus import LONG, SHORT, Tokens, windows
from .export import load_exported
from .model import Llama, generate

PROMPTS = (
    "def read_",
    "import os\n",
    'class Stack:\n    """',
    "for i in range(",
    "    def __init__(self",
    "if __name__ == ",
)
_TEMPERATURE = 0.8
_PROMPT = 32


@torch.inference_mode()
def loss_of(model: Llama, rows: Tensor) -> float:
    """Mean cross-entropy in nats a token over windows [N, T + 1]."""
    total = 0.0
    for batch in rows.split(8):
        logits = model(batch[:, :-1]).float().flatten(0, 1)
        total += functional.cross_entropy(logits, batch[:, 1:].flatten(), reduction="sum").item()
    return total / rows[:, 1:].numel()


@torch.inference_mode()
def acceptance(target: Llama, draft: Llama, rows: Tensor, start: int = 0) -> dict[str, float]:
    """Greedy agreement, 1 - TV at T=0.8 and tokens a greedy verify pass with K=4.

    On windows [N, T], positions from `start`.
    """
    agree, overlap = [], []
    for batch in rows.split(max(1, 4096 // rows.shape[1])):
        p, q = target(batch)[:, start:].float(), draft(batch)[:, start:].float()
        agree.append(p.argmax(-1) == q.argmax(-1))
        p, q = torch.softmax(p / _TEMPERATURE, -1), torch.softmax(q / _TEMPERATURE, -1)
        overlap.append(torch.minimum(p, q).sum(-1))
    agreed = torch.cat(agree)
    return {
        "greedy agreement": agreed.float().mean().item(),
        "1-TV at T=0.8": torch.cat(overlap).mean().item(),
        "greedy tokens per verify, K=4": float(np.mean([_pass_length(row, 4) for row in agreed])),
    }


def _pass_length(agreed: Tensor, length: int) -> float:
    """Mean tokens a verify pass emits if a position is accepted where `agreed` says so."""
    flags, position, passes = agreed.tolist(), 0, 0
    while position < len(flags):
        accepted = 0
        while accepted < length and position + accepted < len(flags):
            if not flags[position + accepted]:
                break
            accepted += 1
        position += accepted + 1
        passes += 1
    return position / passes


def report(output: Path, tokenizer: Tokenizer, tokens: Tokens) -> dict[str, object]:
    """All numbers of an exported pair, as one JSON-able record."""
    target, draft = load_exported(output / "target"), load_exported(output / "draft")
    held_out = torch.from_numpy(windows(tokens.validation, SHORT).astype(np.int64))
    bytes_per_token = tokens.validation_bytes / len(tokens.validation)
    record: dict[str, object] = {"validation tokens": held_out[:, 1:].numel()}
    for name, model in (("target", target), ("draft", draft)):
        loss = loss_of(model, held_out)
        record[name] = {
            "parameters": sum(p.numel() for p in model.parameters()),
            "folder bytes": sum(file.stat().st_size for file in (output / name).iterdir()),
            "validation nats/token": loss,
            "validation bits/byte": loss / math.log(2) / bytes_per_token,
        }
    record["held-out text"] = acceptance(target, draft, held_out[:, :-1])
    far = torch.from_numpy(windows(tokens.validation, LONG)[::3, :-1].astype(np.int64))
    record["held-out text, positions from 512"] = acceptance(target, draft, far, SHORT)
    prompts = held_out[::4, :_PROMPT]
    for name, temperature in (("own text, greedy", 0.0), ("own text, T=0.8", _TEMPERATURE)):
        text, _ = generate(target, prompts, 256 - _PROMPT, temperature)
        record[name] = acceptance(target, draft, text)
    record["samples"] = samples(target, tokenizer)
    return record


def samples(target: Llama, tokenizer: Tokenizer, count: int = 80) -> dict[str, str]:
    """The target's continuations of a few prompts, greedy and at T=0.7."""
    texts = {}
    for prompt in PROMPTS:
        ids = torch.tensor([tokenizer.encode(prompt).ids])
        for temperature in (0.0, 0.7):
            text, _ = generate(target, ids, count, temperature)
            texts[f"{prompt!r} T={temperature}"] = tokenizer.decode(text[0].tolist())
    return texts


def check_mlx(output: Path) -> dict[str, float]:
    """Load both folders with mlx-lm; the largest difference of its logits from ours."""
    import mlx.core as mx
    from mlx_lm import generate as mlx_generate
    from mlx_lm import load

    differences = {}
    for name in ("target", "draft"):
        model, tokenizer = load(str(output / name))
        model.set_dtype(mx.float32)
        ids = tokenizer.encode(Path(__file__).read_text())[:600]
        theirs = np.array(model(mx.array([ids])))
        with torch.inference_mode():
            ours = load_exported(output / name)(torch.tensor([ids])).numpy()
        differences[name] = float(np.abs(ours - theirs).max())
        for prompt in PROMPTS:
            text = mlx_generate(model, tokenizer, prompt, max_tokens=40)
            print(f"[mlx-lm {name}] {prompt + text!r}", flush=True)
    return differences
