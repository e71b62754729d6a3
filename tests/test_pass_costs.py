"""Tables of passes, without mlx: what is read of them, and how steps correct them."""

from __future__ import annotations

import math
import random
import threading

import pytest

from mlx_spec.control.factors import Factor
from mlx_spec.control.pass_costs import EDGES, PassCosts

# Milliseconds of a 135M-parameter model by tokens, on two cores with a fast BLAS: not monotone.
STAIRS = {1: 86, 2: 99, 4: 128, 8: 132, 12: 192, 16: 127, 18: 147, 24: 187, 32: 172, 48: 226}


def made(points: dict[int, float] | None = None, key: float = 1e-6) -> PassCosts:
    costs = PassCosts()
    costs.put({tokens: ms / 1e3 for tokens, ms in (points or STAIRS).items()}, key=key)
    return costs


def played(
    costs: PassCosts,
    truth: dict[int, float],
    steps: int,
    *,
    hiccups: float = 0.0,
    keys: int = 0,
    key: float = 0.0,
    seed: int = 1,
) -> None:
    """Steps of these numbers of tokens, in turn at random; ``truth`` in milliseconds."""
    rng = random.Random(seed)
    for _ in range(steps):
        tokens = rng.choice(list(truth))
        seconds = (truth[tokens] / 1e3 + keys * key) * rng.lognormvariate(0, 0.03)
        if rng.random() < hiccups:
            seconds *= rng.uniform(2, 20)
        costs.note(tokens, keys, seconds)


def test_points_lines_and_what_lies_beyond() -> None:
    costs = made()
    assert costs.known
    assert costs.seconds(8) == pytest.approx(0.132)
    assert costs.seconds(10) == pytest.approx((0.132 + 0.192) / 2)
    assert costs.seconds(14) < costs.seconds(12)  # nothing is made monotone
    assert costs.seconds(1) == pytest.approx(0.086)
    beyond = [costs.seconds(tokens) for tokens in (48, 64, 128, 500)]
    assert beyond == sorted(beyond)
    assert costs.seconds(8, 1000) == pytest.approx(0.133)


def test_a_last_edge_that_falls_promises_no_free_tokens() -> None:
    costs = made({1: 100, 8: 200, 16: 150})
    assert costs.seconds(64) > costs.seconds(16)


def test_what_was_never_timed_costs_by_its_tokens() -> None:
    costs = PassCosts()
    assert not costs.known
    assert costs.seconds(16) == pytest.approx(16 * costs.seconds(1))
    assert costs.width(9) == 9
    played(costs, {4: 128}, 10)
    assert costs.seconds(4) == pytest.approx(0.128, rel=0.05)
    assert costs.seconds(16) == pytest.approx(4 * costs.seconds(4))
    assert not costs.known  # one speed tells no shape


def test_one_point_alone_promises_nothing_either() -> None:
    costs = made({1: 100})
    assert not costs.known
    assert costs.seconds(6) == pytest.approx(0.6)


def test_a_pass_is_padded_to_where_it_is_measurably_cheaper() -> None:
    costs = made()
    assert [costs.width(tokens) for tokens in (1, 2, 4, 8, 9, 12, 15, 16)] == [
        1, 2, 4, 8, 16, 16, 16, 16,
    ]  # fmt: skip
    assert costs.width(20) == 20  # 24 is dearer, and 32 saves less than the margin
    assert costs.width(24) == 32
    assert costs.width(1000) == 1000
    assert costs.cheapest(12) == costs.seconds(16)
    for tokens in range(1, 60):
        width = costs.width(tokens)
        assert width >= tokens
        assert costs.seconds(width) <= costs.seconds(tokens)


def test_noise_pads_nothing() -> None:
    flat = made({tokens: 100 + (-2.0 if tokens % 4 else 1.9) for tokens in EDGES})
    assert [flat.width(tokens) for tokens in range(1, 129)] == list(range(1, 129))


def test_a_mistimed_point_is_run_and_mended_and_not_padded_away() -> None:
    """Timed while another program ran: what is padded away would never be seen again."""
    costs = made({1: 137, 2: 232, 3: 63, 4: 64, 6: 412, 8: 601, 12: 725, 15: 76, 16: 74})
    assert [costs.width(tokens) for tokens in (1, 2, 6, 8, 12)] == [1, 2, 6, 8, 12]
    for _ in range(20):
        costs.note(8, 0, 0.072)
    assert costs.seconds(8) == pytest.approx(0.072, rel=0.1)


def test_padding_does_not_flutter_with_what_steps_say() -> None:
    costs = made()
    rng, seen = random.Random(3), set()
    for _ in range(300):
        costs.note(16, 0, 0.127 * rng.lognormvariate(0, 0.05))
        seen.add(costs.width(12))
    assert seen == {16}


@pytest.mark.parametrize("slower", [2.0, 0.5])
def test_a_machine_that_changes_its_speed_keeps_its_shape(slower: float) -> None:
    costs = made()
    played(costs, {1: 86, 8: 132}, 60)
    before = {tokens: costs.seconds(tokens) for tokens in EDGES}
    played(costs, {8: 132 * slower}, 12, seed=2)
    for tokens, seconds in before.items():
        assert costs.seconds(tokens) == pytest.approx(seconds * slower, rel=0.12), tokens
    assert costs.width(12) == 16


def test_hiccups_move_nothing() -> None:
    costs = made()
    played(costs, {4: 128, 16: 127}, 300, hiccups=0.1)
    for tokens, ms in STAIRS.items():
        assert costs.seconds(tokens) == pytest.approx(ms / 1e3, rel=0.06), tokens


def test_one_hiccup_moves_nothing_at_all() -> None:
    costs = made()
    costs.note(8, 0, 5.0)
    assert costs.seconds(8) == pytest.approx(0.132)


@pytest.mark.parametrize("wrong", [2.0, 0.6])
def test_a_point_that_was_mistimed_is_mended_and_no_other(wrong: float) -> None:
    costs = made({**STAIRS, 8: STAIRS[8] * wrong})
    truth = {tokens: float(STAIRS[tokens]) for tokens in (1, 2, 4, 16)}
    played(costs, truth, 40)
    played(costs, {**truth, 8: 132.0}, 60, seed=2)
    for tokens in (1, 2, 4, 8, 12, 16, 32):
        assert costs.seconds(tokens) == pytest.approx(STAIRS[tokens] / 1e3, rel=0.1), tokens


def test_a_mistimed_point_among_others_is_not_taken_for_a_slower_machine() -> None:
    costs = made({**STAIRS, 8: 66})
    truth = {1: 86.0, 2: 99.0, 16: 127.0}
    played(costs, truth, 60)
    for _ in range(3):
        played(costs, {8: 132.0}, 1)
        played(costs, {1: 86.0}, 1)
    assert costs.seconds(8) > 0.1
    assert costs.seconds(16) == pytest.approx(0.127, rel=0.05)


def test_what_lies_between_two_points_becomes_one() -> None:
    costs = made()
    played(costs, {1: 86, 8: 132, 16: 127}, 40)
    assert costs.seconds(9) == pytest.approx(0.147, rel=0.05)
    played(costs, {1: 86, 8: 132, 9: 185, 16: 127}, 60, seed=2)
    assert costs.seconds(9) == pytest.approx(0.185, rel=0.08)
    assert costs.seconds(8) == pytest.approx(0.132, rel=0.05)
    assert 9 not in costs.points[1]  # what was seen is of the moment, and not kept on disk


def test_a_context_that_is_dearer_than_thought_bends_the_table() -> None:
    costs = made(key=1e-6)
    for keys in (1000, 20_000, 40_000) * 30:
        played(costs, {8: 132.0, 16: 127.0}, 1, keys=keys, key=4e-6, seed=keys)
    assert costs.seconds(16, 40_000) == pytest.approx(0.127 + 0.16, rel=0.1)
    assert costs.seconds(16) == pytest.approx(0.127, rel=0.1)


def test_points_that_are_timed_later_are_taken_in_the_speed_of_the_old() -> None:
    costs = made({1: 86, 8: 132})
    costs.put({8: 0.264, 16: 0.254})  # the machine is half as fast by now
    assert costs.points[1][16] == pytest.approx(0.127)
    assert costs.seconds(16) == pytest.approx(0.254)
    assert costs.seconds(1) == pytest.approx(0.172)


def test_a_hiccup_in_one_of_two_looks_does_not_count() -> None:
    costs = made({1: 86, 8: 300, 16: 127, 32: 172})  # a hiccup at 8
    costs.put({tokens: ms / 0.9e3 for tokens, ms in {1: 86, 8: 132, 16: 127}.items()})
    assert costs.points[1] == {
        tokens: pytest.approx(ms / 1e3) for tokens, ms in {1: 86, 8: 132, 16: 127, 32: 172}.items()
    }
    assert costs.seconds(32) == pytest.approx(0.172 / 0.9)


def test_looks_of_another_process_are_joined() -> None:
    theirs, mine = made(), PassCosts()
    mine.put({1: 0.172, 8: 0.264, 33: 0.4})  # while the machine is half as fast
    mine.join(theirs)
    assert mine.points[1][33] == pytest.approx(0.2)
    assert mine.points[1][48] == pytest.approx(0.226)
    assert mine.seconds(33) == pytest.approx(0.4)  # and so it is now
    assert mine.key == 1e-6
    assert mine.looks_at()[8] == 2
    mine.join(theirs)
    assert mine.looks_at()[8] == 2  # the same look


def test_what_steps_say_of_one_point_pads_nothing() -> None:
    """A step of 32 rows may take longer than its pass for what one of 40 would pay, too."""
    points = {1: 60, 16: 100, 32: 130, 33: 136, 40: 158, 64: 200}
    costs = made(points)
    played(costs, {1: 60, 16: 100, 32: 200}, 300)
    assert costs.seconds(32) > 1.04 * costs.seconds(40)
    assert costs.width(32) == 32
    costs.put({32: 0.175, 40: 0.14})
    costs.put({32: 0.175, 40: 0.14})
    assert costs.width(32) == 40


def test_widths_are_tables_of_their_own_where_a_model_does_not_pack() -> None:
    costs = made({1: 100, 4: 110})
    costs.put({4: 0.2, 16: 0.4}, width=4)
    assert costs.seconds(4, width=1) == pytest.approx(0.11)
    assert costs.seconds(4, width=4) == pytest.approx(0.2)
    assert costs.seconds(4, width=3) == pytest.approx(0.17)  # between the two
    assert costs.seconds(8, width=9) == costs.seconds(8, width=4)
    for _ in range(20):
        costs.note(4, 0, 0.25, width=4)
    assert costs.seconds(4, width=4) == pytest.approx(0.25, rel=0.05)


def test_to_and_from_plain_data() -> None:
    costs = made()
    costs.put({2: 0.2}, width=2)
    played(costs, {8: 300.0}, 30)
    again = PassCosts.from_dict(costs.to_dict())
    assert again.points == costs.points == {1: {k: v / 1e3 for k, v in STAIRS.items()}, 2: {2: 0.2}}
    assert again.key == costs.key
    assert again.seconds(8) == pytest.approx(0.132)  # the speed was of the moment


@pytest.mark.parametrize(
    "held",
    [
        None,
        [],
        {},
        {"format": 0},
        {"format": 1, "points": {"1": {"1": 1.0}}, "key": 0, "looks": 1},  # drifted
        {"format": 2, "points": {"1": {"1": 1.0}}, "key": 0},
        {"format": 2, "timed": {"1": {"1": 1.0}}, "key": 0},
        {"format": 2, "timed": {"1": [{"1": -1.0}]}, "key": 0},
        {"format": 2, "timed": {"1": [{"0": 1.0}]}, "key": 0},
        {"format": 2, "timed": {"1": [{"1": float("nan")}]}, "key": 0},
        {"format": 2, "timed": {"x": [{"1": 1.0}]}, "key": 0},
        {"format": 2, "timed": {"1": [[1, 2]]}, "key": 0},
        {"format": 2, "timed": {"1": 3}, "key": 0},
        {"format": 2, "timed": {"1": [{"1": "long"}]}, "key": 0},
        {"format": 2, "timed": {"1": [{"1": 1.0}]}, "key": "much"},
    ],
    ids=repr,
)
def test_what_is_no_table_is_refused(held: object) -> None:
    with pytest.raises(ValueError, match=r"."):
        PassCosts.from_dict(held)


def test_many_threads() -> None:
    costs = made()
    errors: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            for _ in range(20):
                played(costs, {1: 86, 8: 132, 9: 150, 16: 127}, 5, seed=seed)
                costs.put({seed + 20: 0.1})
                assert all(costs.seconds(costs.width(n)) > 0 for n in range(1, 70))
                costs.to_dict()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def test_a_factor_never_runs_away() -> None:
    factor = Factor(6.0)
    for _ in range(100):
        factor.move(1e6, 1.0, 1.0)
    assert 0 < factor.times < 1e8


def test_a_small_part_takes_no_more_than_explains_a_surprise() -> None:
    """A draft of which nothing is known is a hundredth of a step that took half as long again."""
    factor = Factor(1.5)
    variance = 0.05**2 + 0.01**2 * factor.variance
    factor.move(math.log(1.5), 0.01, 1 / variance)
    assert 1 < factor.times <= 51
    before = factor.times
    factor.move(math.log(0.5), 0.01, 1 / variance)
    assert before / 5 <= factor.times < before


def test_two_points_beside_each_other_do_not_say_how_the_line_goes_on() -> None:
    """Stops a batch of 64 rows that never guesses far: it ran passes of 188 and 192 tokens, and
    what these differed by, noise, was taken for what tokens cost beyond."""
    costs = PassCosts()
    costs.put({tokens: 20 + 0.05 * tokens for tokens in EDGES})
    for _ in range(40):
        costs.note(188, 0, 0.98 * (20 + 0.05 * 188))
        costs.note(192, 0, 1.02 * (20 + 0.05 * 192))
    assert costs.usual(448) < 1.25 * (20 + 0.05 * 448)
