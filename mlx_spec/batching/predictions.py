"""What a caller says that a text is likely to be, made ready for the drafter that guesses it."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from typing import Any, TypeAlias

from mlx_spec.batching.messages import check_text
from mlx_spec.batching.pieces import patiently
from mlx_spec.config import SpeculationConfig
from mlx_spec.config.checks import check_integer
from mlx_spec.decoding.drafters.predicted import PredictedText
from mlx_spec.errors import InvalidRequest

Prediction: TypeAlias = str | Seq[int]
"""A text, or token ids."""


class Predictions:
    """Reads predictions for one generator.

    Args:
        tokenizer: the target's.
        speculation: whether anything is drafted.
    """

    WHERE = "[BatchedMLXGenerator.submit] prediction"

    def __init__(self, tokenizer: Any, speculation: SpeculationConfig) -> None:
        self._tokenizer = tokenizer
        self._drafted = tokenizer is not None and not speculation.off

    def of(self, prediction: Prediction | None) -> PredictedText | None:
        """What one request's rows follow; None without a prediction.

        Raises:
            InvalidRequest: it is neither text nor token ids, or nothing is drafted here.
        """
        if prediction is None or len(prediction) == 0:
            return None
        if not self._drafted:
            raise InvalidRequest(
                f"{self.WHERE}: nothing is drafted here (no tokenizer, enabled=False, or drafts "
                "of 0 tokens)"
            )
        return PredictedText(self._ids(prediction))

    def _ids(self, prediction: Prediction) -> list[int]:
        if isinstance(prediction, str):
            text = check_text(prediction, self.WHERE)
            encode = self._tokenizer.encode
            return list(patiently(lambda: encode(text, add_special_tokens=False)))
        for token in prediction:
            check_integer(self.WHERE, "a token id", token, 0)
        return list(prediction)
