"""Figures of a run: written to a log while it goes on, and shown in a report.

from mlx_spec.metrics import PerformanceLog

with PerformanceLog("performance_logs") as log:
    batch_generate(model, tokenizer, prompts, listeners=[log])
"""

from __future__ import annotations

from mlx_spec.metrics.performance_log import PerformanceLog

__all__ = ["PerformanceLog"]
