"""Runs of ``mlx-spec bench`` with a fault in them, and what its JSON is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from mlx_spec.bench.arms import ArmRun

NUMBER = {"type": "number"}
ARM = {
    "type": "object",
    "required": ["ours", "over_plain", "ratios", "same_text", "differences", "by_kind", "rounds"],
    "properties": {
        "ours": {"type": "boolean"},
        "ratios": {"type": "array", "items": NUMBER, "minItems": 2, "maxItems": 2},
        "same_text": {"type": ["boolean", "null"]},
        "rounds": {"type": "array", "items": {"type": "object", "required": ["tok/s", "seconds"]}},
    },
}
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "schema": {"const": 1},
        "machine": {"type": "object", "required": ["backend", "device", "versions"]},
        "bandwidth": {"properties": {"copy": NUMBER, "read": NUMBER}},
        "plan": {"required": ["batches", "lengths", "rounds", "tokens", "prompts"]},
        "interrupted": {"const": False},
        "noise": NUMBER,
        "equal": {"const": True},
        "cells": {
            "minItems": 2,
            "items": {
                "required": ["batch_size", "prompt_tokens", "bandwidth_share", "arms"],
                "properties": {"arms": {"additionalProperties": ARM}},
            },
        },
        "recommended": {
            "minItems": 2,
            "items": {"required": ["purpose", "arm", "batch_size", "command", "over_plain"]},
        },
    },
}
SCHEMA["required"] = list(SCHEMA["properties"])


def with_token(run: ArmRun, prompt: int, place: int, token: int) -> ArmRun:
    """A run in which one token is another."""
    ids = [list(each) for each in run.token_ids]
    ids[prompt][place] = token
    texts = [f"{text}!" if index == prompt else text for index, text in enumerate(run.texts)]
    return replace(run, texts=tuple(texts), token_ids=tuple(map(tuple, ids)))
