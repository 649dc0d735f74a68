"""Panels of structure diagrams for networks with recurrence: a cell, its way through time, alignment, the network."""

from __future__ import annotations

from configs.derived import encoder_layers, translates
from configs.schema import Config
from launch.views.structure_canvas import (
    BEND,
    EMBED,
    LINEAR,
    MIX,
    OTHER,
    QUIET,
    Canvas,
    Frame,
    Panel,
    Step,
    gap_of,
    needed,
)
from launch.views.structure_parts import bias, dropout, from_tokens, to_probabilities
from launch.views.structure_stack import leave, repeated, tie


def recurrent_panels(config: Config) -> list[Panel]:
    """From one cell to the whole network."""
    if translates(config):
        return [_cell(config), _alignment(config), _translator(config)]
    return [_cell(config), _over_time(config), _stack(config)]


def _cell(config: Config) -> Panel:
    """One step of an LSTM (Hochreiter & Schmidhuber 1997, with the forget gate of Gers et al. 2000)."""
    D = config.model.width
    notes = [f"Each gate has {D} numbers, and so have the cell c and the hidden state h."]
    if translates(config):
        notes[0] = f"So in the decoder; in the encoder each direction has {D // 2} in place of the {D} of a gate."

    def draw(canvas: Canvas, frame: Frame) -> None:
        rows = frame.rows(8)
        names = (("Forget gate", "sigmoid", BEND), ("Input gate", "sigmoid", BEND))
        names += (("Candidate", "tanh", EMBED), ("Output gate", "sigmoid", BEND))
        forget, let, new, out = (frame.left + 112 + 98 * gate for gate in range(4))
        bus, left, right = (let + new) / 2, frame.left + 14, frame.right - 14
        canvas.text(bus, rows[0] + 18, "x at t", size=14, weight=600)
        canvas.text(bus, rows[0] + 32, f"{D}, from below", size=10, color=QUIET)
        canvas.line((bus, rows[0] + 4), (bus, rows[1] + 16))
        canvas.box(bus, rows[1], 150, "Linear", LINEAR, f"{D} → 4 × {D}")
        canvas.line((bus, rows[1] - 16), (bus, rows[2] + 10))
        canvas.circle(bus, rows[2], "+")
        canvas.text(left, rows[2] - 26, "h at t−1", size=14, weight=600, anchor="start")
        canvas.line((left, rows[2]), (left + 28, rows[2]))
        canvas.box(left + 93, rows[2], 130, "Linear", LINEAR, f"{D} → 4 × {D} + bias")
        canvas.line((left + 158, rows[2]), (bus - 10, rows[2]))
        fork = (rows[2] + rows[3]) / 2
        for place, (label, note, fill) in zip((forget, let, new, out), names, strict=True):
            canvas.line((bus, rows[2] - 10), (bus, fork), (place, fork), (place, rows[3] + 16))
            canvas.box(place, rows[3], 88, label, fill, note)
        canvas.line((let, rows[3] - 16), (let, rows[4]), (bus - 10, rows[4]))
        canvas.line((new, rows[3] - 16), (new, rows[4]), (bus + 10, rows[4]))
        canvas.circle(bus, rows[4], "×")
        cell = rows[6]
        canvas.text(left, cell - 10, "c at t−1", size=14, weight=600, anchor="start")
        canvas.line((left, cell), (forget - 10, cell))
        canvas.line((forget, rows[3] - 16), (forget, cell + 10))
        canvas.circle(forget, cell, "×")
        canvas.line((forget + 10, cell), (bus - 10, cell))
        canvas.line((bus, rows[4] - 10), (bus, cell + 10))
        canvas.circle(bus, cell, "+")
        canvas.line((bus + 10, cell), (right, cell))
        canvas.text(right, cell - 10, "c at t", size=14, weight=600, anchor="end")
        canvas.line((out, cell), (out, rows[5] + 12 - 16))
        canvas.box(out, rows[5] + 12, 70, "tanh", EMBED)
        canvas.line((out, rows[5] + 28), (out, rows[4] - 4))
        canvas.circle(out, rows[4] + 6, "×")
        canvas.line((out, rows[3] - 16), (out, rows[4] + 16))
        canvas.line((out + 10, rows[4] + 6), (right, rows[4] + 6))
        canvas.line((right - 54, rows[4] + 6), (right - 54, rows[7]))
        canvas.text(right, rows[4] + 28, "h at t", size=14, weight=600, anchor="end")
        canvas.text(right - 62, rows[7] + 8, "h, to the layer above", size=10, anchor="end", color=QUIET)

    return Panel("One LSTM cell", draw, width=520, notes=tuple(notes))


def _over_time(config: Config) -> Panel:
    """The same cells at each token."""
    L, D = config.model.num_layers, config.model.width
    shown = min(L, 4)

    def draw(canvas: Canvas, frame: Frame) -> None:
        rows, columns = frame.rows(shown + 2), [frame.x - 96, frame.x, frame.x + 96]
        for place, time in zip(columns, ("t−1", "t", "t+1"), strict=True):
            canvas.text(place, rows[0] + 18, f"x at {time}", size=12)
            y = rows[0] + 4
            for row, above in enumerate(rows[1:-1]):
                hidden = shown < L and row == shown - 2
                label = f"… {L - shown + 1} more" if hidden else f"Layer {L - 1 if row == shown - 1 else row}"
                canvas.line((place, y), (place, above + 16))
                canvas.box(place, above, 66, label, OTHER if hidden else MIX)
                canvas.line((place - 63 + 18 * (place == columns[0]), above), (place - 33, above))
                y = above - 16
            canvas.line((place, y), (place, rows[-1]))
            canvas.text(place, rows[-1] - 6, f"h at {time}", size=12)
        for above in rows[1:-1]:
            canvas.line((columns[-1] + 33, above), (columns[-1] + 50, above))
            canvas.text(frame.x - 48, above - 6, "c, h", size=9, color=QUIET)
            canvas.text(frame.x + 48, above - 6, "c, h", size=9, color=QUIET)

    notes = (
        "A layer has one cell, used at every token; of the past",
        f"it keeps c and h, {D} numbers each, 0 at first.",
    )
    return Panel("Over time", draw, notes=notes, needs=(shown + 2) * 60)


def _stack(config: Config) -> Panel:
    """The language model, from tokens to probabilities."""
    model, D = config.model, config.model.width
    layers = [
        step
        for layer in range(model.num_layers)
        for step in (Step(f"LSTM layer {layer}", "left to right, a state of all before it", MIX), *dropout(config))
    ]
    each = 1 + len(dropout(config))
    if model.num_layers > 6:
        dots = Step(f"… {model.num_layers - 5} more …", kind="dots")
        layers = [*layers[: 3 * each], dots, *layers[-2 * each :]]
    segments = [from_tokens(config), layers, to_probabilities(config)]

    def draw(canvas: Canvas, frame: Frame) -> None:
        gap = gap_of(segments, frame.bottom - frame.top)
        canvas.text(frame.x, frame.bottom + 18, "T tokens", size=12)
        places = canvas.column(frame.x, frame.bottom, gap, segments)
        canvas.shape(frame.x, places[0][0] - 16 - gap / 2, f"T × {D}")
        leave(canvas, config, frame.x, places, segments, frame.top, gap)
        if model.tied_embeddings:
            tie(canvas, frame.x - 95, places[0][0], places[-1][0])

    return Panel("The network", draw, needs=needed(segments))


def _alignment(config: Config) -> Panel:
    """How a state finds its place in the source: Luong et al. 2015, section 3.1, or Bahdanau et al. 2015, A.1.2."""
    D, additive = config.model.width, config.model.alignment == "bahdanau"
    if additive:
        scores = [Step("+", kind="add"), Step("tanh", "", BEND), Step("Linear", f"{D} → 1, a score per pair", LINEAR)]
    else:
        scores = [Step("MatMul", "each state · each key", MIX)]
    steps = [*scores, Step("Softmax", "over the source", BEND)]

    def draw(canvas: Canvas, frame: Frame) -> None:
        rows = frame.rows(len(steps) + 6)
        state, key, value = frame.x - 100, frame.x - 2, frame.x + 108
        left = (state + key) / 2
        for place, name, size in ((state, "State", "T"), ((key + value) / 2, "Source", "S")):
            canvas.text(place, rows[0] + 18, name, size=14, weight=600)
            canvas.shape(place, rows[0] + 32, f"{size} × {D}", "middle")
        source, fork = (key + value) / 2, rows[0] - 8
        canvas.line((source, rows[0] + 4), (source, fork), (key, fork), (key, rows[1] + 16))
        canvas.box(key, rows[1], 88, "Linear", LINEAR, f"{D} → {D}{bias(config)}")
        first = rows[2] + (10 if additive else 16)
        if additive:
            canvas.line((state, rows[0] + 4), (state, rows[1] + 16))
            canvas.box(state, rows[1], 88, "Linear", LINEAR, f"{D} → {D}{bias(config)}")
            canvas.line((state, rows[1] - 16), (state, rows[2]), (left - 10, rows[2]))
            canvas.line((key, rows[1] - 16), (key, rows[2]), (left + 10, rows[2]))
        else:
            canvas.line((state, rows[0] + 4), (state, first))
            canvas.line((key, rows[1] - 16), (key, first))
        for step, y, above in zip(steps, rows[2:], rows[3:], strict=False):
            if step.kind == "add":
                canvas.circle(left, y, "+")
                canvas.line((left, y - 10), (left, above + 16))
                canvas.shape(left, (y + above) / 2, f"T × S × {D}")
            else:
                canvas.box(left, y, 190, step.label, step.fill, step.note)
                canvas.line((left, y - 16), (left, above + 16))
        last = len(steps) + 1
        canvas.shape(left, (rows[last] + rows[last + 1]) / 2, "T × S")
        canvas.line((source, fork), (value, fork), (value, rows[last + 1] + 16))
        canvas.box(frame.x + 16, rows[last + 1], 240, "MatMul", MIX, "the source, averaged with these weights")
        canvas.line((frame.x + 16, rows[last + 1] - 16), (frame.x + 16, rows[last + 2] + 16))
        canvas.box(frame.x, rows[last + 2], 272, "Concatenate", OTHER, f"with the state, {D} + {D}")
        aside = frame.left + 12
        canvas.line((state, fork), (aside, fork), (aside, rows[last + 2]), (frame.x - 136, rows[last + 2]))
        canvas.line((frame.x, rows[last + 2] - 16), (frame.x, rows[last + 3] + 16))
        canvas.box(frame.x, rows[last + 3], 272, "Linear, then tanh", LINEAR, f"{2 * D} → {D}{bias(config)}")
        canvas.line((frame.x, rows[last + 3] - 16), (frame.x, rows[last + 4]))
        canvas.shape(frame.x, rows[last + 4] + 4, f"T × {D}")

    paper = "Bahdanau et al. 2015: an additive score" if additive else "Luong et al. 2015: a bilinear score"
    return Panel("Attention to the source", draw, width=340, notes=(paper,))


def _translator(config: Config) -> Panel:
    """A bidirectional encoder, and a decoder that looks back at it."""
    model, D = config.model, config.model.width
    both = Step("LSTM, forward", f"{D} → {D // 2}", MIX, "pair", "LSTM, backward")
    joined = Step("Concatenate", f"{D // 2} + {D // 2}", OTHER, "join")
    encoder = [from_tokens(config), [both, joined, *dropout(config)]]
    found = Step("Attention to the source", f"{model.alignment}, then {2 * D} → {D}", MIX)
    decoder = [from_tokens(config), [Step("LSTM", f"{D} → {D}", MIX), *dropout(config)], [found, *dropout(config)]]
    decoder.append(to_probabilities(config))
    notes = ["One table of embeddings for the source and the target" + (" and the output" * model.tied_embeddings)]
    if model.position == "learned":
        notes.append("Source and target have a table of positions each")

    def draw(canvas: Canvas, frame: Frame) -> None:
        gap = gap_of(decoder, frame.bottom - frame.top)
        left, right = frame.left + 184, frame.right - 184
        start = frame.bottom - sum(step.height + gap for step in decoder[0])
        columns = [(left, encoder, encoder_layers(config), "Encoder", -1)]
        columns.append((right, decoder, model.num_layers, "Decoder", 1))
        for x, segments, layers, name, side in columns:
            height = sum(step.height + gap for step in segments[1])
            repeated(canvas, x, start - gap / 4, height + gap / 8, f"{layers} ×", name, side)
        canvas.text(left, frame.bottom + 18, "S tokens of the source", size=12)
        canvas.text(right, frame.bottom + 18, "T tokens of the target so far", size=12)
        low = canvas.column(left, frame.bottom, gap, encoder)
        high = canvas.column(right, frame.bottom, gap, decoder)
        end = low[-1][-1] - encoder[-1][-1].height / 2
        across, turn, between = high[2][0], end - max(gap, 26), (left + right) / 2
        canvas.line((left, end), (left, turn), (between, turn), (between, across), (right - 95, across))
        canvas.shape(left, turn - 10, f"memory, S × {D}", "middle")
        begin = high[1][0]
        canvas.line((left + 136, begin), (right - 95, begin), dashed=True)
        canvas.text(between, begin - 6, "last states", size=9, color=QUIET)
        leave(canvas, config, right, high, decoder, frame.top, gap)

    return Panel("The network", draw, width=700, notes=tuple(notes), needs=needed(decoder))
