"""What may be done to logits before tokens are chosen: a bias, a penalty, a grammar's mask.

A rule is a function on the device of logits, positions and the tokens before them. Target and draft
are ruled alike, so that a draft still agrees with the target as often; the target's own ruled
sample decides, so that a text does not depend on whether it was drafted. No rule, no node in the
graph.

A rule that must see the draft on the host first (a grammar) says so by ``needs_host``. Steps are
then taken in turn: the draft is read while the target computes, and the rule hears of it by
``see``. Such a rule is applied to the target alone.

Positions, for a row that knows 5 tokens and a draft of 3::

    tokens     t0 t1 t2 t3 t4 |           the target chooses     draft 2 of the drafter's own chain
    draft                     d5 d6 d7    positions 5 6 7 8      positions 6
                                          draft d5 d6 d7         draft     d5
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace

import mlx.core as mx

from mlx_spec.cache.packing import TokenPacking
from mlx_spec.sequence import Sequence


@dataclass(frozen=True)
class RuleContext:
    """What a rule may look at; all arrays may still be computing.

    Attributes:
        sequences: the rows' records, in row order: who joined or left since is seen here.
        tokens: [B, C] int32, known tokens of each row from position 0; past ``lengths`` garbage.
        lengths: [B] int32, known tokens.
        positions: [B, N] int32, of the tokens to choose.
        draft: [B, K] int32, guesses for positions ``lengths ..``. The token at position p stands
            behind the first ``p - lengths`` of them.
    """

    sequences: Seq[Sequence]
    tokens: mx.array
    lengths: mx.array
    positions: mx.array
    draft: mx.array

    def previous(self) -> mx.array:
        """[B, N] int32: the token before each position, known or guessed."""
        pending = mx.take_along_axis(self.tokens, self.lengths[:, None] - 1, axis=1)
        both = mx.concatenate([pending, self.draft], axis=1)
        return mx.take_along_axis(both, self.positions - self.lengths[:, None], axis=1)

    def of(self, rows: Seq[int], index: mx.array) -> RuleContext:
        """Of some rows: their numbers, and the same on the device."""
        return RuleContext(
            [self.sequences[row] for row in rows],
            self.tokens[index],
            self.lengths[index],
            self.positions[index],
            self.draft[index],
        )

    def of_tokens(self, packing: TokenPacking) -> RuleContext:
        """Of the tokens of a packed pass, each as a row that chooses at one position."""
        own = self.of(packing.rows, packing.whose)
        return replace(own, positions=packing.packed(self.positions)[:, None])


@dataclass(frozen=True)
class Judged:
    """What a rule that has seen a draft knows of it.

    Attributes:
        counted: how many of each row's guesses, from the first on, say something of the drafter.
        tested: how many may be compared with the target's tokens; those behind them are dropped.
        late: rows of which it does not know what they may say: they say nothing in this step.
    """

    counted: list[int]
    tested: list[int]
    late: tuple[int, ...] = ()


class LogitsRule:
    """Changes logits; the base of all rules, which changes nothing.

    Attributes:
        needs_host: whether it must see the draft on the host (:meth:`see`) before :meth:`apply`.
    """

    needs_host: bool = False

    def concerns(self, sequences: Seq[Sequence]) -> bool:
        """Whether any of these rows is its affair; else a step passes it by."""
        return True

    def see(self, sequences: Seq[Sequence], draft: list[list[int]]) -> Judged | None:
        """Asked before :meth:`apply` where ``needs_host``: the rows, and the draft of each, which
        may be shorter than another's.

        Returns:
            Which guesses count and are compared, where this rule knows that some do not. None: all.
            By rejection whether one is compared may depend on those before it, never on itself.
        """
        return None

    def of_tokens(self, packing: TokenPacking) -> LogitsRule | None:
        """The same for the tokens of a packed pass, each as a row that chooses at one position.

        None where it knows rows only: then they are ruled, and sampled, as a whole rectangle.
        """
        return None

    def apply(self, logits: mx.array, context: RuleContext) -> mx.array:
        """Logits [B, N, V] as they shall be, lazily; -inf forbids a token.

        V is that of the model that made them, and may be padded: tokens keep their ids.
        """
        return logits

    def pick(self, tokens: mx.array, logits: mx.array, context: RuleContext) -> mx.array:
        """The target's tokens [B, N] as they shall be, chosen from logits after all rules.

        A negative one says that its row has none and fails.
        """
        return tokens


def rules_of_tokens(rules: Seq[LogitsRule], packing: TokenPacking) -> list[LogitsRule] | None:
    """These rules for the tokens of a packed pass; None where one of them cannot, as where the
    host does not know whose tokens they are."""
    if rules and packing.told is not None:
        return None
    made = [rule.of_tokens(packing) for rule in rules]
    own = [rule for rule in made if rule is not None]
    return own if len(own) == len(made) else None


def apply_rules(rules: Seq[LogitsRule], logits: mx.array, context: RuleContext) -> mx.array:
    """Logits [B, N, V] after all rules, in their order."""
    for rule in rules:
        logits = rule.apply(logits, context)
    return logits


def pick_tokens(
    rules: Seq[LogitsRule], tokens: mx.array, logits: mx.array, context: RuleContext
) -> mx.array:
    """Tokens [B, N] after all rules; the same array where none chooses."""
    for rule in rules:
        tokens = rule.pick(tokens, logits, context)
    return tokens
