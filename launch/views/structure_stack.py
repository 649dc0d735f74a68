"""Panels of structure diagrams for Transformers: a block, its feed-forward layer, and the whole network."""

from __future__ import annotations

from configs.derived import encoder_layers, has_final_norm, layer_windows
from configs.schema import Config
from launch.views.structure_canvas import (
    BEND,
    GROUPS,
    LINEAR,
    MIX,
    PLAIN,
    QUIET,
    Canvas,
    Frame,
    Panel,
    Segments,
    Step,
    gap_of,
    needed,
)
from launch.views.structure_parts import (
    bias,
    feed_forward,
    feed_forward_steps,
    from_tokens,
    lora_notes,
    norm,
    self_attention,
    sub_layer,
    to_probabilities,
)

_MAPS = ("up", "gate", "down")


def block_panel(config: Config) -> Panel:
    """One layer: attention, then feed-forward if it has any, each added to what entered it."""
    segments = [sub_layer(config, self_attention(config))]
    if config.model.feed_forward:
        segments.append(sub_layer(config, *feed_forward(config)))

    def draw(canvas: Canvas, frame: Frame) -> None:
        x, gap = frame.x + 14, gap_of(segments, frame.bottom - frame.top)
        canvas.text(x, frame.bottom + 18, f"T × {config.model.width}", size=12)
        y = _end(canvas.column(x, frame.bottom + 4, gap, segments, side=-1), segments)
        canvas.line((x, y), (x, frame.top - 6))
        canvas.shape(x, frame.top - 2, f"T × {config.model.width}")

    one_for_all = config.model.feed_forward and not config.model.num_experts
    notes = tuple(lora_notes(config, _MAPS)) if one_for_all else ()
    return Panel("One block", draw, notes=notes, needs=needed(segments))


def _end(places: list[list[float]], segments: Segments) -> float:
    """Where the last step of a column ends."""
    return places[-1][-1] - segments[-1][-1].height / 2


def feed_forward_panel(config: Config) -> Panel:
    """The feed-forward layer by itself."""
    steps = [feed_forward_steps(config, marked=True)]

    def draw(canvas: Canvas, frame: Frame) -> None:
        middle = (frame.bottom + frame.top) / 2
        bottom, top = min(frame.bottom, middle + 150), max(frame.top, middle - 150)
        canvas.text(frame.x, bottom + 18, f"T × {config.model.width}", size=12)
        y = _end(canvas.column(frame.x, bottom + 4, gap_of(steps, bottom - top), steps), steps)
        canvas.line((frame.x, y), (frame.x, top))
        canvas.shape(frame.x, top + 4, f"T × {config.model.width}")

    return Panel("Feed-forward layer", draw, notes=tuple(lora_notes(config, _MAPS)))


def experts_panel(config: Config) -> Panel:
    """A router and the feed-forward layers that it chooses from (Fedus et al. 2021, figure 2)."""
    model, D = config.model, config.model.width
    E, C = model.num_experts, model.experts_per_token
    weights = "weights made to add up to 1" if model.router_renormalize else "the router's own weights"
    router = [Step("Router", f"linear, {D} → {E}{bias(config)}", LINEAR), Step("Softmax", f"over {E} experts", BEND)]
    router.append(Step(f"Top {C} of {E}", weights))
    if model.expert_capacity:
        router.append(Step("Capacity", f"at most {model.expert_capacity:g} × a fair share"))
    inside = [feed_forward_steps(config, marked=False)]
    losses = [(model.router_balance, "balance"), (model.router_z_loss, "log(Z)²")]
    terms = " + ".join(f"{weight:g} × {name}" for weight, name in losses if weight)
    notes = (f"The router adds {terms} to the loss.",) if terms else ()

    def draw(canvas: Canvas, frame: Frame) -> None:
        left, right, middle = frame.left + 94, frame.right - 144, (frame.bottom + frame.top) / 2
        low, high, fork = middle + 170, middle - 170, frame.bottom - 8
        canvas.text(frame.x, frame.bottom + 18, f"T × {D}", size=12)
        gap = gap_of([router], low + 20 - high)
        for place, y in ((left, low + 20 + gap), (right, low + 20)):
            canvas.line((frame.x, frame.bottom + 4), (frame.x, fork), (place, fork), (place, y), arrow=place == right)
        y = _end(canvas.column(left, low + 20 + gap, gap, [router], width=164), [router])
        sums = frame.top + (high - frame.top) * 0.4
        canvas.line((left, y), (left, sums + 16))
        for shift in (8, 4, 0):
            canvas.rectangle(right - 128 + shift, high - shift, 256, low - high + 20, MIX)
        canvas.text(right, low + 8, f"{E} experts, {C} for each token", size=12)
        _squares(canvas, right, low - 20, E, C)
        gap = gap_of(inside, low - 40 - high - 10)
        y = _end(canvas.column(right, low - 36, gap, inside, width=180), inside)
        canvas.line((right, y), (right, sums + 16))
        canvas.shape(left, (high + sums + 16) / 2, "weights")
        canvas.box(frame.x, sums, frame.right - frame.left - 48, "Weighted sum", MIX, "of what the chosen experts make")
        canvas.line((frame.x, sums - 16), (frame.x, frame.top))
        canvas.shape(frame.x, frame.top + 4, f"T × {D}")

    return Panel("Mixture of experts", draw, width=480, notes=notes, needs=600)


def _squares(canvas: Canvas, x: float, y: float, E: int, C: int) -> None:
    """A square for each expert, filled for as many as one token goes to."""
    slot = min(22.0, 236 / E)
    for expert in range(E):
        colour = GROUPS[0] if expert < C else PLAIN
        canvas.rectangle(x - E * slot / 2 + expert * slot + slot * 0.12, y - 5, slot * 0.76, 10, colour, radius=2)


def stack_panel(config: Config) -> Panel:
    """The network that is one stack of blocks, from tokens to probabilities."""
    model, D, V = config.model, config.model.width, config.tokenizer.vocab_size
    blocks = _block_rows(config) + [norm(config)] * has_final_norm(config)
    fills = model.network == "encoder"
    segments = [from_tokens(config), blocks, to_probabilities(config)]

    def draw(canvas: Canvas, frame: Frame) -> None:
        x, gap = frame.x, gap_of(segments, frame.bottom - frame.top)
        canvas.text(x, frame.bottom + 18, "T tokens, some of them masked" if fills else "T tokens", size=12)
        places = canvas.column(x, frame.bottom, gap, segments, width=200)
        end = _end(places, segments)
        canvas.line((x, end), (x, frame.top))
        canvas.shape(x, places[0][0] - 16 - gap / 2, f"T × {D}")
        canvas.shape(x, places[2][0] - 16 - gap / 2, f"T × {V}")
        last = f"T × {V} probabilities"
        canvas.shape(x, frame.top + 4, last)
        if fills:
            canvas.shape(x, frame.top - 9, "for the token that stood there")
        if model.tied_embeddings:
            tie(canvas, x - 100, places[0][0], places[2][0])

    return Panel("The network", draw, needs=needed(segments))


def tie(canvas: Canvas, edge: float, low: float, high: float, side: int = -1) -> None:
    """A dashed line between two boxes with one table, around the steps between them; `edge` is that of the boxes."""
    around = edge + side * 24
    canvas.line((edge, low), (around, low), (around, high), (edge, high), dashed=True)


def _block_rows(config: Config) -> list[Step]:
    """The blocks from the first on, each with how far it sees; the middle of a deep network as dots."""
    model, windows = config.model, layer_windows(config, config.model.num_layers)
    everything, width = "sees all before it", 1
    if model.network == "encoder":
        everything, width = "sees all", 2
    if model.attention in ("linear", "delta"):
        everything = "keeps a state of all before it"
    rows = [
        Step(f"Block {layer}", f"sees {width * window - width + 1} tokens" if window else everything, MIX)
        for layer, window in enumerate(windows)
    ]
    if len(rows) > 6:
        pattern = f", windows in the pattern {model.window_pattern}" if len(set(windows)) > 1 else ""
        rows = [*rows[:3], Step(f"… {len(rows) - 5} more{pattern} …", kind="dots"), *rows[-2:]]
    return rows


def encoder_decoder_panel(config: Config) -> Panel:
    """The network of Vaswani et al. 2017, figure 1, with this config's norms, positions and output."""
    model = config.model
    feed = feed_forward(config)[0] if model.num_experts else Step("Feed-forward", "", LINEAR)
    cross = Step("Cross-attention", f"{model.num_heads} heads, over the source", MIX)
    last = [[norm(config)]] if has_final_norm(config) else []
    feeds = [sub_layer(config, feed)] * model.feed_forward
    encoder = [from_tokens(config), sub_layer(config, self_attention(config)), *feeds, *last]
    decoder = [from_tokens(config), sub_layer(config, self_attention(config, masked=True)), sub_layer(config, cross)]
    decoder += [*feeds, *last, to_probabilities(config)]
    patterns = [layer_windows(config, count) for count in (encoder_layers(config), model.num_layers)]
    notes = ["One table of embeddings for the source and the target" + (" and the output" * model.tied_embeddings)]
    if model.position == "learned":
        notes.append("Source and target have a table of positions each")
    if any(len(set(windows)) > 1 for windows in patterns):
        notes.append(f"Layers have windows in the pattern {model.window_pattern}")

    def draw(canvas: Canvas, frame: Frame) -> None:
        gap = gap_of(decoder, frame.bottom - frame.top)
        left, right = frame.left + 184, frame.right - 184
        start = frame.bottom - sum(step.height + gap for step in decoder[0])
        frames = [
            (left, 1 + len(feeds), encoder_layers(config), "Encoder", -1),
            (right, 2 + len(feeds), model.num_layers, "Decoder", 1),
        ]
        for x, count, layers, name, side in frames:
            height = sum(step.height + gap for segment in decoder[1 : count + 1] for step in segment)
            repeated(canvas, x, start - gap / 4, height + gap / 8, f"{layers} ×", name, side)
        canvas.text(left, frame.bottom + 18, "S tokens of the source", size=12)
        canvas.text(right, frame.bottom + 18, "T tokens of the target so far", size=12)
        low = canvas.column(left, frame.bottom, gap, encoder, side=-1)
        high = canvas.column(right, frame.bottom, gap, decoder, side=1)
        end, across = _end(low, encoder), high[2][decoder[2].index(cross)]
        turn, between = end - max(gap, 26), (left + right) / 2
        canvas.line((left, end), (left, turn), (between, turn), (between, across), (right - 95, across))
        canvas.shape(left, turn - 10, f"memory, S × {model.width}", "middle")
        canvas.text(right - 116, across - 6, "K, V", size=10, color=QUIET)
        leave(canvas, config, right, high, decoder, frame.top, gap)

    return Panel("The network", draw, width=700, notes=tuple(notes), needs=needed(decoder))


def repeated(canvas: Canvas, x: float, bottom: float, height: float, times: str, name: str, side: int) -> None:
    """The ground of a layer that is repeated, with its name on the side where there is room for it."""
    canvas.rectangle(x - 136, bottom - height, 272, height, "#f6f7f9", "#c4cad1", 10)
    anchor = "end" if side < 0 else "start"
    canvas.text(x + side * 141, bottom - height / 2 - 4, times, size=15, weight=600, anchor=anchor)
    canvas.text(x + side * 141, bottom - height / 2 + 12, name, size=10, anchor=anchor, color=QUIET)


def leave(
    canvas: Canvas, config: Config, x: float, places: list[list[float]], segments: Segments, top: float, gap: float
) -> None:
    """What leaves a decoder whose column of boxes 190 wide ends with `to_probabilities`, up to the end of the panel."""
    V = config.tokenizer.vocab_size
    canvas.line((x, _end(places, segments)), (x, top))
    canvas.shape(x, top + 4, f"T × {V} probabilities")
    canvas.shape(x, places[-1][0] - segments[-1][0].height / 2 - gap / 2, f"T × {V}")
