"""A page opens offline, and nothing that data says can become markup."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import pytest

from launch.views.page import embed, escape, page

HOSTILE = "</script><script>alert('x')</script><b onclick=\"a\">&amp;<!-- \u2028"


class Elements(HTMLParser):
    """Start tags with their attributes, and the text inside scripts, as a browser would split them."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.text = ""
        self._inside = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts[-1] += data
        else:
            self.text += data


def test_hostile_text_in_a_chart_stays_data():
    spec = {"title": HOSTILE, "data": {"values": [{"text": HOSTILE}]}}
    elements = Elements(embed("chart", spec))
    assert [tag for tag, _ in elements.tags] == ["div", "script"]
    assert json.loads(elements.scripts[0]) == spec


def test_a_chart_with_a_number_that_json_cannot_say_is_refused():
    with pytest.raises(ValueError, match="JSON"):
        embed("chart", {"value": float("nan")})


def test_escape_keeps_the_text_and_drops_the_markup():
    elements = Elements(f'<p title="{escape(HOSTILE)}">{escape(HOSTILE)}</p>')
    assert elements.tags == [("p", {"title": HOSTILE})]
    assert elements.text == HOSTILE


def test_a_page_asks_the_network_for_nothing():
    html = page("t", embed("one", {"mark": "bar"}) + embed("two", {"mark": "bar"}))
    elements = Elements(html)
    for tag, attributes in elements.tags:
        assert tag not in ("link", "iframe", "img")
        assert "src" not in attributes
        assert "href" not in attributes
    policy = next(a["content"] for tag, a in elements.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    assert not re.search(r"https?:|\*", policy)
    assert "url(" not in html[: html.index("</style>")]


def test_the_chart_libraries_are_inlined_once_for_all_charts():
    html = page("t", "".join(embed(f"chart{i}", {"mark": "bar"}) for i in range(3)))
    libraries = [script for script in Elements(html).scripts if len(script) > 100_000]
    assert len(libraries) == 1
    assert "window.vegaEmbed" in libraries[0]
