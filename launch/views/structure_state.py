"""Panels of structure diagrams for attention without a softmax, whose past is a state of fixed size."""

from __future__ import annotations

from configs.derived import head_width
from configs.schema import Config
from launch.views.structure_attention import draw_heads, draw_output
from launch.views.structure_canvas import BEND, LINEAR, MIX, NORM, OTHER, QUIET, Canvas, Frame, Panel
from launch.views.structure_parts import bias, lora, lora_notes


def linear_panel(config: Config) -> Panel:
    """Attention by a sum of outer products (Katharopoulos et al. 2020)."""
    H = head_width(config)

    def draw(canvas: Canvas, frame: Frame) -> None:
        x, rows = frame.x, frame.rows(7)
        key, value, query = x - 92, x - 14, x + 92
        for place, name in ((key, "K"), (value, "V"), (query, "Q")):
            canvas.text(place, rows[0] + 16, name, size=14, weight=600)
            canvas.shape(place, rows[0] + 28, f"{H}", "middle")
        for place in (key, query):
            canvas.line((place, rows[0]), (place, rows[1] + 16))
            canvas.box(place, rows[1], 92, "φ", BEND, "elu(x) + 1")
        canvas.line((value, rows[0]), (value, rows[2] + 16))
        canvas.line((key, rows[1] - 16), (key, rows[2] + 16))
        left = (key + value) / 2
        canvas.box(left, rows[2], 160, "Outer product", MIX, f"φ(k) · [v, 1], {H} × ({H} + 1)")
        canvas.line((left, rows[2] - 16), (left, rows[3] + 10))
        canvas.circle(left, rows[3], "+")
        canvas.line((left - 84, rows[3]), (left - 10, rows[3]))
        canvas.text(left - 84, rows[3] - 6, "state before", size=10, anchor="start", color=QUIET)
        canvas.line((left, rows[3] - 10), (left, rows[4] + 16))
        canvas.line((query, rows[1] - 16), (query, rows[4] + 16))
        canvas.box(x, rows[4], 260, "MatMul", MIX, "φ(q) · state, the sum of all up to this token")
        canvas.line((x, rows[4] - 16), (x, rows[5] + 16))
        canvas.box(x, rows[5], 260, "Divide", OTHER, f"the first {H} by the last: the sum of the weights")
        canvas.line((x, rows[5] - 16), (x, rows[6]))
        canvas.shape(x, rows[6] + 4, f"{H} per token")

    notes = ("Weights φ(q) · φ(k), without a softmax;", "the past is a state of fixed size.")
    return Panel("Linear attention of one head", draw, notes=notes)


def delta_panel(config: Config) -> Panel:
    """What one head's state goes through at each token (Yang et al. 2024, equation 10)."""
    H = head_width(config)

    def draw(canvas: Canvas, frame: Frame) -> None:
        x, rows = frame.x, frame.rows(8)
        state, work = x - 92, x + 42
        canvas.text(state, rows[0] + 14, "state", size=14, weight=600)
        canvas.shape(state, rows[0] + 26, f"{H} × {H}", "middle")
        for place, name in ((x + 4, "K"), (x + 80, "V")):
            canvas.text(place, rows[0] + 14, name, size=14, weight=600)
            canvas.shape(place, rows[0] + 26, f"{H}", "middle")
        canvas.line((state, rows[0]), (state, rows[1] + 16))
        canvas.box(state, rows[1], 84, "Fade", OTHER, "× decay")
        canvas.line((state, rows[1] - 16), (state, rows[5] + 10))
        canvas.line((x + 4, rows[0]), (x + 4, rows[2] + 16))
        canvas.line((state, rows[2]), (work - 78, rows[2]))
        canvas.box(work, rows[2], 156, "Recall", MIX, "what the state holds under k")
        canvas.line((x + 4, rows[2] - 16), (x + 4, rows[3] + 16))
        canvas.line((x + 134, rows[0] - 8), (x + 134, rows[3]), (work + 78, rows[3]))
        canvas.line((x + 80, rows[0]), (x + 80, rows[0] - 8), (x + 134, rows[0] - 8), arrow=False)
        canvas.box(work, rows[3], 156, "Difference", OTHER, "(v − recalled) × strength")
        canvas.line((work, rows[3] - 16), (work, rows[4] + 16))
        canvas.box(work, rows[4], 156, "Outer product", MIX, f"with k, {H} × {H}")
        canvas.line((work, rows[4] - 16), (work, rows[5]), (state + 10, rows[5]))
        canvas.circle(state, rows[5], "+")
        canvas.line((state, rows[5] - 10), (state, rows[6] + 16))
        canvas.text(x + 110, rows[6] + 40, "Q", size=14, weight=600)
        canvas.line((x + 110, rows[6] + 28), (x + 110, rows[6] + 16))
        canvas.box(x, rows[6], 270, "MatMul", MIX, "q · state, after this token wrote to it")
        canvas.line((x, rows[6] - 16), (x, rows[7]))
        canvas.shape(x, rows[7] + 4, f"{H} per token")

    notes = ("At each token the state fades, and what it holds", "under the key is replaced, without a softmax.")
    return Panel("Gated delta rule of one head", draw, notes=notes)


def delta_heads_panel(config: Config) -> Panel:
    """What the gated delta rule reads, and what becomes of its result (Yang et al. 2024, figure 1)."""
    model, D, H, N = config.model, config.model.width, head_width(config), config.model.num_heads
    added = " + bias" if model.biases or model.qkv_biases else ""

    def draw(canvas: Canvas, frame: Frame) -> None:
        x, rows = frame.x, frame.rows(11)
        names, columns = ("Query", "Key", "Value"), (x - 236, x - 136, x - 36)
        strength, decay, gate = x + 60, x + 145, x + 242
        middle, fork = rows[5] + 4, rows[0] - 8
        canvas.text(x, rows[0] + 18, f"T × {D}", size=12)
        for place in (*columns, strength, decay, gate):
            canvas.line((x, rows[0]), (x, fork), (place, fork), (place, rows[1] + 16))
        for place, name in zip(columns, names, strict=True):
            mark = lora(config, name.lower())
            canvas.box(place, rows[1], 94, f"Linear to {name[0]}", LINEAR, f"{D} → {N} × {H}{added}", mark)
            canvas.line((place, rows[1] - 16), (place, rows[2] + 16))
        if model.convolution:
            over = f"mixes each number with those of {model.convolution - 1} tokens before"
            canvas.box(x - 136, rows[2], 294, f"Convolution over {model.convolution} tokens, SiLU", BEND, over)
        else:
            canvas.box(x - 136, rows[2], 294, "SiLU", BEND)
        for place, name in zip(columns, names, strict=True):
            if name == "Value":
                canvas.line((place, rows[2] - 16), (place, middle + 46))
            else:
                canvas.line((place, rows[2] - 16), (place, rows[3] + 16))
                note = f"then ÷ √{H}" if name == "Query" else ""
                canvas.box(place, rows[3], 94, "To length 1", NORM, note)
                canvas.line((place, rows[3] - 16), (place, middle + 46))
        mark = lora(config, "beta")
        canvas.box(strength, rows[1], 66, "Linear", LINEAR, f"{D} → {N}{bias(config)}", mark)
        canvas.box(strength, rows[3], 66, "Sigmoid", BEND)
        canvas.box(decay, rows[1], 88, "Linear", LINEAR, f"{D} → {N} + bias")
        canvas.box(decay, rows[3], 88, "Softplus", BEND, "exp(−rate · x)")
        for place, name in ((strength, "strength"), (decay, "decay")):
            canvas.line((place, rows[1] - 16), (place, rows[3] + 16))
            canvas.line((place, rows[3] - 16), (place, middle + 46))
            canvas.shape(place, middle + 62, name)
        canvas.rectangle(x - 286, middle - 46, 478, 92, MIX)
        canvas.text(x - 47, middle - 24, "Gated delta rule")
        draw_heads(canvas, x - 47, middle, N, N)
        mark = lora(config, "output_gate")
        canvas.box(gate, rows[1], 90, "Linear", LINEAR, f"{D} → {N} × {H}{bias(config)}", mark)
        canvas.box(gate, rows[3], 90, "SiLU", BEND, "gate")
        canvas.line((gate, rows[1] - 16), (gate, rows[3] + 16))
        canvas.line((x - 47, middle - 46), (x - 47, rows[7] + 30))
        canvas.box(x - 47, rows[7] + 14, 170, "RMS norm", NORM, "of each head")
        times = rows[7] - 30
        canvas.line((x - 47, rows[7] - 2), (x - 47, times + 10))
        canvas.circle(x - 47, times, "×")
        canvas.line((gate, rows[3] - 16), (gate, times), (x - 37, times))
        draw_output(canvas, x - 47, [times - 10, rows[8] - 16, rows[9] - 10, rows[10]], config)

    notes = lora_notes(config, ("query", "key", "value", "beta", "output_gate", "output"))
    return Panel("Delta attention", draw, width=610, notes=tuple(notes), needs=11 * 64)
