"""A picture of what was seen inside a network, as an object: it becomes a page, a PNG, an SVG or numbers.

In a notebook it shows itself.
"""

from __future__ import annotations

import abc
import json
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from launch.views.page import CHART_CONFIG, embed, escape, made_by, page
from launch.views.palette import paletted
from launch.views.pieces import is_wide, printable

# For pictures made without a browser: vl-convert takes the first family that is installed for the whole text.
_FONTS = "DejaVu Sans, sans-serif"
_FONTS_CJK = "Noto Sans CJK SC, Noto Sans SC, PingFang SC, Microsoft YaHei, sans-serif"
_LINE = 110  # Characters of what stands over a picture.
_LONGEST = 400  # Characters of a text that is quoted over a picture.


@dataclass(frozen=True)
class About:
    """What every picture says of itself."""

    model: str  # its name and step
    text: str  # what it read
    command: str  # what was typed to see this
    structure_svg: str = ""  # the network as a drawing, for the page


@dataclass(frozen=True)
class View(abc.ABC):
    """What is seen, as numbers, and how it is drawn."""

    about: About

    name: ClassVar[str]  # as --view has it

    @abc.abstractmethod
    def chart(self) -> dict[str, Any]:
        """The picture as a Vega-Lite specification with its data."""

    @abc.abstractmethod
    def numbers(self) -> dict[str, Any]:
        """What is drawn, for scripts."""

    def subject(self) -> str:
        """What of the network is shown, such as "layer 2, head 0"."""
        return ""

    @abc.abstractmethod
    def told(self) -> list[str]:
        """Paragraphs under the chart, in plain words: what is seen, and what is not."""

    def hint(self) -> str:
        """What the page says before the chart."""
        return self.subject()

    def by_token(self) -> dict[str, Any] | None:
        """The picture with each token by itself, where `chart` puts the tokens of a character together."""
        return None

    def embedded(self) -> str:
        """The chart as HTML."""
        by_token = self.by_token()
        return embed(self.name, self.chart()) + ("" if by_token is None else token_by_token(self.name, by_token))

    def html(self) -> str:
        """A self-contained page that opens offline."""
        text = f"<pre>{escape(self.about.text)}</pre>" if self.about.text else ""
        told = "\n".join(f"<p>{escape(paragraph)}</p>" for paragraph in self.told())
        structure = f'<h2>The network</h2>\n<div class="drawing">{self.about.structure_svg}</div>'
        body = f"""<h1>{escape(self.about.model)}</h1>
<p class="quiet">{escape(self.hint())}</p>
{text}
{self.embedded()}
{told}
{made_by(self.about.command)}
{structure if self.about.structure_svg else ""}"""
        return page(f"{self.about.model}: {self.name}", body)

    def svg(self) -> str:
        """The picture by itself, on white."""
        import vl_convert

        return vl_convert.vegalite_to_svg(self._static())

    def png(self, scale: float = 2) -> bytes:
        """The picture by itself, `scale` pixels to the point."""
        import vl_convert

        return paletted(vl_convert.vegalite_to_png(self._static(), scale=scale))

    def json(self) -> str:
        """The numbers as one JSON object, with what the picture says of itself."""
        about = {"view": self.name, "model": self.about.model, "text": self.about.text, "command": self.about.command}
        return json.dumps({**about, **self.numbers()}, ensure_ascii=False, allow_nan=False)

    def _repr_html_(self) -> str:
        """What a notebook shows: the page, in a frame of its own."""
        page_in_attribute = escape(self.html())
        return f'<iframe srcdoc="{page_in_attribute}" style="width:100%;height:720px;border:0"></iframe>'

    def _static(self) -> dict[str, Any]:
        """The chart with all that must be said beside it."""
        lines = [self.about.text[:_LONGEST], self.subject(), self.about.command]
        subtitle = [part for line in lines for part in textwrap.wrap(printable(line), _LINE)]
        wide = any(map(is_wide, self.letters()))
        return self.chart() | {
            "background": "white",
            "config": CHART_CONFIG | {"font": _FONTS_CJK if wide else _FONTS},
            "padding": 20,
            "title": {"text": self.about.model, "subtitle": subtitle, "subtitlePadding": 4},
        }

    def letters(self) -> str:
        """All that must have a shape in the picture's font."""
        return self.about.model + self.about.text


def token_by_token(name: str, spec: Mapping[str, Any]) -> str:
    """A chart of tokens that are not whole characters, for those who ask for it."""
    return f"<details><summary>Token by token</summary>{embed(f'{name}-tokens', spec)}</details>"


def rounded(values: Any, digits: int = 6) -> Any:
    """Numbers as nested lists, with as many digits as float32 is good for."""
    import numpy as np

    return np.round(np.asarray(values, np.float64), digits).tolist()
