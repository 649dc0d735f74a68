"""Panels of structure diagrams for attention with a softmax: one head, and how heads are made and joined."""

from __future__ import annotations

from configs.derived import (
    attention_scale,
    encoder_layers,
    head_width,
    latent_rope_width,
    latent_width,
    layer_windows,
    num_kv_heads,
    translates,
)
from configs.schema import Config
from launch.views.structure_canvas import BEND, GROUPS, LINEAR, MIX, NORM, OTHER, QUIET, Canvas, Frame, Panel, Step
from launch.views.structure_parts import bias, lora, lora_notes
from model.positions import rope_attention_factor, rope_width


def _masks(config: Config) -> list[Step]:
    """Who may look at whom, for each stack that hides something."""
    model, steps = config.model, []
    before, each = f"{model.window - 1} before it", f"{model.window - 1} on each side"
    if model.network != "encoder":
        windows = set(layer_windows(config, model.num_layers))
        seen = f"itself and {before if windows == {model.window} and model.window else 'all before it'}"
        if len(windows) > 1:
            seen = f"all before it, or {model.window - 1} in L layers"
        steps.append(Step("Mask, in the decoder" if translates(config) else "Mask", f"sees {seen}"))
    if model.network != "decoder" and model.window:
        windows = set(layer_windows(config, encoder_layers(config) if translates(config) else model.num_layers))
        seen = f"all, or {each} in L layers" if len(windows) > 1 else f"itself and {each}"
        if windows != {0}:
            steps.append(Step("Mask, in the encoder" if translates(config) else "Mask", f"sees {seen}"))
    return steps


def scaled_panel(config: Config) -> Panel:
    """Softmax attention of one head (Vaswani et al. 2017, figure 2, left)."""
    model, H = config.model, head_width(config)
    rotated = latent_rope_width(config) if model.attention == "latent" else 0
    wide = f"{H} + {rotated}" if rotated else f"{H}"
    scale = f"÷ √({wide})" if rotated else f"÷ √{H}"
    if rotated and translates(config):
        scale += f", in cross-attention ÷ √{H}"
    if model.attention_scale or model.base_width:
        scale = f"× {attention_scale(config):g}"
    steps = [Step("MatMul", "each query · each key", MIX), Step("Scale", scale)]
    if model.attention_softcap:
        cap = f"{model.attention_softcap:g}"
        steps.append(Step("Soft-cap", f"{cap} · tanh(score / {cap})"))
    if model.position == "alibi":
        steps.append(Step("ALiBi", "− slope of the head × distance"))
    elif model.position == "relative":
        ranges = f"learned for {model.relative_buckets} ranges up to {model.relative_distance}"
        steps.append(Step("Relative position bias", ranges))
    steps += _masks(config)
    over = "over the keys and a learned sink" if model.attention_sinks else "over the keys"
    steps.append(Step("Softmax", over, BEND))
    notes = []
    if translates(config):
        notes = ["Cross-attention has no mask: all of the source is seen."]
        if model.position in ("alibi", "relative"):
            notes.append("It has no position bias either.")
        if model.position == "relative":
            notes.append("Encoder and decoder have a table of biases each.")
    elif model.network == "encoder":
        notes = ["Every token is seen from both sides." if model.window else "Every token sees every other: no mask."]

    def draw(canvas: Canvas, frame: Frame) -> None:
        x, rows = frame.x, frame.rows(len(steps) + 3)
        left, right, width = x - 36, x + 114, 204
        query, key = left - 50, left + 50
        for place, name, size in ((query, "Q", wide), (key, "K", wide), (right, "V", f"{H}")):
            canvas.text(place, rows[0] + 16, name, size=14, weight=600)
            canvas.shape(place, rows[0] + 28, f"T × {size}" if size.isdigit() else f"T × ({size})", "middle")
        canvas.line((query, rows[0]), (query, rows[1] + 16))
        canvas.line((key, rows[0]), (key, rows[1] + 16))
        for step, y, above in zip(steps, rows[1:], rows[2:], strict=False):
            canvas.box(left, y, width, step.label, step.fill, step.note)
            canvas.line((left, y - 16), (left, above + 16))
        canvas.shape(left, (rows[1] + rows[2]) / 2, "T × T")
        canvas.line((right, rows[0]), (right, rows[-2] + 16))
        canvas.box(x, rows[-2], 260, "MatMul", MIX, "the values, averaged with these weights")
        canvas.line((x, rows[-2] - 16), (x, rows[-1]))
        canvas.shape(x, rows[-1] + 4, f"T × {H}")

    return Panel("Scaled dot-product attention", draw, notes=tuple(notes), needs=(len(steps) + 3) * 45)


def _rope_notes(config: Config, head: int) -> list[str]:
    """What a box with the name RoPE does not say."""
    model, notes = config.model, []
    if model.position != "rope":
        return notes
    if model.attention != "latent" and rope_width(config) != head:
        notes.append(f"RoPE turns the first {rope_width(config)} of each head's {head} numbers")
    if model.rope_scaling != "none":
        beyond = "" if model.rope_scaling in ("linear", "ntk") else f", trained for {model.rope_original_length:,}"
        by = "by a factor per wave" if model.rope_scaling == "longrope" else f"by {model.rope_scaling_factor:g}"
        notes.append(f"RoPE stretched {by} ({model.rope_scaling}){beyond}")
        if rope_attention_factor(config) != 1:
            notes.append(f"and what is rotated × {rope_attention_factor(config):.3g}")
    if model.rope_local_base:
        notes.append(f"In layers with a window RoPE has base {model.rope_local_base:,.0f}, unstretched")
    return notes


def multi_head_panel(config: Config, *, cross: bool = False) -> Panel:
    """Heads side by side (Vaswani et al. 2017, figure 2, right); `cross` draws cross-attention alone."""
    model, D, H = config.model, config.model.width, head_width(config)
    N, K = model.num_heads, num_kv_heads(config)
    turned: list[Step] = []
    if model.qk_norm != "none":
        turned.append(Step("RMS norm", "of each head" if model.qk_norm == "head" else "of all heads", NORM))
    notes = lora_notes(config, ("query", "key", "value", "output"))
    if model.position == "rope" and not cross:
        turned.append(Step("RoPE", f"base {model.rope_base:,.0f}"))
        notes += _rope_notes(config, H)
    if translates(config):
        notes.append(f"{'' if cross else 'In cross-attention '}K and V are of the encoded source, S × {D}")
        if model.position == "rope":
            notes.append("and nothing is rotated")
    inside = "Linear attention" if model.attention == "linear" else "Scaled dot-product attention"
    added = " + bias" if model.biases or model.qkv_biases else ""

    def draw(canvas: Canvas, frame: Frame) -> None:
        x, rows = frame.x, frame.rows(len(turned) + 7)
        columns = (x - 104, x, x + 104)
        middle = (rows[-5] + rows[-4]) / 2
        canvas.text(x, rows[0] + 18, f"T × {D}", size=12)
        for place, name, count in zip(columns, ("Query", "Key", "Value"), (N, K, K), strict=True):
            fork = rows[0] - 8
            canvas.line((x, rows[0]), (x, fork), (place, fork), (place, rows[1] + 16))
            mark = lora(config, name.lower())
            canvas.box(place, rows[1], 98, f"Linear to {name[0]}", LINEAR, f"{D} → {count} × {H}{added}", mark)
            y = rows[1]
            for step, above in zip(turned, rows[2:], strict=False):
                if name != "Value":
                    canvas.line((place, y - 16), (place, above + 16))
                    canvas.box(place, above, 98, step.label, step.fill, step.note)
                    y = above
            canvas.line((place, y - 16), (place, middle + 46))
            canvas.shape(place - 2, middle + 60, f"{count} × T × {H}")
        _cards(canvas, x, middle, inside)
        draw_heads(canvas, x - 3, middle, N, K)
        draw_output(canvas, x, [middle - 52, *rows[-3:]], config)

    title = "Cross-attention" if cross else "Multi-head attention"
    return Panel(
        title,
        draw,
        width=340,
        notes=tuple(notes),
        needs=(len(turned) + 8) * 52,
    )


def _cards(canvas: Canvas, x: float, y: float, label: str) -> None:
    for shift in (6, 3, 0):
        canvas.rectangle(x - 138 + shift, y - 46 - shift, 270, 92, MIX)
    canvas.text(x - 3, y - 28, label)


def draw_output(canvas: Canvas, x: float, rows: list[float], config: Config) -> None:
    """From what heads have read, which leaves them at the first row, to the end of the panel."""
    N, H, D = config.model.num_heads, head_width(config), config.model.width
    canvas.line((x, rows[0]), (x, rows[1] + 16))
    canvas.shape(x, (rows[0] + rows[1] + 16) / 2, f"{N} × T × {H}")
    canvas.box(x, rows[1], 200, "Concatenate", OTHER, f"{N} × {H} = {N * H}")
    canvas.line((x, rows[1] - 16), (x, rows[2] + 16))
    canvas.box(x, rows[2], 200, "Linear", LINEAR, f"{N * H} → {D}{bias(config)}", lora(config, "output"))
    canvas.line((x, rows[2] - 16), (x, rows[3]))
    canvas.shape(x, rows[3] + 4, f"T × {D}")


def draw_heads(canvas: Canvas, x: float, y: float, N: int, K: int) -> None:
    """A square for each query head and, below those that share it, one for each key/value head."""
    slot = min(24.0, 250 / N)
    side = slot * 0.72
    left = x - N * slot / 2
    for head in range(N):
        colour = GROUPS[head * K // N % len(GROUPS)]
        canvas.rectangle(left + head * slot + (slot - side) / 2, y - 18, side, min(side, 14), colour, "none", 2)
    for head in range(K):
        width, colour = N // K * slot, GROUPS[head % len(GROUPS)]
        canvas.rectangle(left + head * width + (slot - side) / 2, y + 2, width - slot + side, 10, colour, "none", 2)
    shared = "each with its own key and value" if N == K else f"{N // K} to each of {K} keys and values"
    if K == 1 < N:
        shared = "all with one key and value"
    canvas.text(x, y + 32, f"{N} query heads, {shared}", size=10, color=QUIET)


def latent_panel(config: Config) -> Panel:
    """Keys and values widened from one small vector per token (DeepSeek-AI 2024, section 2.1)."""
    model, D, H, N = config.model, config.model.width, head_width(config), config.model.num_heads
    R, P, narrow = latent_width(config), latent_rope_width(config), model.query_latent_width
    kept = f"A cache keeps {R} numbers per token" + (f", and {P} rotated ones" if P else "")
    names = ("query", "query_latent", "latent", "key_rotated", "output")
    notes = [kept, *lora_notes(config, names), *_rope_notes(config, H)]

    def draw(canvas: Canvas, frame: Frame) -> None:
        x, rows = frame.x, frame.rows(10)
        query, key, value, turned = x - 168, x - 52, x + 52, x + 168
        middle, fork, both = (rows[5] + rows[6]) / 2, rows[0] - 8, x
        canvas.text(x, rows[0] + 18, f"T × {D}", size=12)
        canvas.line((x, rows[0]), (x, fork), (both, fork), (both, rows[1] + 16))
        canvas.box(both, rows[1], 170, "Compress: linear", LINEAR, f"{D} → {R}{bias(config)}", lora(config, "latent"))
        canvas.line((both, rows[1] - 16), (both, rows[2] + 16))
        canvas.box(both, rows[2], 170, "RMS norm", NORM, f"latent, T × {R}")
        for place, name in ((key, "K"), (value, "V")):
            bend = (rows[2] + rows[3]) / 2
            canvas.line((both, rows[2] - 16), (both, bend), (place, bend), (place, rows[3] + 16))
            canvas.box(place, rows[3], 98, f"Expand to {name}", LINEAR, f"{R} → {N} × {H}")
            canvas.line((place, rows[3] - 16), (place, middle + 46))
        canvas.line((x, fork), (query, fork), (query, rows[1] + 16), arrow=narrow > 0)
        if narrow:
            mark = lora(config, "query_latent")
            canvas.box(query, rows[1], 104, "Compress: linear", LINEAR, f"{D} → {narrow}{bias(config)}", mark)
            canvas.line((query, rows[1] - 16), (query, rows[2] + 16))
            canvas.box(query, rows[2], 104, "RMS norm", NORM)
            canvas.line((query, rows[2] - 16), (query, rows[3] + 16))
        else:
            canvas.line((query, rows[1] + 16), (query, rows[3] + 16))
        wide = f"({H} + {P})" if P else f"{H}"
        canvas.box(query, rows[3], 104, "Linear to Q", LINEAR, f"{narrow or D} → {N} × {wide}", lora(config, "query"))
        canvas.line((query, rows[4 if P else 3] - 16), (query, middle), (x - 138, middle))
        if P:
            base = f"base {model.rope_base:,.0f}"
            canvas.line((query, rows[3] - 16), (query, rows[4] + 16))
            canvas.box(query, rows[4], 104, f"RoPE on {P}", OTHER, base)
            canvas.line((x, fork), (turned, fork), (turned, rows[1] + 16))
            mark = lora(config, "key_rotated")
            canvas.box(turned, rows[1], 92, "Linear to K", LINEAR, f"{D} → {P}{bias(config)}", mark)
            canvas.line((turned, rows[1] - 16), (turned, rows[4] + 16))
            canvas.box(turned, rows[4], 92, f"RoPE on {P}", OTHER, base)
            canvas.text(turned + 5, rows[2] + 3, "for all heads", size=9, anchor="start", color=QUIET)
            canvas.line((turned, rows[4] - 16), (turned, middle), (x + 132, middle))
        _cards(canvas, x, middle, "Scaled dot-product attention")
        canvas.text(x - 3, middle + 2, f"{N} heads", color=QUIET)
        if P:
            canvas.text(x - 3, middle + 22, f"a key is {H} of its head and {P} of all heads", size=10, color=QUIET)
        draw_output(canvas, x, [middle - 52, *rows[-3:]], config)

    return Panel("Latent attention", draw, width=460, notes=tuple(notes), needs=10 * 66)
