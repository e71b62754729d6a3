"""``check_tokens``: what no model of a vocabulary can read or say is refused before it runs."""

from __future__ import annotations

from mlx_spec.errors import InvalidRequest
from mlx_spec.sequence import Sequence


def check_tokens(sequence: Sequence, vocabulary: int) -> None:
    """Refuse token ids that the target's vocabulary does not have.

    Raises:
        InvalidRequest: one in the prompt or a bias, and the numbers.
    """
    highest = max(sequence.prompt)
    if highest >= vocabulary:
        raise InvalidRequest(
            f"[SpeculativeDecoder.check] prompt {sequence.index + 1} holds the token id "
            f"{highest}; the model's vocabulary has {vocabulary}"
        )
    biases = sequence.sampling.biases
    if biases and biases[-1][0] >= vocabulary:  # they are in the order of their ids
        raise InvalidRequest(
            f"[SpeculativeDecoder.check] logit_bias of request {sequence.index + 1} names the "
            f"token id {biases[-1][0]}; the model's vocabulary has {vocabulary}"
        )
