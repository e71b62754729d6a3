"""The ready stages, by the names that a config uses."""

from __future__ import annotations

from mlx_spec.pipeline.stage import Stage
from mlx_spec.pipeline.stages.align import Align
from mlx_spec.pipeline.stages.classify import Classify
from mlx_spec.pipeline.stages.filter import Filter
from mlx_spec.pipeline.stages.generate import GenerateText
from mlx_spec.pipeline.stages.structure import StructureText

STAGES: dict[str, type[Stage]] = {
    stage.kind: stage for stage in (Filter, StructureText, Classify, Align, GenerateText)
}
