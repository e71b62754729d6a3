"""A logits rule that forbids a token."""

from __future__ import annotations

import mlx.core as mx

from mlx_spec.decoding.rules import LogitsRule, RuleContext


class ForbidToken(LogitsRule):
    """That token is never said."""

    def __init__(self, token: int) -> None:
        self.token = token

    def apply(self, logits: mx.array, context: RuleContext) -> mx.array:
        tokens = mx.arange(logits.shape[-1])
        return mx.where(tokens == self.token, -mx.inf, logits)
