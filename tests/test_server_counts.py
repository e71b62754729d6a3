"""What the server counts: what happened, under names that are promised."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mlx_spec.pipeline.options import options_of
from mlx_spec.server.flags import ServeFlags
from mlx_spec.server.options import ServerOptions
from mlx_spec.server.refusals import KINDS
from mlx_spec.server.service import Service
from tests.servers import CHAT, asgi_client, ask_all, have_met, open_toy, said, step_when


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    with open_toy() as made:
        yield made


def test_under_default_options_drafts_are_drafted_and_rows_batched() -> None:
    """Stops "configured, but not happening", this field's commonest fault."""
    repeated = [said(content=f"{text} = {text} = {text} = ") for text in ("a", "b", "c", "d")]

    async def ask(service: Service) -> dict[str, Any]:
        async with asgi_client(service) as client:
            body = {"max_tokens": 64}
            await asyncio.gather(*(client.post(CHAT, json=one | body) for one in repeated))
            await client.post(CHAT, json=repeated[0] | body)
            return dict((await client.get("/v1/stats")).json())

    with open_toy() as service:
        step_when(service, have_met(4))
        stats = asyncio.run(ask(service))
    happening = stats["happening"]
    assert happening["drafters"] == ["ngram"]
    assert happening["steps_with_a_draft"] > 0
    assert happening["steps_with_several_rows"] > 0
    assert happening["most_rows"] == 4
    assert happening["requests_with_a_known_prefix"] >= 1
    assert stats["drafters"]["ngram"]["drafted"] > 0
    assert stats["prefix"]["reused_tokens"] > 0


def test_statistics_keep_their_contract(service: Service) -> None:
    """What the page draws; the names are promised."""
    _, reply = ask_all(service, ("POST", CHAT, said()), ("GET", "/v1/stats", None))
    stats = reply.json()
    assert stats["model"] == "toy"
    assert stats["rows"] == {"running": 0, "size": 4}
    assert stats["queue"] == {"waiting": 0, "limit": ServerOptions().max_queue}
    for name in ("throughput_tps", "acceptance_rate", "draft_tokens_per_step", "uptime_s"):
        assert isinstance(stats[name], float), name
    assert set(stats["kv"]) >= {"bytes", "bytes_limit"}
    assert stats["ttft_ms"]["p50"] > 0
    assert stats["itl_ms"]["p95"] > 0
    assert stats["requests"]["finished"] >= 1
    assert set(stats["requests"]) == {"finished", "cancelled", "failed", "refused"}
    assert stats["configured"]["BatchingConfig"]["batch_size"] == 4
    assert stats["configured"]["SpeculationConfig"]["enabled"] is True
    assert stats["happening"]["steps"] > 0


def test_metrics_are_prometheus_own(service: Service) -> None:
    from prometheus_client.parser import text_string_to_metric_families

    ask_all(service, ("POST", CHAT, said()), ("POST", CHAT, {"messages": 5}))
    (reply,) = ask_all(service, ("GET", "/metrics", None))
    found = {one.name: one for one in text_string_to_metric_families(reply.text)}
    for name in (
        "requests",
        "refusals",
        "generated_tokens",
        "ttft_seconds",
        "itl_seconds",
        "draft_length",
        "rows_running",
        "queue_waiting",
        "tokens_per_second",
        "kv_bytes",
        "prefix_hits",
    ):
        assert f"mlx_spec_{name}" in found, name
    ends = {one.labels["reason"]: one.value for one in found["mlx_spec_requests"].samples}
    assert ends["length"] >= 1
    refusals = {one.labels.get("reason") for one in found["mlx_spec_refusals"].samples}
    assert "invalid_request" in refusals
    first = [one for one in found["mlx_spec_ttft_seconds"].samples if one.name.endswith("_count")]
    assert first[0].value >= 1


def test_the_page_on_serving_has_the_limits_that_there_are() -> None:
    page = (Path(__file__).parent.parent / "docs" / "serving.md").read_text(encoding="utf-8")
    options = options_of(ServerOptions)
    named = set(re.findall(r"`(--[a-z-]+)", page))
    every = [*options.values(), *options_of(ServeFlags).values()]
    known = {flag for one in every for flag in (one.flag, one.off, *one.names)}
    assert named <= known
    assert {one.flag for one in options.values() if one.group == "Limits"} <= named
    for kind in (*KINDS.values(), "draining", "unhealthy", "timeout", "internal"):
        assert f"`{kind}`" in page, kind
    rows = dict(re.findall(r"\| `(--[a-z-]+)` \| (\d+)", page))
    for flag, number in rows.items():
        default = options[flag.strip("-").replace("-", "_")].default
        assert int(number) in (default, default / 2**20), flag
