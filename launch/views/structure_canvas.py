"""What structure diagrams are drawn with: SVG elements, panels, and columns of steps that are read upwards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from launch.views.page import escape

INK, QUIET, GROUND, EDGE, PLAIN = "#1c2024", "#5f6770", "#fbfcfd", "#8a929b", "#ffffff"
LINEAR, MIX, NORM, BEND, EMBED, OTHER = "#dce9fb", "#fde4c8", "#f3f3c6", "#d2efdb", "#fadde1", "#eceef1"
GROUPS = ("#3b82e0", "#e8710a", "#12a594", "#b05fd0", "#8c8c8c", "#d6a400", "#c2410c", "#0e7490")

GAP, HEAD, LOWEST = 20, 70, 780  # Between panels, above them, and the least height of a drawing.
_TIGHT = 15  # The least room between two steps.


@dataclass(frozen=True)
class Step:
    """One step of a column.

    `kind` is one of: box; dots (only a text); add (the sum with what entered the segment); pair (two boxes, `label` and
    `other`, side by side on what comes from below); join (a box that reads both of a pair); times (a box after the left
    one of a pair, whose result multiplies the right one).
    """

    label: str
    note: str = ""
    fill: str = OTHER
    kind: str = "box"
    other: str = ""
    mark: str = ""  # A small label on the corner of the box, and on that of the right one of a pair.
    other_mark: str = ""

    @property
    def height(self) -> int:
        """How much of the column the step takes, in pixels."""
        return {"add": 20, "times": 20, "dots": 14}.get(self.kind, 32 if self.note else 25)


ADD = Step("+", kind="add")
Segments = Sequence[Sequence[Step]]


@dataclass(frozen=True)
class Frame:
    """Where a panel's drawing may stand: its horizontal middle and edges, and its first and last row."""

    x: float
    left: float
    right: float
    bottom: float
    top: float

    def rows(self, count: int) -> list[float]:
        """Heights of `count` rows from the bottom to the top, evenly spaced."""
        pitch = (self.bottom - self.top) / max(count - 1, 1)
        return [self.bottom - row * pitch for row in range(count)]


@dataclass(frozen=True)
class Panel:
    """One figure of a drawing: a title, lines of notes under it, and what draws it."""

    title: str
    draw: Callable[[Canvas, Frame], None]
    width: int = 300
    notes: tuple[str, ...] = ()
    needs: float = 0  # The least height of its drawing in pixels.


class Canvas:
    """SVG elements in the order in which they are painted; (x, y) of boxes is their centre."""

    def __init__(self) -> None:
        """An empty drawing."""
        self.elements: list[str] = []

    def svg(self, width: float, height: float) -> str:
        """The whole drawing, of this size in pixels, on its own light background."""
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
            f'font-family="system-ui, sans-serif" role="img" aria-label="Structure of the network">'
            f'<rect width="{width}" height="{height}" rx="10" fill="{GROUND}"/>{"".join(self.elements)}</svg>'
        )

    def text(
        self, x: float, y: float, text: str, *, size: float = 12, weight: int = 400,
        anchor: str = "middle", color: str = INK,
    ) -> None:  # fmt: skip
        """One line of text whose baseline is at y."""
        self.elements.append(
            f'<text x="{x:g}" y="{y:g}" font-size="{size:g}" font-weight="{weight}" text-anchor="{anchor}" '
            f'fill="{color}">{escape(text)}</text>'
        )

    def rectangle(
        self, left: float, top: float, width: float, height: float, fill: str, edge: str = EDGE, radius: float = 5
    ) -> None:
        """A rectangle with round corners."""
        self.elements.append(
            f'<rect x="{left:g}" y="{top:g}" width="{width:g}" height="{height:g}" rx="{radius:g}" fill="{fill}" '
            f'stroke="{edge}"/>'
        )

    def box(
        self, x: float, y: float, width: float, label: str, fill: str, note: str = "", mark: str = "",
        height: float = 32,
    ) -> None:  # fmt: skip
        """A labelled box, with a smaller second line where there is a note, and a mark on its right upper corner."""
        self.rectangle(x - width / 2, y - height / 2, width, height, fill)
        self.text(x, y - 1 if note else y + 4, label, size=_fitting(label, width, 12))
        if note:
            self.text(x, y + 11, note, size=_fitting(note, width, 10), color=QUIET)
        if mark:
            length = 4 + 5 * len(mark)
            self.rectangle(x + width / 2 - length + 4, y - height / 2 - 7, length, 11, PLAIN, GROUPS[3], 3)
            self.text(x + width / 2 - length / 2 + 4, y - height / 2 + 1.5, mark, size=8, color=GROUPS[3])

    def circle(self, x: float, y: float, sign: str) -> None:
        """An operation on two inputs."""
        self.elements.append(f'<circle cx="{x:g}" cy="{y:g}" r="10" fill="{PLAIN}" stroke="{INK}"/>')
        self.text(x, y + 5, sign, size=15)

    def line(self, *points: tuple[float, float], arrow: bool = True, dashed: bool = False) -> None:
        """A line through points, with a head that touches the last one."""
        path = " ".join(f"{x:g},{y:g}" for x, y in points)
        dash = ' stroke-dasharray="4 3"' if dashed else ""
        self.elements.append(f'<polyline points="{path}" fill="none" stroke="{INK}" stroke-width="1.2"{dash}/>')
        if arrow:
            (x0, y0), (x, y) = points[-2:]
            length = max(abs(x - x0), abs(y - y0)) or 1
            dx, dy = (x - x0) / length * 6, (y - y0) / length * 6
            head = f"{x:g},{y:g} {x - dx + dy / 2:g},{y - dy - dx / 2:g} {x - dx - dy / 2:g},{y - dy + dx / 2:g}"
            self.elements.append(f'<polygon points="{head}" fill="{INK}"/>')

    def shape(self, x: float, y: float, text: str, anchor: str = "start") -> None:
        """The shape of what flows through a line, right of it."""
        self.text(x + 6 * (anchor == "start"), y + 3.5, text, size=10, anchor=anchor, color=QUIET)

    def column(
        self, x: float, bottom: float, gap: float, segments: Segments, *, width: float = 190, side: int = -1
    ) -> list[list[float]]:
        """Steps above each other from `bottom` on, joined by arrows `gap` long; where each stands, by segment.

        A segment is what an `ADD` in it goes around, on the left for a `side` of -1, else on the right.
        """
        y, places = bottom, []
        for segment in segments:
            fork, rows = y - gap / 2, []
            for step in segment:
                at = y - gap - step.height / 2
                self._step(x, y, at, step, width)
                if step.kind == "add":
                    around = x + side * (width / 2 + 30)
                    self.line((x, fork), (around, fork), (around, at), (x + side * 10, at))
                rows.append(at)
                y = at - step.height / 2
            places.append(rows)
        return places

    def _step(self, x: float, y: float, at: float, step: Step, width: float) -> None:
        """One step at the height `at`, and the arrow from `y` to it."""
        low, half = at + step.height / 2, width / 2 + 21
        left, right, narrow = x - half / 2 - 2, x + half / 2 + 2, half - 4
        if step.kind == "pair":
            for place, label, mark in ((left, step.label, step.mark), (right, step.other, step.other_mark)):
                self.line((x, y), (x, (y + low) / 2), (place, (y + low) / 2), (place, low))
                self.box(place, at, narrow, label, step.fill, step.note, mark, step.height)
        elif step.kind == "times":
            self.line((left, y), (left, low))
            self.line((right, y), (right, at), (x + 10, at))
            self.box(left, at, 64, step.label, step.fill, height=step.height)
            self.line((left + 32, at), (x - 10, at))
            self.circle(x, at, "×")
        elif step.kind == "join":
            for place in (left, right):
                self.line((place, y), (place, low))
            self.box(x, at, 2 * half, step.label, step.fill, step.note, step.mark, step.height)
        else:
            self.line((x, y), (x, low))
            if step.kind == "add":
                self.circle(x, at, "+")
            elif step.kind == "dots":
                self.text(x, at + 4, step.label, size=_fitting(step.label, width + 60, 12), color=QUIET)
            else:
                self.box(x, at, width, step.label, step.fill, step.note, step.mark, step.height)


def gap_of(segments: Segments, height: float) -> float:
    """How long the arrows of a column are that is `height` high, with one before and one after it."""
    steps = [step for segment in segments for step in segment]
    return (height - sum(step.height for step in steps)) / (len(steps) + 1)


def needed(segments: Segments) -> float:
    """The least height of a column."""
    steps = [step for segment in segments for step in segment]
    return sum(step.height for step in steps) + _TIGHT * (len(steps) + 1)


def drawing(title: str, summary: str, panels: Sequence[Panel]) -> str:
    """The panels side by side, as high as the highest needs, as an SVG."""
    canvas, left = Canvas(), float(GAP)
    height = max(LOWEST, *(panel.needs + _above(panel) + 78 for panel in panels))
    width = GAP + sum(panel.width + GAP for panel in panels)
    canvas.text(GAP, 30, title, size=_fitting(title, width - 2 * GAP, 18), weight=600, anchor="start")
    canvas.text(GAP, 52, summary, size=_fitting(summary, width - 2 * GAP, 12), anchor="start", color=QUIET)
    for panel in panels:
        x = left + panel.width / 2
        canvas.rectangle(left, HEAD, panel.width, height - HEAD - 14, PLAIN, "#dfe3e8", radius=8)
        canvas.text(x, HEAD + 24, panel.title, size=14, weight=600)
        for line, note in enumerate(panel.notes):
            canvas.text(x, HEAD + 40 + 13 * line, note, size=_fitting(note, panel.width, 10), color=QUIET)
        panel.draw(canvas, Frame(x, left, left + panel.width, height - 62, _above(panel)))
        left += panel.width + GAP
    return canvas.svg(width, height)


def _above(panel: Panel) -> float:
    """Where the last row of a panel may stand."""
    return HEAD + 56 + 13 * len(panel.notes)


def _fitting(text: str, width: float, largest: float) -> float:
    """A font size at which `text` stays within `width`; no font is measured, its letters are taken as 0.55 wide."""
    return min(largest, round((width - 8) / (0.55 * max(len(text), 1)), 1))
