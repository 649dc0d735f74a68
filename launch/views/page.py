"""The shell of every page: one self-contained HTML file that opens offline and asks the network for nothing.

Vega, Vega-Lite and Vega-Embed are inlined once per page from the bundle inside vl-convert; a page's content
security policy forbids every request, so a browser holds us to it. All text from data passes through
`escape`, all chart specifications through `embed`: nothing that a model wrote can become markup.
"""

from __future__ import annotations

import functools
import html
import importlib.resources
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import altair as alt

# Blue and orange stay apart for every common kind of colour-blindness, and both stand out on white and on black.
BLUE = "#3b82e0"
ORANGE = "#e8710a"
PALETTE = (BLUE, ORANGE, "#12a594", "#b05fd0")

# "currentColor" is the colour of the text around the chart: one picture for light and for dark pages.
CHART_CONFIG: dict[str, Any] = {
    "background": "transparent",
    "font": "system-ui, sans-serif",
    "view": {"stroke": None},
    "axis": {
        "labelColor": "currentColor",
        "titleColor": "currentColor",
        "domainColor": "currentColor",
        "tickColor": "currentColor",
        "gridColor": "currentColor",
        "gridOpacity": 0.12,
        "domainOpacity": 0.4,
        "tickOpacity": 0.4,
        "labelFontSize": 11,
        "titleFontSize": 11,
        "titleFontWeight": "normal",
    },
    "legend": {"labelColor": "currentColor", "titleColor": "currentColor", "titleFontWeight": "normal"},
    "title": {
        "color": "currentColor",
        "subtitleColor": "currentColor",
        "anchor": "start",
        "fontSize": 14,
        "fontWeight": 600,
        "subtitleFontSize": 11,
        "offset": 12,
    },
    "text": {"color": "currentColor"},
    "range": {"category": list(PALETTE)},
}

_POLICY = "default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; style-src 'unsafe-inline'; img-src data:"

_STYLE = """
:root { color-scheme: light dark; --ground: #ffffff; --panel: #f6f7f9; --ink: #1c2024; --quiet: #5f6770;
        --line: #d9dde2; --blue: #3b82e0; --orange: #e8710a; }
@media (prefers-color-scheme: dark) { :root { --ground: #121417; --panel: #1b1e23; --ink: #e8eaed;
        --quiet: #a0a8b1; --line: #343a41; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 28px 24px 64px; max-width: 1600px; background: var(--ground); color: var(--ink);
       font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 24px; line-height: 1.25; margin: 0 0 4px; letter-spacing: -0.01em; }
h2 { font-size: 18px; margin: 40px 0 8px; }
p { margin: 6px 0; max-width: 82ch; }
.quiet { color: var(--quiet); }
code, pre { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; font-size: 13px; }
code { background: var(--panel); border-radius: 4px; padding: 1px 5px; overflow-wrap: anywhere; }
pre { background: var(--panel); border: 1px solid var(--line); border-radius: 8px; padding: 10px 12px; margin: 8px 0;
      overflow-x: auto; white-space: pre-wrap; overflow-wrap: anywhere; }
details { margin: 10px 0; } summary { cursor: pointer; color: var(--quiet); }
summary h2 { display: inline; color: var(--ink); }
.chart, .drawing { overflow-x: auto; margin: 14px 0; }
.chart svg { display: block; overflow: visible; }
.drawing svg { display: block; max-width: 100%; min-width: 900px; height: auto; border-radius: 10px; }
div.chart.vega-embed { display: block; padding-right: 0; }
.vega-embed details { margin: 0; opacity: .4; } .vega-embed summary { color: #1c2024; }
#vg-tooltip-element.vg-tooltip { font: 13px/1.4 system-ui, sans-serif; background: var(--ground); color: var(--ink);
      border: 1px solid var(--line); }
#vg-tooltip-element table tr td.key { color: var(--quiet); }
@media (max-width: 600px) { body { padding: 16px 12px 48px; } h1 { font-size: 20px; } }
"""


def panel(chart: alt.TopLevelMixin) -> dict[str, Any]:
    """A chart as a part of a Vega-Lite specification, with its data in it."""
    import altair as alt

    with alt.data_transformers.enable(consolidate_datasets=False):
        spec = chart.to_dict()
    return {key: part for key, part in spec.items() if key not in ("$schema", "config")}


def escape(value: object) -> str:
    """`str(value)` as HTML text or as the value of a quoted attribute."""
    return html.escape(str(value), quote=True)


def made_by(command: str) -> str:
    """What a page says of where it comes from: the command, or nothing where none was typed, as in a notebook."""
    return f'<p class="quiet">Made by <code>{escape(command)}</code></p>' if command else ""


def embed(name: str, spec: Mapping[str, Any]) -> str:
    """A place for the Vega-Lite chart `spec`, with its specification beside it; `charts.js` draws it.

    The JSON holds no `<`, so that no text within it can end the script element.
    Raises ValueError if a number in `spec` is not finite (JSON has no NaN).
    """
    text = json.dumps(spec, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return (
        f'<div class="chart" id="{escape(name)}"></div>'
        f'<script type="application/json" data-chart="{escape(name)}">{text}</script>\n'
    )


def page(title: str, body: str, style: str = "") -> str:
    """A whole HTML page: `title` is text, `body` is HTML whose charts come from `embed`, `style` is more CSS."""
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{_STYLE}{style}</style>
</head>
<body>
{body}
<script>{_bundle()}</script>
<script>{_drawing()}</script>
</body>
</html>
"""


@functools.cache
def _bundle() -> str:
    """The JavaScript of Vega, Vega-Lite and Vega-Embed, in the version that Altair writes for."""
    import altair
    import vl_convert

    version = ".".join(altair.SCHEMA_VERSION.removeprefix("v").split(".")[:2])
    return vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", version).replace("</script", "<\\/script")


@functools.cache
def _drawing() -> str:
    """Our own lines."""
    return importlib.resources.files("launch.views").joinpath("charts.js").read_text("utf-8")
