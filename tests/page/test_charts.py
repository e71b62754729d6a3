"""The charts: they move with the server's figures, and leave a gap where there are none."""

from __future__ import annotations

import re

from playwright.sync_api import Locator, expect

from tests.page.server import PageServer
from tests.page.visit import Visit


def chart(visit: Visit, label: str) -> Locator:
    return visit.page.locator("#charts figure").filter(has_text=label)


def points(chart: Locator) -> list[list[tuple[float, float]]]:
    """Of its line, run by run."""
    runs = (chart.locator(".line").get_attribute("d") or "").split("M")[1:]
    pairs = [re.findall(r"([\d.]+) ([\d.]+)", run) for run in runs]
    return [[(float(x), float(y)) for x, y in run] for run in pairs]


def now(visit: Visit, server: PageServer, **figures: object) -> None:
    """The server's figures are these, and the page is told to look."""
    server.figures = {**server.figures, **figures}
    asked = server.asked
    visit.page.evaluate("window.dispatchEvent(new Event('online'))")
    visit.until(lambda: server.asked > asked)


def test_charts_follow_the_server_s_figures(visit: Visit, server: PageServer) -> None:
    speed, rate = chart(visit, "Throughput"), chart(visit, "Acceptance")
    expect(speed.locator("strong")).to_have_text("123")
    expect(rate.locator("strong")).to_have_text("61%")
    now(visit, server, throughput_tps=61.7, acceptance_rate=None, rows={"running": 7, "size": 8})
    expect(speed.locator("strong")).to_have_text("62")
    expect(rate.locator("strong")).to_have_text("\u2013")  # nothing was drafted lately
    expect(chart(visit, "Rows").locator("p")).to_have_text("7 of 8")
    now(visit, server, throughput_tps=12.0, acceptance_rate=1.0)
    expect(speed.locator("strong")).to_have_text("12")
    expect(rate.locator("strong")).to_have_text("100%")
    (line,) = points(speed)
    across, down = zip(*line, strict=True)
    assert list(across) == sorted(across)  # the latest is the last, at the right edge
    assert across[-1] == 120
    assert list(down) == sorted(down)  # slower and slower: lower and lower
    assert down[0] < down[-1] < 36
    assert len(points(rate)) == 2  # with a gap between them
    assert points(rate)[1][-1][1] < points(rate)[0][0][1]  # 100% is higher than 61%
    said = speed.locator("svg").get_attribute("aria-label")
    assert said == "Throughput: 12 tok/s now, 123 at most in two minutes"


def test_a_pointer_reads_earlier_figures(visit: Visit, server: PageServer) -> None:
    speed = chart(visit, "Throughput")
    expect(speed.locator("strong")).to_have_text("123")
    now(visit, server, throughput_tps=12.0)
    expect(speed.locator("strong")).to_have_text("12")
    speed.locator("svg").hover(position={"x": 2, "y": 10})  # far left: the earliest
    expect(speed.locator("strong")).to_have_text("123")
    expect(speed.locator(".rule")).to_have_attribute("d", re.compile("M"))
    visit.prompt().hover()
    expect(speed.locator("strong")).to_have_text("12")
