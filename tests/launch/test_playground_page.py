"""The playground's page in a real browser: what is done on it and what it shows.

Needs Debian's chromium, which .ci/run installs.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlencode
from xml.etree import ElementTree

import jax.numpy as jnp
import numpy as np
import pytest
from test_playground import BYTES, END, reader_of

from launch.playground.models import Models
from launch.playground.reading import Text
from launch.playground.routes import routes
from model.generate.choose import Choice, Sampling, filter_logits
from tests.serving import running, tiny_serving

# How brightly each token is marked as looked at.
LOOKS = "tokens => tokens.map(token => Number(token.style.getPropertyValue('--look') || 0))"
playwright = pytest.importorskip("playwright.sync_api", reason="the package playwright is not installed")
expect = playwright.expect
CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.end_to_end,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium to show the page: apt-get install chromium"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with running(tiny_serving(tokenizer=BYTES), routes=routes(Models(["a", "bb"], reader_of))) as address:
        yield address


@pytest.fixture
def opened(browser, address) -> Iterator[Any]:
    """A function that opens a page; in the end, nothing on it went wrong and nobody else was asked for anything."""
    with contextlib.ExitStack() as stack:

        def open_page(query: str = "", at: str = address, settled: bool = True, **options: Any) -> Any:
            context = browser.new_context(viewport={"width": 1440, "height": 1000}, **options)
            stack.callback(context.close)
            page = context.new_page()
            wrong: list[str] = []
            page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
            page.on("pageerror", lambda error: wrong.append(str(error)))
            page.on(
                "request",
                lambda request: None if request.url.startswith((at, "blob:", "data:")) else wrong.append(request.url),
            )
            stack.callback(lambda: check(wrong))
            page.goto(f"{at}/{query}")
            if settled:
                settle(page)
            return page

        yield open_page


def check(wrong: list[str]) -> None:
    assert not wrong


def settle(page: Any, tokens: int | None = None) -> None:
    """Wait until the text is read."""
    expect(page.locator("#status")).to_have_text(re.compile(rf"^{tokens or '[0-9]+'} tokens$"), timeout=30_000)


def rows(page: Any, table: int = 0) -> dict[int, dict[str, Any]]:
    """The rows of a table, by token."""
    found = page.locator(".table").nth(table).locator(".row").evaluate_all(
        "rows => rows.map(row => ({...row.dataset, cut: row.classList.contains('cut'), text: row.innerText}))"
    )  # fmt: skip
    return {int(row["token"]): row for row in found}


def ranked(page: Any) -> list[dict[str, Any]]:
    """The rows of the first table, the likeliest first."""
    return sorted(rows(page).values(), key=lambda row: int(row["rank"]))


def ids(page: Any) -> list[int]:
    """The tokens of the text that is shown, from its numbers."""
    with page.expect_download() as download:
        page.click("#export summary")
        page.click("[data-export=json]")
    return [token["id"] for token in json.loads(download.value.path().read_text("utf-8"))["networks"][0]["tokens"]]


def softmax(logits_V: np.ndarray) -> np.ndarray:
    exp_V = np.exp(logits_V.astype(np.float64) - logits_V.max())
    return exp_V / exp_V.sum()


def test_the_table_shows_the_probabilities_of_the_whole_vocabulary(opened):
    page = opened("?text=def+f(x)")
    probabilities_V = softmax(reader_of("a").read(Text((END, *b"def f(x)"))).logits_V)
    shown = rows(page)
    assert set(shown) == set(np.argsort(-probabilities_V, kind="stable")[:20].tolist())
    for token, row in shown.items():
        assert float(row["probability"]) == pytest.approx(probabilities_V[token], abs=1e-3)
        assert float(row["own"]) == pytest.approx(probabilities_V[token], abs=1e-5)
    mass = float(page.locator(".tail").get_attribute("data-mass"))
    assert mass == pytest.approx(1 - sum(probabilities_V[token] for token in shown), abs=1e-5)
    assert "237 other tokens" in page.inner_text(".tail")


def test_typing_is_read_along(opened):
    page = opened("?text=de")
    page.fill("#text", "def g")
    settle(page, 6)
    assert [token.inner_text() for token in page.locator("#text-tokens .token").all()] == ["<|endoftext|>", *"def g"]
    assert page.locator(".branch").count() == 1  # What was typed over is no branch.


def test_sliding_changes_the_table_without_another_forward_pass(opened):
    page = opened("?text=abc")
    asked: list[str] = []
    page.on("request", lambda request: "/api/" in request.url and asked.append(request.url))
    page.evaluate(
        "slider => { slider.value = 360; slider.dispatchEvent(new Event('input')); }",
        page.query_selector("#slider-topK"),
    )
    kept = [row for row in rows(page).values() if not row["cut"]]
    k = int(page.locator("#slider-topK + output").inner_text())
    assert len(kept) == k < 20
    assert sum(float(row["probability"]) for row in kept) == pytest.approx(1)
    assert all("top-k" in row["text"] for row in rows(page).values() if row["cut"])
    page.focus("#slider-temperature")
    for _ in range(30):
        page.keyboard.press("ArrowLeft")
    assert max(float(row["probability"]) for row in rows(page).values()) > max(
        float(row["probability"]) for row in kept
    )
    assert not asked


def test_greedy_is_a_switch_of_its_own(opened):
    page = opened("?text=abc&temperature=0.7&top_k=5")
    page.check("#greedy")
    assert [float(row["probability"]) for row in sorted(rows(page).values(), key=lambda row: int(row["rank"]))][:2] == [
        1,
        0,
    ]
    page.uncheck("#greedy")
    assert sum(float(row["probability"]) > 0 for row in rows(page).values()) == 5


SETTINGS = [
    {},
    {"temperature": 0.5},
    {"top_k": 7},
    {"top_p": 0.6},
    {"min_p": 0.2},
    {"temperature": 1.7, "top_k": 40, "top_p": 0.9, "min_p": 0.05},
    {"temperature": 0.3, "top_k": 3, "top_p": 0.2},
    {"top_k": 6, "top_p": 0.7},  # In another order, more would stay.
    {"top_p": 0.9, "min_p": 0.3},  # In another order, fewer would.
    {"temperature": 1.3, "top_k": 100, "min_p": 0.5},
]


def test_the_filters_of_the_page_are_those_of_the_sampler(opened):
    page = opened("?text=abc")
    logits_BV = np.random.default_rng(0).normal(scale=2, size=(3, 200)).astype(np.float32)
    logits_BV[0, 50:60] = logits_BV[0, 49]  # Equals.
    for settings in SETTINGS:
        choice = Choice.of([Sampling(**settings)] * len(logits_BV), logits_BV.shape[1])
        expected_BV = np.asarray(filter_logits(jnp.asarray(logits_BV), choice))
        given = {"temperature": 1, "topK": 0, "topP": 1, "minP": 0, "greedy": False}
        names = {"temperature": "temperature", "top_k": "topK", "top_p": "topP", "min_p": "minP"}
        given |= {names[name]: value for name, value in settings.items()}
        for logits_V, expected_V in zip(logits_BV, expected_BV, strict=True):
            found = page.evaluate(
                """async ([logits, settings]) => {
                    const { ranked, filtered } = await import('/playground/filters.js');
                    const order = ranked(Float32Array.from(logits));
                    const { probabilities, cut } = filtered(Float32Array.from(logits), order, settings);
                    const result = new Array(logits.length);
                    order.forEach((id, rank) => { result[id] = cut(rank) ? 0 : probabilities[rank]; });
                    return result;
                }""",
                [logits_V.tolist(), given],
            )
            np.testing.assert_allclose(found, softmax(expected_V), atol=1e-6)
            np.testing.assert_array_equal(np.array(found) > 0, np.isfinite(expected_V))


def test_a_candidate_that_is_clicked_is_the_next_token(opened):
    page = opened("?text=abc")
    token = ranked(page)[6]
    page.click(f".row[data-token='{token['token']}']")
    settle(page, 5)
    assert ids(page) == [END, *b"abc", int(token["token"])]
    probabilities_V = softmax(reader_of("a").read(Text((END, *b"abc", int(token["token"])))).logits_V)
    for other, row in rows(page).items():
        assert float(row["own"]) == pytest.approx(probabilities_V[other], abs=1e-3)


def test_steps_repeat_with_the_seed_and_running_ends_when_asked(opened):
    page = opened("?text=abc&seed=5")
    page.keyboard.press("s")
    settle(page, 5)
    page.keyboard.press("s")
    settle(page, 6)
    first = ids(page)
    again = opened("?text=abc&seed=5")
    again.click("#run")
    expect(again.locator("#status")).to_have_text(re.compile(r"^([6-9]|\d{2,}) tokens$"))
    again.keyboard.press("b")  # Whoever goes back stops it.
    expect(again.locator("#run")).to_have_text("Run")
    again.click("#text-tokens .token >> nth=5")
    settle(again, 6)
    assert ids(again) == first
    greedy = opened("?text=abc&greedy=1")
    best = ranked(greedy)[0]
    greedy.click("#step")
    settle(greedy, 5)
    assert ids(greedy)[-1] == int(best["token"])


def test_going_back_and_choosing_otherwise_makes_a_branch(opened):
    page = opened("?text=abc")
    best, second, *_ = ranked(page)
    page.click(f".row[data-token='{best['token']}']")
    settle(page, 5)
    page.click("#text-tokens .token >> nth=3")
    settle(page, 4)
    assert page.locator(".token.later").count() == 1
    assert page.locator(".row.chosen").get_attribute("data-token") == best["token"]
    page.click(f".row[data-token='{second['token']}']")
    settle(page, 5)
    assert page.locator(".branch").count() == 3  # What is common, and both ends.
    assert ids(page)[-1] == int(second["token"])
    page.click(".branch >> nth=1")
    settle(page, 5)
    assert ids(page)[-1] == int(best["token"])


def test_a_character_that_is_not_whole_is_shown_as_bytes(opened):
    page = opened("?text=a")
    page.fill("#text", "我")
    settle(page, 4)
    pieces = [token.inner_text() for token in page.locator("#text-tokens .token").all()][1:]
    assert pieces[:2] == ["E6", "88"]
    assert pieces[2] == "91我"
    assert page.locator("#text-tokens .whole").inner_text() == "我"
    page.click("#text-tokens .token >> nth=2")
    settle(page, 3)
    page.click(".more")
    row = page.locator(".row[data-token='145']")  # 0x91
    if row.count():
        assert "我" in row.inner_text()
    assert page.locator(".label .bytes").count() > 0


def test_hovering_a_token_shows_where_it_looks(opened):
    page = opened("?text=def+f(x)&layer=1&head=2")
    weights_TS = reader_of("a").read(Text((END, *b"def f(x)"))).weights["self"][1, 2]
    page.hover("#text-tokens .token >> nth=5")
    seen = page.locator("#text-tokens .token").evaluate_all(LOOKS)
    expected = np.where(weights_TS[5] >= 0.01, np.sqrt(weights_TS[5]), 0)
    np.testing.assert_allclose(seen, expected, atol=1e-3)
    lines = np.count_nonzero(np.delete(weights_TS[5], 5) >= 0.01)
    assert page.locator("#arcs path").count() == lines > 0
    assert "Layer 1, head 2: f reads from" in page.inner_text("#looking")


def test_a_click_knocks_a_head_out_and_the_table_moves(opened):
    page = opened("?text=def+f(x)")
    before = rows(page)
    page.click("[data-value=off]")
    box = page.locator("#grid").bounding_box()
    page.mouse.click(box["x"] + 26 + 20, box["y"] + 26 + 20)  # Layer 0, head 0.
    expect(page.locator("#restore")).to_be_visible()
    expect(page.locator(".note").first).to_contain_text("bits from the intact network")
    off = frozenset({("self", 0, 0)})
    probabilities_V = softmax(reader_of("a").read(Text((END, *b"def f(x)"), off=off)).logits_V)
    after = rows(page)
    for token, row in after.items():
        assert float(row["own"]) == pytest.approx(probabilities_V[token], abs=1e-3)
    assert any(
        abs(float(after[token]["own"]) - float(before[token]["own"])) > 1e-3 for token in set(after) & set(before)
    )
    page.click("#restore")
    expect(page.locator("#restore")).to_be_hidden()
    assert rows(page) == before


def test_two_networks_stand_side_by_side(opened):
    page = opened()
    assert page.locator(".table").count() == 2
    for table, name in enumerate(("a", "bb")):
        probabilities_V = softmax(reader_of(name).read(Text((END, *b"def "))).logits_V)
        for token, row in rows(page, table).items():
            assert float(row["own"]) == pytest.approx(probabilities_V[token], abs=1e-3)


def test_networks_of_different_shapes_stand_side_by_side(opened):
    shapes = {"a": {}, "deep": {"num_layers": 3, "num_heads": 2}, "plain": {"network": "lstm"}}
    pages = routes(Models([*shapes], lambda name: reader_of(name, **shapes[name])))
    with running(tiny_serving(tokenizer=BYTES), routes=pages) as address:
        page = opened("?text=abc&model=deep&compare=a&layer=2&head=1&off=self.2.1,self.0.3", at=address)
        texts = [Text((END, *b"abc"), off=frozenset({head})) for head in (("self", 2, 1), ("self", 0, 3))]
        for table, (name, text) in enumerate(zip(("deep", "a"), texts, strict=True)):
            probabilities_V = softmax(reader_of(name, **shapes[name]).read(text).logits_V)
            for token, row in rows(page, table).items():
                assert float(row["own"]) == pytest.approx(probabilities_V[token], abs=1e-3)
        assert page.inner_text("#map-title") == "Layer 2, head 1"
        page.click("#panes [data-value='1']")
        expect(page.locator("#map-title")).to_have_text("Layer 1, head 1")
        page.select_option("#compare", "plain")
        expect(page.locator("#panes")).to_contain_text("plain")
        expect(page.locator("#blind")).to_be_visible()
        expect(page.locator("#heads")).to_be_hidden()
        page.click("#panes [data-value='0']")
        expect(page.locator("#map-title")).to_have_text("Layer 0, head 0")


def test_a_link_brings_back_what_is_shown(opened):
    query = "?text=ab&temperature=0.7&top_k=9&layer=1&head=3&off=self.0.1&colour=entropy&seed=4&compare=bb"
    page = opened(query)
    page.click(f".row[data-token='{next(iter(rows(page)))}']")
    settle(page, 4)
    page.wait_for_url(re.compile("head=3"))
    page.wait_for_timeout(600)
    again = opened(page.url.removeprefix(page.url.split("?")[0]))
    assert ids(again) == ids(page)
    assert rows(again) == rows(page)
    assert rows(again, 1) == rows(page, 1)
    assert again.inner_text("#map-title") == "Layer 1, head 3"
    assert again.locator("#colours [aria-checked=true]").inner_text() == "Entropy"
    assert again.input_value("#seed") == "4"


def test_a_link_to_another_network_is_told(opened):
    page = opened("?text=abc&model=runs/other", settled=False)
    expect(page.locator("#status")).to_have_text("The link shows runs/other, which is not served here.")
    assert len(rows(page)) == 20


def test_pictures_can_be_kept(opened, tmp_path):
    page = opened("?text=abc")
    for kind, begins in (("svg", b"<svg"), ("png", b"\x89PNG")):
        with page.expect_download() as download:
            page.click("#export summary")
            page.click(f"[data-export={kind}]")
        content = download.value.path().read_bytes()
        assert content.startswith(begins)
        assert len(content) > 2000
        if kind == "svg":
            assert "What comes next" in "".join(ElementTree.fromstring(content).itertext())


def test_a_translator_shows_from_which_words_it_writes(opened):
    translator = reader_of(network="encoder_decoder")
    pages = routes(Models(["t"], lambda name: translator))
    with running(tiny_serving(tokenizer=BYTES), routes=pages) as address:
        page = opened("?source=ab+c&text=xy", at=address)
        source, target = (*b"ab c", END), (END, *b"xy")
        found = translator.read(Text(target, source))
        probabilities_V = softmax(found.logits_V)
        for token, row in rows(page).items():
            assert float(row["own"]) == pytest.approx(probabilities_V[token], abs=1e-3)
        page.click("[data-value=cross]")
        settle(page)
        page.hover("#text-tokens .token >> nth=1")
        seen = page.locator("#source-tokens .token").evaluate_all(LOOKS)
        weights_S = found.weights["cross"][0, 0, 1]
        np.testing.assert_allclose(seen, np.where(weights_S >= 0.01, np.sqrt(weights_S), 0), atol=1e-3)


@pytest.mark.parametrize(("scheme", "width"), [("dark", 390), ("light", 1440)])
def test_nothing_hangs_over_the_edge_and_text_stands_out(opened, scheme, width, tmp_path):
    page = opened("?text=def+area(width,+height):+return+width&off=self.0.0&top_k=5", color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 844})
    page.wait_for_timeout(300)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.screenshot(path=tmp_path / f"{scheme}-{width}.png", full_page=True)
    for place in ("h1", "#text", ".quiet", ".row .label", ".row.cut .label", "#step", "#status", "[aria-checked=true]"):
        ink, ground = page.locator(place).first.evaluate(COLOURS)
        assert contrast(ink, ground) >= 4.5, place  # WCAG 2.2, 1.4.3.


# The colour of an element and that of the first ground below it, as [red, green, blue] from 0 to 255.
COLOURS = """element => {
    const parts = colour => colour.match(/[0-9.]+/g).map(Number);
    let ground = element;
    while (parts(getComputedStyle(ground).backgroundColor)[3] === 0) ground = ground.parentElement;
    return [getComputedStyle(element).color, getComputedStyle(ground).backgroundColor].map(c => parts(c).slice(0, 3));
}"""


def contrast(*colours: list[float]) -> float:
    """How much lighter one is than the other, as WCAG 2.2 measures it: 1 to 21."""
    light = []
    for colour in colours:
        linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in np.array(colour) / 255]
        light.append(np.dot(linear, [0.2126, 0.7152, 0.0722]) + 0.05)
    return max(light) / min(light)


def test_all_can_be_done_from_the_keyboard(opened):
    page = opened("?text=abc")
    page.focus("#text-tokens .token.current")
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#looking")).to_contain_text("b reads from")
    page.keyboard.press("Enter")
    settle(page, 3)
    page.focus(".row[data-rank='0']")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    third = ranked(page)[2]
    page.keyboard.press("Enter")
    settle(page, 4)
    assert ids(page) == [END, *b"ab", int(third["token"])]
    page.focus("#grid")
    page.keyboard.press("ArrowRight")
    expect(page.locator("#map-title")).to_have_text("Layer 0, head 1")
    page.keyboard.press("ArrowDown")
    expect(page.locator("#map-title")).to_have_text("Layer 1, head 1")
    page.keyboard.press("x")
    expect(page.locator("#restore")).to_have_text("Restore the head")
    page.keyboard.press("b")
    settle(page, 3)


def test_a_long_text_of_many_heads_answers_at_once(opened):
    """First paint within a second; a hover within 50 ms at 256 tokens and 30 x 9 heads, and without a question."""
    pages = routes(Models(["a"], lambda name: reader_of(num_layers=30, num_heads=9, num_kv_heads=3, width=36)))
    with running(tiny_serving(tokenizer=BYTES), routes=pages) as address:
        text = ("The animal was tired. " * 12)[:255]
        page = opened(f"?{urlencode({'layer': 5, 'head': 3, 'text': text})}", at=address)
        page.reload()
        settle(page)
        assert page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime") < 1000
        assert page.locator("#text-tokens .token").count() > 250
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        milliseconds = page.evaluate(
            """() => {
                const took = [...document.querySelectorAll('#text-tokens .token')].slice(200, 240).map(token => {
                    const start = performance.now();
                    token.dispatchEvent(new PointerEvent('pointerover', { bubbles: true }));
                    document.body.getBoundingClientRect();  // The layout is made now.
                    return performance.now() - start;
                });
                return took.sort((a, b) => a - b)[20];
            }"""
        )
        assert page.locator("#arcs path").count() > 5
        assert milliseconds < 50
        assert not asked


def test_a_text_that_is_too_long_is_told(opened):
    page = opened("?text=abc")
    page.fill("#text", "x" * 600)
    expect(page.locator("#status")).to_contain_text("texts of 1 to 512")
    page.fill("#text", "x")
    settle(page, 2)
