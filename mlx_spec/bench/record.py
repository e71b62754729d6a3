"""A run as JSON: everything that was measured, so that tables can be made again elsewhere."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from mlx_spec import __version__
from mlx_spec.bench.results import ArmResult, BenchResult, CellResult
from mlx_spec.platform import describe

SCHEMA = 1
_DIGITS = 5


def record_of(result: BenchResult) -> dict[str, Any]:
    """All of it, as JSON takes it; docs/benching.md says what is what."""
    machine = asdict(describe())
    return {
        "schema": SCHEMA,
        "mlx_spec": __version__,
        "machine": {name: machine[name] for name in _MACHINE},
        "bandwidth": {
            "copy": round(result.bandwidth.copy),
            "read": round(result.bandwidth.read),
        },
        "model": result.model,
        "weights": [
            {"quantize": weights, "bytes": size} for weights, size in result.model_bytes.items()
        ],
        "plan": asdict(result.plan),
        "interrupted": result.interrupted,
        "noise": round(result.noise, _DIGITS),
        "equal": result.equal,
        "left_out": dict(result.left_out),
        "cells": [_cell(cell) for cell in result.cells],
        "recommended": [
            {
                "quantize": one.weights,
                "purpose": one.purpose,
                "arm": one.choice.name,
                "batch_size": one.batch,
                "over_plain": round(one.ratio, _DIGITS),
                "tokens_per_second": round(one.speed, _DIGITS),
                "over_one": round(one.over_one, _DIGITS),
                "rising": one.rising,
                "command": command,
            }
            for one, command in result.recommended
        ],
    }


_MACHINE = ("system", "machine", "python", "cpu_count", "memory", "backend", "device", "versions")


def _cell(cell: CellResult) -> dict[str, Any]:
    return {
        "quantize": cell.key.weights,
        "batch_size": cell.key.batch,
        "prompt_length": cell.key.length,
        "prompt_tokens": round(cell.prompt_tokens, 1),
        "prompts": cell.prompts,
        "bandwidth_share": round(cell.share, _DIGITS),
        "arms": {arm.name: _arm(arm) for arm in cell.arms},
    }


def _arm(arm: ArmResult) -> dict[str, Any]:
    rounds = [
        {name: round(value, _DIGITS) for name, value in figures.items()}
        for figures in arm.series.rounds
    ]
    return {
        "ours": arm.exact,
        "over_plain": round(arm.ratio, _DIGITS),
        "ratios": [round(one, _DIGITS) for one in arm.ratios],
        "same_text": arm.same if arm.compared else None,
        "differences": [asdict(one) | {"near_tie": one.near_tie} for one in arm.differences],
        "by_kind": {kind: round(value, _DIGITS) for kind, value in arm.by_kind.items()},
        "rounds": rounds,
    }
