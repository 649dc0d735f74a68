"""The network's structure diagram, drawn from its config: attention, multi-head attention, block, stack.

The panels are those of figures 1 and 2 of "Attention Is All You Need" (Vaswani et al. 2017), read upwards, with
what this config has and no more. Shapes stand for one text of T tokens; the batch axis is left out.
"""

from __future__ import annotations

from configs.convert import feed_forward_width, head_width, layer_windows, max_length, num_kv_heads
from configs.schema import Config
from launch.views.page import escape

_INK, _QUIET, _GROUND, _EDGE = "#1c2024", "#5f6770", "#fbfcfd", "#8a929b"
_LINEAR, _MIX, _NORM, _SOFTMAX, _EMBED, _OTHER = "#dce9fb", "#fde4c8", "#f3f3c6", "#d2efdb", "#fadde1", "#eceef1"
_GROUPS = ("#3b82e0", "#e8710a", "#12a594", "#b05fd0", "#8c8c8c", "#d6a400", "#c2410c", "#0e7490")

_PANEL, _GAP, _HEIGHT, _HEAD = 300, 20, 780, 70
_BOTTOM, _TOP = _HEIGHT - 62, _HEAD + 62  # where the first and the last row of a panel may stand

_ACTIVATIONS = {"gelu": "GELU", "silu": "SiLU", "relu": "ReLU", "relu2": "ReLU²"}
_NORMS = {"rms": "RMS norm", "layer": "Layer norm"}


def structure_svg(config: Config, num_parameters: int) -> str:
    """The structure of the network that `config` describes, as an SVG with its own light background.

    `num_parameters` is the number that the model really has; it is printed, not computed.
    """
    model = config.model
    canvas = _Canvas()
    for panel, (title, draw) in enumerate(
        (
            ("Scaled dot-product attention", _attention),
            ("Multi-head attention", _multi_head),
            ("One block", _block),
            ("The network", _stack),
        )
    ):
        left = _GAP + panel * (_PANEL + _GAP)
        canvas.rectangle(left, _HEAD, _PANEL, _HEIGHT - _HEAD - 14, "#ffffff", "#dfe3e8", radius=8)
        canvas.text(left + _PANEL / 2, _HEAD + 24, title, size=14, weight=600)
        draw(canvas, left + _PANEL / 2, config)
    canvas.text(_GAP, 30, f"{config.name}: {num_parameters:,} parameters", size=18, weight=600, anchor="start")
    summary = (
        f"{model.num_layers} layers, width {model.width}, {model.num_heads} heads of {head_width(config)}, "
        f"{_DESCRIBE_POSITION[model.position]}, computed in {model.dtype}. Shapes are for one text of T tokens "
        f"(T = {config.data.length} in training). Read upwards."
    )
    canvas.text(_GAP, 52, summary, size=12, anchor="start", color=_QUIET)
    return canvas.svg(4 * _PANEL + 5 * _GAP, _HEIGHT)


_DESCRIBE_POSITION = {
    "rope": "rotary positions",
    "learned": "learned positions",
    "sinusoidal": "sinusoidal positions",
    "alibi": "ALiBi positions",
    "none": "no positions",
}


class _Canvas:
    """SVG elements in the order in which they are painted; (x, y) of boxes is their centre."""

    def __init__(self) -> None:
        self.elements: list[str] = []

    def svg(self, width: float, height: float) -> str:
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
            f'font-family="system-ui, sans-serif" role="img" aria-label="Structure of the network">'
            f'<rect width="{width}" height="{height}" rx="10" fill="{_GROUND}"/>{"".join(self.elements)}</svg>'
        )

    def text(
        self, x: float, y: float, text: str, *, size: float = 12, weight: int = 400,
        anchor: str = "middle", color: str = _INK,
    ) -> None:  # fmt: skip
        self.elements.append(
            f'<text x="{x:g}" y="{y:g}" font-size="{size:g}" font-weight="{weight}" text-anchor="{anchor}" '
            f'fill="{color}">{escape(text)}</text>'
        )

    def rectangle(
        self, left: float, top: float, width: float, height: float, fill: str, edge: str = _EDGE, radius: float = 5
    ) -> None:
        self.elements.append(
            f'<rect x="{left:g}" y="{top:g}" width="{width:g}" height="{height:g}" rx="{radius:g}" fill="{fill}" '
            f'stroke="{edge}"/>'
        )

    def box(self, x: float, y: float, width: float, label: str, fill: str, note: str = "") -> None:
        """A labelled box 32 high, with a smaller second line where there is a note."""
        self.rectangle(x - width / 2, y - 16, width, 32, fill)
        self.text(x, y - 1 if note else y + 4, label, size=_fitting(label, width, 12))
        if note:
            self.text(x, y + 11, note, size=_fitting(note, width, 10), color=_QUIET)

    def circle(self, x: float, y: float, sign: str) -> None:
        self.elements.append(f'<circle cx="{x:g}" cy="{y:g}" r="10" fill="#ffffff" stroke="{_INK}"/>')
        self.text(x, y + 5, sign, size=15)

    def line(self, *points: tuple[float, float], arrow: bool = True, dashed: bool = False) -> None:
        """A line through points, with a head that touches the last one."""
        path = " ".join(f"{x:g},{y:g}" for x, y in points)
        dash = ' stroke-dasharray="4 3"' if dashed else ""
        self.elements.append(f'<polyline points="{path}" fill="none" stroke="{_INK}" stroke-width="1.2"{dash}/>')
        if arrow:
            (x0, y0), (x, y) = points[-2:]
            length = max(abs(x - x0), abs(y - y0)) or 1
            dx, dy = (x - x0) / length * 6, (y - y0) / length * 6
            head = f"{x:g},{y:g} {x - dx + dy / 2:g},{y - dy - dx / 2:g} {x - dx - dy / 2:g},{y - dy + dx / 2:g}"
            self.elements.append(f'<polygon points="{head}" fill="{_INK}"/>')

    def shape(self, x: float, y: float, *sizes: object, anchor: str = "start") -> None:
        """The shape of what flows through a line, right of it."""
        text = " × ".join(map(str, sizes))
        self.text(x + 6 * (anchor == "start"), y + 3.5, text, size=10, anchor=anchor, color=_QUIET)


def _fitting(text: str, width: float, largest: float) -> float:
    """A font size at which `text` stays within `width`; no font is measured, its letters are taken as 0.55 wide."""
    return min(largest, round((width - 8) / (0.55 * len(text)), 1))


def _rows(count: int) -> list[float]:
    """Heights of `count` rows from the bottom of a panel to its top."""
    pitch = (_BOTTOM - _TOP) / max(count - 1, 1)
    return [_BOTTOM - row * pitch for row in range(count)]


def _attention(canvas: _Canvas, x: float, config: Config) -> None:
    model, H = config.model, head_width(config)
    windows = set(layer_windows(config))
    seen = f"{model.window - 1} before it" if windows == {model.window} and model.window else "all before it"
    mixed = f", or {model.window - 1} in L layers" if len(windows) > 1 else ""
    steps: list[tuple[str, str, str]] = [("MatMul", "each query · each key", _MIX), ("Scale", f"÷ √{H}", _OTHER)]
    if model.attention_softcap:
        cap = f"{model.attention_softcap:g}"
        steps.append(("Soft-cap", f"{cap} · tanh(score / {cap})", _OTHER))
    if model.position == "alibi":
        steps.append(("ALiBi", "− slope of the head × distance", _OTHER))
    steps.append(("Mask", f"sees {'' if mixed else 'itself and '}{seen}{mixed}", _OTHER))
    over = "over the keys and a learned sink" if model.attention_sinks else "over the keys"
    steps.append(("Softmax", over, _SOFTMAX))

    rows = _rows(len(steps) + 3)
    left, right, width = x - 36, x + 114, 204
    query, key = left - 50, left + 50
    for place, name in ((query, "Q"), (key, "K"), (right, "V")):
        canvas.text(place, rows[0] + 16, name, size=14, weight=600)
        canvas.shape(place, rows[0] + 28, "T", H, anchor="middle")
    canvas.line((query, rows[0]), (query, rows[1] + 16))
    canvas.line((key, rows[0]), (key, rows[1] + 16))
    for (label, note, fill), y, above in zip(steps, rows[1:], rows[2:], strict=False):
        canvas.box(left, y, width, label, fill, note)
        canvas.line((left, y - 16), (left, above + 16))
    canvas.shape(left, (rows[1] + rows[2]) / 2, "T", "T")
    canvas.line((right, rows[0]), (right, rows[-2] + 16))
    canvas.box(x, rows[-2], 260, "MatMul", _MIX, "the values, averaged with these weights")
    canvas.line((x, rows[-2] - 16), (x, rows[-1]))
    canvas.shape(x, rows[-1] + 4, "T", H)


def _multi_head(canvas: _Canvas, x: float, config: Config) -> None:
    model, D, H = config.model, config.model.width, head_width(config)
    N, K = model.num_heads, num_kv_heads(config)
    turned: list[tuple[str, str, str]] = []
    if model.qk_norm:
        turned.append(("RMS norm", "of each head", _NORM))
    if model.position == "rope":
        turned.append(("RoPE", f"base {model.rope_base:,.0f}", _OTHER))

    rows = _rows(len(turned) + 7)
    columns = (x - 100, x - 4, x + 92)
    middle = (rows[-5] + rows[-4]) / 2
    bias = _bias(config)
    canvas.text(x, rows[0] + 18, f"T × {D}", size=12)
    for place, name, heads in zip(columns, "QKV", (N, K, K), strict=True):
        fork = rows[0] - 8
        canvas.line((x, rows[0]), (x, fork), (place, fork), (place, rows[1] + 16))
        canvas.box(place, rows[1], 90, f"Linear to {name}", _LINEAR, f"{D} → {heads} × {H}{bias}")
        y = rows[1]
        for (label, note, fill), above in zip(turned, rows[2:], strict=False):
            if name != "V":
                canvas.line((place, y - 16), (place, above + 16))
                canvas.box(place, above, 90, label, fill, note)
                y = above
        canvas.line((place, y - 16), (place, middle + 46))
        canvas.shape(place - 2, middle + 60, heads, "T", H)
    if model.position == "rope" and model.rope_scaling != "none":
        note = f"RoPE stretched by {model.rope_scaling_factor:g} ({model.rope_scaling})"
        canvas.text(x, rows[0] + 34, note, size=10, color=_QUIET)

    for shift in (6, 3, 0):
        canvas.rectangle(x - 138 + shift, middle - 46 - shift, 270, 92, _MIX)
    canvas.text(x - 3, middle - 28, "Scaled dot-product attention")
    _heads(canvas, x - 3, middle, N, K)
    canvas.line((x, middle - 52), (x, rows[-3] + 16))
    canvas.shape(x, (middle - 52 + rows[-3] + 16) / 2, N, "T", H)
    canvas.box(x, rows[-3], 200, "Concatenate", _OTHER, f"{N} × {H} = {N * H}")
    canvas.line((x, rows[-3] - 16), (x, rows[-2] + 16))
    canvas.box(x, rows[-2], 200, "Linear", _LINEAR, f"{N * H} → {D}{bias}")
    canvas.line((x, rows[-2] - 16), (x, rows[-1]))
    canvas.shape(x, rows[-1] + 4, "T", D)


def _heads(canvas: _Canvas, x: float, y: float, N: int, K: int) -> None:
    """A square for each query head and, below those that share it, one for each key/value head."""
    slot = min(24.0, 250 / N)
    side = slot * 0.72
    left = x - N * slot / 2
    for head in range(N):
        colour = _GROUPS[head * K // N % len(_GROUPS)]
        canvas.rectangle(left + head * slot + (slot - side) / 2, y - 18, side, min(side, 14), colour, "none", 2)
    for head in range(K):
        width, colour = N // K * slot, _GROUPS[head % len(_GROUPS)]
        canvas.rectangle(left + head * width + (slot - side) / 2, y + 2, width - slot + side, 10, colour, "none", 2)
    shared = "each with its own key and value" if N == K else f"{N // K} to each of {K} keys and values"
    if K == 1 < N:
        shared = "all with one key and value"
    canvas.text(x, y + 32, f"{N} query heads, {shared}", size=10, color=_QUIET)


def _block(canvas: _Canvas, x: float, config: Config) -> None:
    model = config.model
    norm = (_NORMS[model.norm], "", _NORM)
    drop = (f"Dropout {model.dropout:g}", "", _OTHER)
    attention = [("Multi-head attention", _sharing(config), _MIX)]
    widths = f"{model.width} → {feed_forward_width(config)}{_bias(config)}"
    activation = _ACTIVATIONS[model.activation]
    down = ("Linear", f"{feed_forward_width(config)} → {model.width}{_bias(config)}", _LINEAR)
    if model.gated:
        feed = [("gate", widths, ""), ("times", activation, ""), down]
    else:
        feed = [("Linear", widths, _LINEAR), (activation, "", _SOFTMAX), down]
    rest = [norm] * (model.norm_position == "both") + [drop] * (model.dropout > 0) + [("+", "", "")]
    before, after = [norm] * (model.norm_position != "post"), [norm] * (model.norm_position == "post")
    layers = [before + layer + rest + after for layer in (attention, feed)]

    rows = _rows(sum(map(len, layers)) + 2)
    x += 14
    canvas.text(x, rows[0] + 18, f"T × {model.width}", size=12)
    y, row = rows[0] + 4, 0
    for steps in layers:
        branch = y - 8
        for label, note, fill in steps:
            row += 1
            above = rows[row]
            if label == "gate":
                for place, name in ((x - 62, "Linear, gate"), (x + 62, "Linear, up")):
                    canvas.line((x, y), (x, y - 7), (place, y - 7), (place, above + 16))
                    canvas.box(place, above, 116, name, _LINEAR, note)
            elif label == "times":
                canvas.box(x - 62, above, 60, note, _SOFTMAX)
                canvas.line((x - 62, rows[row - 1] - 16), (x - 62, above + 16))
                canvas.line((x - 32, above), (x - 10, above))
                canvas.line((x + 62, rows[row - 1] - 16), (x + 62, above), (x + 10, above))
                canvas.circle(x, above, "×")
                y = above - 10
            elif label == "+":
                canvas.line((x, y), (x, above + 10))
                canvas.line((x, branch), (x - 138, branch), (x - 138, above), (x - 10, above))
                canvas.circle(x, above, "+")
                y = above - 10
            else:
                canvas.line((x, y), (x, above + 16))
                canvas.box(x, above, 190, label, fill, note)
                y = above - 16
            if label == "gate":
                y = above - 16
    canvas.line((x, y), (x, rows[-1] - 6))
    canvas.shape(x, rows[-1] - 2, "T", model.width)


def _stack(canvas: _Canvas, x: float, config: Config) -> None:
    model, D, V = config.model, config.model.width, config.tokenizer.vocab_size
    steps: list[tuple[str, str, str]] = [("Token embedding", f"table {V} × {D}", _EMBED)]
    if model.position == "learned":
        steps.append(("+ learned position", f"table {max_length(config)} × {D}", _EMBED))
    if model.position == "sinusoidal":
        steps.append(("+ sinusoidal position", "fixed", _EMBED))
    if model.dropout:
        steps.append((f"Dropout {model.dropout:g}", "", _OTHER))
    steps += _block_rows(config)
    if model.norm_position != "post":
        steps.append((_NORMS[model.norm], "", _NORM))
    output = len(steps)
    note = "the embedding table, transposed" if model.tied_embeddings else f"linear, {D} → {V}{_bias(config)}"
    steps.append(("Output layer", note, _EMBED if model.tied_embeddings else _LINEAR))
    if model.logit_softcap:
        cap = f"{model.logit_softcap:g}"
        steps.append(("Soft-cap", f"{cap} · tanh(logit / {cap})", _OTHER))
    steps.append(("Softmax", f"over {V} tokens", _SOFTMAX))

    rows = _rows(len(steps) + 2)
    canvas.text(x, rows[0] + 18, "T tokens", size=12)
    canvas.line((x, rows[0] + 4), (x, rows[1] + 16))
    for (label, note, fill), y, above in zip(steps, rows[1:], rows[2:], strict=False):
        if fill:
            canvas.box(x, y, 200, label, fill, note)
        else:
            canvas.text(x, y + 4, label, color=_QUIET)
        canvas.line((x, y - 16), (x, above + 16 if above != rows[-1] else above))
    canvas.shape(x, (rows[1] + rows[2]) / 2, "T", D)
    canvas.shape(x, (rows[output + 1] + rows[output + 2]) / 2, "T", V)
    canvas.shape(x, rows[-1] + 4, "T", f"{V} probabilities")
    if model.tied_embeddings:
        top, side = rows[output + 1], x - 124
        canvas.line((x - 100, rows[1]), (side, rows[1]), (side, top), (x - 100, top), dashed=True)


def _block_rows(config: Config) -> list[tuple[str, str, str]]:
    """The blocks from the first on, each with how far it sees; the middle of a deep network as dots."""
    windows = layer_windows(config)
    rows = [
        (f"Block {layer}", f"sees {window} tokens" if window else "sees all before it", _MIX)
        for layer, window in enumerate(windows)
    ]
    if len(rows) > 6:
        pattern = f", windows in the pattern {config.model.window_pattern}" if len(set(windows)) > 1 else ""
        rows = [*rows[:3], (f"… {len(rows) - 5} more{pattern} …", "", ""), *rows[-2:]]
    return rows


def _sharing(config: Config) -> str:
    N, K = config.model.num_heads, num_kv_heads(config)
    return f"{N} heads" if N == K else f"{N} heads, {K} key/value"


def _bias(config: Config) -> str:
    return " + bias" if config.model.biases else ""
