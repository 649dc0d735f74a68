"""The pages of launch.attend in a real browser, opened from a file: they draw what they were given and ask nobody.

Needs Debian's chromium, which .ci/run installs.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from launch.views.attention import HeadsView
from launch.views.attention_panels import Seen
from launch.views.knocked import Knocked
from launch.views.pieces import merged, visible
from launch.views.view import View
from tests.launch.test_views_attention import ABOUT, causal_weights
from tests.launch.test_views_pieces import END, pieces

playwright = pytest.importorskip("playwright.sync_api", reason="the package playwright is not installed")
CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.end_to_end,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium to show the page: apt-get install chromium"),
]
TEXT = pieces([END, *"a我b国 c".encode()])
WEIGHTS_LNTS = causal_weights(2, 3, len(TEXT.tokens))
AFTER_LNK = np.random.default_rng(0).dirichlet(np.ones(4), (2, 3))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def shown(browser, tmp_path: Path) -> Iterator[Any]:
    """A function that opens a view's page; in the end, nothing went wrong on it and nothing was asked of anybody."""
    wrong: list[str] = []
    context = browser.new_context(viewport={"width": 1600, "height": 1000})

    def show(view: View) -> Any:
        path = tmp_path / "view.html"
        path.write_text(view.html(), "utf-8")
        page = context.new_page()
        page.on("console", lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda request: asked.append(request.url) if not request.url.startswith("data:") else None)
        asked: list[str] = []
        page.goto(path.as_uri())
        page.wait_for_selector(".chart svg")
        assert asked == [path.as_uri()]
        return page

    yield show
    context.close()
    assert not wrong


def heat_map(page: Any, chart: str) -> dict[tuple[str, str], float]:
    """What the cells of the heat map tell: weights by query and key."""
    told = page.locator(f"#{chart} g.mark-rect [aria-label*='query: ']").evaluate_all(
        "cells => cells.map(cell => cell.getAttribute('aria-label'))"
    )
    cells = (dict(part.split(": ", 1) for part in one.split("; ")) for one in told)
    return {(cell["query"], cell["key"]): float(cell["weight"]) for cell in cells if "weight" in cell}


def expected(weights_TS: np.ndarray, names: list[str]) -> dict[tuple[str, str], float]:
    label = [f"{visible(name)}  ({place})" for place, name in enumerate(names)]
    return {(label[t], label[s]): float(weights_TS[t, s]) for t in range(len(names)) for s in range(t + 1)}


def test_the_heads_of_a_page_are_unpacked_merged_into_characters_and_shown_by_token_on_demand(shown):
    knocked = Knocked(["x", "y"], np.array([0.5, 0.25]), AFTER_LNK[..., :2])
    page = shown(HeadsView(ABOUT, Seen(TEXT, TEXT, WEIGHTS_LNTS), knocked))
    between_LNPQ = merged(WEIGHTS_LNTS, TEXT, TEXT)
    assert page.locator("#attention image").count() == 6
    page.locator("#attention image").nth(4).click(force=True)  # Layer 1, head 1.
    assert "Layer 1, head 1" in page.inner_text("#attention")
    assert heat_map(page, "attention") == pytest.approx(expected(between_LNPQ[1, 1], list(TEXT.texts)), abs=0.01)
    assert f"{AFTER_LNK[1, 1, 0]:.3f}" in page.inner_text("#attention")  # What the causal check says of this head.
    assert page.locator("#attention-tokens svg").count() == 0
    page.click("text=Token by token")
    page.wait_for_selector("#attention-tokens svg")
    page.locator("#attention-tokens image").nth(4).click(force=True)
    assert heat_map(page, "attention-tokens") == pytest.approx(
        expected(WEIGHTS_LNTS[1, 1], list(TEXT.tokens)), abs=0.01
    )
