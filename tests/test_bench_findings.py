"""What ``mlx-spec bench`` recommends, on numbers made up: nothing that noise explains."""

from __future__ import annotations

import pytest

from mlx_spec.bench.findings import Contender, Measured, noise_of, recommend

PLAIN = Contender("plain")
NGRAM = Contender("ngram", drafts=True)
HEAD = Contender("head", drafts=True, models=1)
NOISE = 0.02


def cell(
    arm: Contender, *ratios: float, batch: int = 1, plain: float = 100.0, same: bool = True
) -> Measured:
    """An arm whose speed is that of plain decoding times its middle ratio."""
    middle = sorted(ratios)[len(ratios) // 2]
    return Measured(None, batch, 128, arm, plain * middle, ratios, same)


def plain(batch: int = 1, speed: float = 100.0) -> Measured:
    return cell(PLAIN, 1.0, 1.0, 1.0, batch=batch, plain=speed)


def chosen(*cells: Measured, noise: float = NOISE) -> str:
    """The arm for one prompt at a time."""
    return recommend(cells, noise)[0].choice.name


def test_the_fastest_wins_where_it_wins_beyond_the_noise() -> None:
    assert chosen(plain(), cell(NGRAM, 1.2, 1.3, 1.25), cell(HEAD, 1.8, 1.9, 1.7)) == "head"
    (only,) = recommend([plain(), cell(HEAD, 1.8, 1.9, 1.7)], NOISE)
    assert (only.purpose, only.batch, only.ratio, only.speed) == ("one", 1, 1.8, 180.0)


@pytest.mark.parametrize("ratios", [(1.01, 1.02, 1.015), (0.97, 0.98, 0.9), (1.0, 1.0, 1.0)])
def test_what_lies_within_the_noise_is_not_recommended(ratios: tuple[float, ...]) -> None:
    assert chosen(plain(), cell(HEAD, *ratios)) == "plain"
    assert chosen(plain(), cell(HEAD, 1.05, 1.06, 1.04), noise=0.1) == "plain"


def test_a_gain_of_some_rounds_only_is_luck() -> None:
    """A median says little where the machine was busy with other things."""
    assert chosen(plain(), cell(HEAD, 0.4, 1.3, 1.6)) == "plain"
    assert chosen(plain(), cell(HEAD, 0.9, 1.3, 1.3, 1.3, 1.6)) == "head"
    assert chosen(plain(), cell(HEAD, 0.9, 0.9, 1.3, 1.3, 1.6)) == "plain"


def test_of_two_that_are_as_good_the_lighter_wins() -> None:
    """No second model where n-grams do as well; and none that is not the fastest otherwise."""
    assert chosen(plain(), cell(HEAD, 1.51, 1.52, 1.5), cell(NGRAM, 1.5, 1.5, 1.5)) == "ngram"
    assert chosen(plain(), cell(HEAD, 1.6, 1.6, 1.6), cell(NGRAM, 1.5, 1.5, 1.5)) == "head"


def test_what_says_something_else_is_never_recommended() -> None:
    assert chosen(plain(), cell(HEAD, 2.0, 2.0, 2.0, same=False)) == "plain"


def test_several_lengths_of_prompts_count_together() -> None:
    wins, loses = cell(HEAD, 1.5, 1.5, 1.5), cell(HEAD, 0.5, 0.5, 0.5)
    assert chosen(plain(), wins, plain(), loses) == "plain"


def test_many_prompts_take_the_fewest_rows_that_are_as_fast() -> None:
    cells = [plain(1, 100), plain(4, 300), plain(8, 397), plain(16, 400)]
    one, many = recommend([*cells, cell(NGRAM, 1.4, 1.4, 1.4, batch=1)], NOISE)
    assert (one.choice.name, one.over_one) == ("ngram", 1.0)
    assert (many.choice.name, many.batch, many.rising) == ("plain", 8, False)
    assert many.over_one == pytest.approx(397 / 140)
    *_, many = recommend([*cells, plain(32, 800)], NOISE)
    assert (many.batch, many.rising) == (32, True)


def test_a_draft_may_move_the_best_number_of_rows() -> None:
    cells = [plain(1, 100), plain(4, 300), plain(16, 320)]
    *_, many = recommend([*cells, cell(HEAD, 1.5, 1.5, 1.5, batch=4, plain=300)], NOISE)
    assert (many.batch, many.choice.name, many.ratio) == (4, "head", 1.5)


def test_each_form_of_the_weights_has_its_own() -> None:
    four = [
        Measured("4", 1, 128, PLAIN, 300.0, (1.0,)),
        Measured("4", 1, 128, HEAD, 200.0, (0.7,)),
    ]
    found = recommend([plain(), cell(HEAD, 1.5, 1.5, 1.5), *four], NOISE)
    assert [(one.weights, one.choice.name) for one in found] == [(None, "head"), ("4", "plain")]


def test_one_row_was_not_measured() -> None:
    (only,) = recommend([plain(4, 300), plain(8, 500)], NOISE)
    assert (only.purpose, only.batch, only.over_one) == ("many", 8, 1.0)


def test_noise_is_how_far_plain_decoding_is_from_itself() -> None:
    assert noise_of([0.97, 1.03, 1.0, 1.02, 0.98]) == pytest.approx(0.04)
    assert noise_of([1.0, 1.0, 1.0]) == noise_of([]) == 0.01
    assert noise_of([1.0, 1.01, 3.0]) == pytest.approx(0.02)  # one hiccup is not the rule
