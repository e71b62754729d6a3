"""Figures of a run: recorded in memory, written to a log, and shown in a report.

from mlx_spec.metrics import MetricsRecorder, PerformanceLog

with PerformanceLog("performance_logs") as log:
    batch_generate(model, tokenizer, prompts, listeners=[log])
"""

from __future__ import annotations

from mlx_spec.metrics.performance_log import PerformanceLog
from mlx_spec.metrics.recorder import MetricsRecorder, MetricsSummary

__all__ = ["MetricsRecorder", "MetricsSummary", "PerformanceLog"]
