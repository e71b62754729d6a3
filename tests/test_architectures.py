"""Every architecture that mlx-lm ships: mlx-lm's own tokens, or a refusal in words.

Five requests in three slots with ragged drafts, joins, leaves and a preemption, past several
windows of 16 tokens (``tests/architecture_runs.py``). A long run of each is the affair of
``scripts/architectures.py``, which writes ``docs/models.md``.
"""

from __future__ import annotations

from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.models.cache import make_prompt_cache

from mlx_spec.model.runner import ModelRunner, Rows
from mlx_spec.model.support import Support, examine
from tests.architecture_runs import Plan, run
from tests.architectures import UNDECODED, build, names

pytestmark = pytest.mark.usefixtures("uncompiled")

MOST_REFUSED, LEAST_EXACT = 3, 120  # of 123: 97%

# Attends by itself, so that nothing can stand between it and its caches.
OWN_ATTENTION = {"gemma2"}

PAGE = Path(__file__).parent.parent / "docs" / "models.md"
# A kind of cache, a form of a pass or a way to run a state again each.
KINDS = {
    "full": ["llama", "gpt_bigcode", "deepseek_v3"],
    "windows": ["gemma3", "gemma3n", "gpt_oss", "llama4"],
    "states": ["qwen3_next", "nemotron_h", "mamba", "lfm2", "rwkv7", "kimi_linear"],
    "both": ["falcon_h1", "baichuan_m1", "recurrent_gemma", "longcat_flash_ngram"],
}
TEXTS = [[(11 * row + 7 * i) % 64 for i in range(10)] for row in range(2)]
STARTS = [6, 2]


SEEN: dict[str, Support] = {}


def support(name: str) -> Support:
    """As it was found by a run, if there was one."""
    if name not in SEEN:
        SEEN[name] = examine(build(name))
    return SEEN[name]


def ragged(model: Any) -> float:
    """How far rows at positions of their own are from lone ones, relative to the logits."""
    rows = len(TEXTS)  # as many as there are key heads: what only fits by chance fits there
    runner = ModelRunner(model, rows)
    runner.pool.acquire(rows)
    runner.pool.reserve(16)
    for row, start in enumerate(STARTS):
        known = 6 if runner.pool.sliceable else start  # a state cannot be taken back
        fed = mx.array([TEXTS[row][:known]])
        runner.feed(Rows(fed, mx.zeros(1, mx.int32), known, row, uniform=True), 64, wait=True)
    new = mx.array([text[s : s + 3] for text, s in zip(TEXTS, STARTS, strict=True)])
    logits = runner.forward(Rows(new, mx.array(STARTS, mx.int32), 9, at=tuple(STARTS)))
    furthest = 0.0
    for row, start in enumerate(STARTS):
        lone = model(mx.array([TEXTS[row][: start + 3]]), cache=make_prompt_cache(model))[0, start:]
        furthest = max(furthest, float(mx.abs(lone - logits[row]).max() / mx.abs(lone).max()))
    return furthest


def one_token_as_several(model: Any) -> bool:
    """Whether a token alone gives bit for bit what it gives before others."""
    found = []
    for new in ([9], [9, 10, 11]):
        cache = make_prompt_cache(model)
        model(mx.array([[1, 2, 3, 4, 5, 6, 7, 8]]), cache=cache)
        found.append(model(mx.array([new]), cache=cache)[0, 0])
    return bool(mx.array_equal(*found))


@pytest.mark.cut(12)
@pytest.mark.parametrize("name", names())
def test_it_says_what_mlx_lm_says_or_is_refused_in_words(name: str) -> None:
    outcome = run(name)
    SEEN[name] = outcome.support
    assert outcome.wrong == []
    if outcome.support.verdict == "refused":
        assert outcome.support.reason
        assert "\n" not in outcome.support.reason
        assert "TypeError" not in outcome.support.reason
        return
    assert name not in UNDECODED
    # Never undrafted in silence: guesses of every row were verified, some of them rejected.
    assert min(outcome.drafted) > 0
    assert 0.4 < sum(outcome.accepted) / sum(outcome.drafted) < 0.9
    assert ragged(outcome.model) < 1e-5
    apart = outcome.folds or outcome.support.form.needs_host
    assert outcome.packs is not (apart or name in OWN_ATTENTION)
    assert (outcome.packed > 0) is outcome.packs
    exact = outcome.support.verdict == "exact"
    form = outcome.support.form
    assert one_token_as_several(outcome.model) == exact or form.tokens_apart or form.tokens_as_rows


@pytest.mark.cut(6)
@pytest.mark.parametrize("name", [name for group in KINDS.values() for name in group])
def test_a_model_of_its_own_kind_drafts_ahead(name: str) -> None:
    outcome = run(name, Plan(draft=True))
    assert outcome.wrong == []
    assert 0 < sum(outcome.accepted) < sum(outcome.drafted)
    assert (outcome.ahead > 0) is not outcome.support.form.needs_host


def test_most_of_what_mlx_lm_decodes_is_decoded_here() -> None:
    """Counted, so that it cannot shrink unseen."""
    verdicts = Counter(support(name).verdict for name in set(names()) - UNDECODED)
    assert verdicts["refused"] <= MOST_REFUSED, verdicts
    assert verdicts["exact"] >= LEAST_EXACT, verdicts


def test_the_table_knows_every_architecture_and_its_verdict() -> None:
    """Stops a new mlx-lm from going unseen: ``scripts/architectures.py`` writes the page."""
    page = PAGE.read_text(encoding="utf-8")
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| `")]
    said = {cells[0].strip("| `"): cells[3].split()[0].rstrip(":") for cells in rows}
    assert sorted(said) == sorted(names())
    assert f"mlx-lm {version('mlx-lm')};" in page
    assert said == {name: support(name).verdict for name in names()}
