"""How kernels are judged: order, time, verdicts; and by a process that may hang or die."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from typing import Any

import mlx.core as mx
import pytest

import metal_sim
from metal_kernels.trials import judge as judging
from metal_kernels.trials.cases import CASES, error_at, error_of
from metal_kernels.trials.judge import (
    Followed,
    KernelTimes,
    KernelVerdict,
    from_record,
    judge,
    to_record,
)
from metal_kernels.trials.pairs import PAIRS
from metal_kernels.trials.site import (
    ALL_POINTS,
    LONG_POINTS,
    ORDER,
    POINTS,
    KernelPoint,
    KernelSite,
    points_of,
)
from mlx_spec.model.kernel_trial import trial_command, try_kernels
from tests.pretended import PretendedMachine, tried_here

SITES = (
    KernelSite("attention", "float32", 16, q_heads=4, kv_heads=2),
    KernelSite("rms_norm", "float32", 32, weight="float32"),
)
UNKNOWN = tuple(map(KernelVerdict, SITES))


def run(machine: PretendedMachine, known: Any = UNKNOWN, seconds: float = 2.0) -> Any:
    return {one.site.operation: one for one in tried_here(known, seconds, machine)}


@pytest.mark.parametrize(
    ("does", "state", "won", "words"),
    [
        ("quick", "right", ALL_POINTS, ""),
        ("slow", "right", (), ""),
        ("wrong", "wrong", (), "off by 7 times what its type allows at 1 x 1"),
        ("nan", "wrong", (), "off by NaN at 1 x 1"),
        ("raises", "raised", (), "RuntimeError at 1 x 1: [metal::Device] Unable to build metal"),
    ],
)
def test_a_kernel_is_judged(does: str, state: str, won: Any, words: str) -> None:
    machine = PretendedMachine({"attention": does})
    found = run(machine)
    known = found["attention"]
    assert (known.state, known.won) == (state, frozenset(won))
    assert known.why.startswith(words)
    assert "\n" not in known.why
    assert known.broken == (state != "right")
    assert known.left == ()
    # What is off is not tried further, and its neighbour is judged as ever.
    assert machine.calls["attention"] == (1 if known.broken else len(ALL_POINTS))
    assert found["rms_norm"].state == "right"


def test_one_wrong_point_turns_all_of_them_off() -> None:
    machine = PretendedMachine({"attention": lambda point: "wrong" if point.rows == 8 else "quick"})
    known = run(machine)["attention"]
    assert (known.state, known.won) == ("wrong", frozenset())
    assert "at 8 x 1" in known.why


def test_where_it_pays_is_known_by_point() -> None:
    machine = PretendedMachine({"attention": lambda point: "slow" if point.rows == 1 else "quick"})
    assert {point.rows for point in run(machine)["attention"].won} == {8, 32}


def test_a_long_context_has_a_time_of_its_own() -> None:
    slow_when_long = {"attention": lambda point: "slow" if point.keys > 5000 else "quick"}
    known = run(PretendedMachine(slow_when_long))["attention"]
    assert {point.keys for point in known.won} == {1024, 4096}
    assert "16,384 keys" in str(LONG_POINTS[-1])
    wrong_when_long = {"attention": lambda point: "wrong" if point.keys > 5000 else "quick"}
    known = run(PretendedMachine(wrong_when_long))["attention"]
    assert (known.state, known.won) == ("wrong", frozenset())


def test_when_the_time_is_up_the_rest_is_left_for_later() -> None:
    known: Any = UNKNOWN
    loads = 0
    while any(one.left for one in known):
        machine = PretendedMachine(step=0.3)
        known = tuple(run(machine, known).values())
        assert sum(machine.calls.values()) <= 7  # none begins after two seconds
        loads += 1
    assert loads == 3  # 18 steps of 0.3 seconds
    assert all(one.won == frozenset(points_of(one.site.operation)) for one in known)


def test_one_that_takes_all_the_time_leaves_the_rest_for_later() -> None:
    machine = PretendedMachine({"attention": "drags"})
    found = run(machine)
    assert machine.calls == {"attention": 1}
    assert found["rms_norm"].left == POINTS
    assert run(PretendedMachine(), tuple(found.values()))["rms_norm"].state == "right"


def test_the_points_that_decide_most_come_first_for_all() -> None:
    events = judge(UNKNOWN[::-1], PretendedMachine(), 1.0)
    begun = [
        (event["site"]["operation"], event["point"])
        for event in events
        if event["event"] == "begin"
    ]
    first = [1, 1, POINTS[0].keys]
    assert begun[:2] == [("attention", first), ("rms_norm", first)]
    short = begun[: 2 * len(POINTS)]
    assert [point for _, point in short[::2]] == [[p.rows, p.tokens, p.keys] for p in POINTS]
    # Long contexts last, and attention alone: nothing else looks at keys.
    long = [("attention", [p.rows, p.tokens, p.keys]) for p in LONG_POINTS]
    assert begun[len(short) :] == long


def begins(site: KernelSite, point: KernelPoint = POINTS[0]) -> dict[str, Any]:
    plain = [point.rows, point.tokens, point.keys]
    return {"event": "begin", "site": site.record(), "point": plain}


@pytest.mark.parametrize(
    ("now", "died", "state", "words"),
    [
        (1.2, "", "hung", "not done after 1.2 s at 1 x 1"),
        (0.4, "", "unfinished", "the time was up at 1 x 1"),
        (0.4, "exit code -6", "died", "its process ended at 1 x 1: exit code -6"),
    ],
)
def test_a_step_without_an_end_is_judged_too(now: float, died: str, state: str, words: str) -> None:
    followed = Followed(UNKNOWN)
    followed.take(begins(SITES[1]), 0.0)
    followed.stop(now, died)
    found = {one.site: one for one in followed.verdicts}
    assert (found[SITES[1]].state, found[SITES[1]].why) == (state, words)
    assert found[SITES[0]].state == "unfinished"
    if state == "unfinished":  # the next time it has all of the time for itself
        event = next(judge(followed.verdicts, PretendedMachine(), 1.0))
        assert event["site"] == SITES[1].record()


def test_what_never_gets_its_turn_is_given_up() -> None:
    """So that no number of loads pays for it for ever."""
    known: Any = UNKNOWN
    for _ in range(judging.MOST_IDLE):
        assert all(one.left for one in known)
        followed = Followed(known)
        followed.stop(2.0)
        known = followed.verdicts
    assert {one.state for one in known} == {"hung"}
    assert not any(one.left for one in known)


def test_verdicts_survive_json() -> None:
    known = run(PretendedMachine({"rms_norm": "wrong"}))
    for one in known.values():
        assert from_record(json.loads(json.dumps(to_record(one)))) == one


@pytest.mark.parametrize(
    "change",
    [
        {"state": "fine"},
        {"times": [[1, 1, 1024, 1e-4, 1e-4, -1.0]]},
        {"times": [[3, 1, 1024, 1e-4, 1e-4, 1.0]]},
        {"times": [[8, 1, 16384, 1e-4, 1e-4, 1.0]]},
        {"site": {**SITES[0].record(), "operation": "softmax"}},
        {"site": {**SITES[0].record(), "width": "16"}},
        {"site": {"operation": "rope"}},
        {"times": None},
    ],
    ids=str,
)
def test_records_of_something_else_are_refused(change: dict[str, Any]) -> None:
    record = to_record(KernelVerdict(SITES[0], times=((POINTS[0], KernelTimes(1.0, 2.0, 0.5)),)))
    from_record(record)
    with pytest.raises((ValueError, KeyError, TypeError)):
        from_record(record | change)


PRINTS = "import sys, json, os, time; asked = json.load(sys.stdin); known = asked['verdicts'];"
BEGIN = f"print({json.dumps(begins(SITES[0]))!r}, flush=True);"
TRIED = "known[0]['state'] = 'wrong'; print(json.dumps({'event': 'tried', 'verdict': known[0]}));"
END = "print(json.dumps({'event': 'end'}))"


@pytest.mark.parametrize(
    ("code", "state", "words"),
    [
        (BEGIN + TRIED + END, "wrong", ""),
        ("print('hello');" + BEGIN + TRIED + "print('{}'); print(3);" + END, "wrong", ""),
        (BEGIN + "time.sleep(60)", "hung", "not done after 0."),
        (BEGIN + "os.kill(os.getpid(), 9)", "died", "its process ended at 1 x 1: exit code -9"),
        (BEGIN + "sys.exit(3)", "died", "its process ended at 1 x 1: exit code 3"),
        ("sys.exit(1)", "unfinished", ""),
        ("time.sleep(60)", "unfinished", ""),
    ],
)  # fmt: skip
def test_a_child_that_hangs_or_dies_takes_nobody_along(
    code: str, state: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judging, "HANGS", 0.1)
    found = try_kernels(UNKNOWN, 0.7, (sys.executable, "-S", "-c", PRINTS + code))
    assert (found[0].state, found[0].why[: len(words)]) == (state, words)
    assert found[1].state == "unfinished"


def test_a_child_that_cannot_be_started_changes_nothing() -> None:
    assert try_kernels(UNKNOWN, 1.0, ("/no/such/python",)) == UNKNOWN


def test_a_frozen_program_starts_no_copy_of_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    assert trial_command() is not None
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    assert trial_command() is None


@pytest.mark.skipif(sys.platform == "darwin", reason="there is Metal")
def test_the_real_child_says_what_its_device_says() -> None:
    command = trial_command()
    assert command is not None
    found = try_kernels(UNKNOWN, 60.0, command)
    assert {one.state for one in found} == {"raised"}
    assert "the kernel needs Metal; none here" in found[0].why


ALL = {
    "attention": replace(SITES[0], window=9, sinks=True),
    "sample": KernelSite("sample", "float32", 300),
    "norm_rope": KernelSite(
        "norm_rope", "float32", 16, q_heads=4, kv_heads=2, weight="float32", dims=16
    ),
    "add_rms_norm": KernelSite("add_rms_norm", "float32", 32, weight="float32"),
    "rms_norm": SITES[1],
    "rope": KernelSite("rope", "float32", 16, q_heads=4, dims=16, custom=True),
}


@pytest.mark.skipif(metal_sim.unavailable() is not None, reason=metal_sim.unavailable() or "")
@pytest.mark.parametrize("operation", ORDER)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_real_kernels_are_right_on_the_simulator(operation: str, dtype: str) -> None:
    site = ALL[operation]
    site = replace(site, dtype=dtype, weight=dtype if site.weight else "")
    with metal_sim.installed():
        assert error_at(site, KernelPoint(4, 3, 40)) <= 1
        if operation == "attention":  # its keys split
            assert error_at(site, KernelPoint(1, 1, 600)) <= 1


def test_large_vectors_hide_no_small_ones() -> None:
    truth = mx.array([[1.0, 0.5], [100.0, 50.0]], mx.bfloat16)
    assert error_of(truth, truth) == 0
    assert error_of(truth.at[0, 1].add(0.05), truth) > 1
    assert error_of(truth.at[1, 1].add(0.25), truth) < 1
    assert not error_of(truth.at[0, 1].add(mx.nan), truth) <= 1
    assert error_of(truth.astype(mx.float32), truth) == float("inf")
    assert error_of(mx.array([1, 2]), mx.array([1, 3])) == float("inf")


@pytest.mark.parametrize("operation", ORDER)
def test_a_kernel_that_is_a_little_wrong_is_noticed(
    operation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One number of all is changed."""

    def planted(site: KernelSite, point: KernelPoint) -> Any:
        _, reference, factor = CASES[operation](site, point)

        def kernel() -> Any:
            out = reference()
            first = out if isinstance(out, mx.array) else out[-1]
            flat = first.reshape(-1)
            at = flat.size - 1 if operation != "attention" else 0
            wrong = mx.where(mx.arange(flat.size) == at, flat + flat * 0.01 + 1, flat)
            wrong = wrong.astype(first.dtype).reshape(first.shape)
            return wrong if isinstance(out, mx.array) else [*out[:-1], wrong]

        return kernel, reference, factor

    monkeypatch.setitem(CASES, operation, CASES[operation])
    right = dict(CASES)
    assert right.keys() == PAIRS.keys()
    monkeypatch.setattr("metal_kernels.trials.cases.CASES", {operation: planted})
    monkeypatch.setattr("tests.test_kernel_trials.CASES", right)
    assert not error_at(ALL[operation], KernelPoint(3, 2, 40)) <= 1
