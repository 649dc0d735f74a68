"""Steps that structure diagrams of several networks share: what enters, sub-layers of a block, what leaves."""

from __future__ import annotations

import math

from configs.derived import feed_forward_width, head_width, logit_scale, max_length, num_kv_heads
from configs.schema import Config
from launch.views.structure_canvas import ADD, BEND, EMBED, LINEAR, MIX, NORM, Step

_ACTIVATIONS = {"gelu": "GELU", "gelu_exact": "GELU, exact", "silu": "SiLU", "relu": "ReLU", "relu2": "ReLU²"}
NORMS = {"rms": "RMS norm", "layer": "Layer norm"}


def bias(config: Config) -> str:
    """What is said of a linear map that has a bias where `model.biases` has them."""
    return " + bias" if config.model.biases else ""


def lora(config: Config, name: str) -> str:
    """The mark of the linear map `name` of a block, if it has low-rank matrices beside it."""
    model = config.model
    has = model.lora_rank and (model.lora_targets == "all" or name in model.lora_targets.split(","))
    return f"LoRA {model.lora_rank}" if has else ""


def lora_notes(config: Config, names: tuple[str, ...]) -> list[str]:
    """A line that says what the marks mean, if any of these linear maps has one."""
    model = config.model
    if not any(lora(config, name) for name in names):
        return []
    rank = model.lora_rank
    return [f"LoRA: plus two maps through {rank} numbers, × {model.lora_alpha:g} / {rank}"]


def norm(config: Config) -> Step:
    """A norm, as all of a network are."""
    return Step(NORMS[config.model.norm], "", NORM)


def dropout(config: Config) -> list[Step]:
    """Dropout, if there is any."""
    return [Step(f"Dropout {config.model.dropout:g}")] if config.model.dropout else []


def from_tokens(config: Config) -> list[Step]:
    """From tokens to what enters the first layer."""
    model, D = config.model, config.model.width
    steps = [Step("Token embedding", f"table {config.tokenizer.vocab_size} × {D}", EMBED)]
    if model.scale_embeddings:
        steps.append(Step(f"× √{D}", f"= {math.sqrt(D):.4g}"))
    if model.position == "learned":
        steps.append(Step("+ learned position", f"table {max_length(config)} × {D}", EMBED))
    if model.position == "sinusoidal":
        steps.append(Step("+ sinusoidal position", "fixed", EMBED))
    return [*steps, *dropout(config)]


def to_probabilities(config: Config) -> list[Step]:
    """From the last layer to probabilities."""
    model, D, V = config.model, config.model.width, config.tokenizer.vocab_size
    note = "the embedding table, transposed" if model.tied_embeddings else f"linear, {D} → {V}"
    steps = [Step("Output layer", note, EMBED if model.tied_embeddings else LINEAR)]
    if logit_scale(config) != 1:
        steps.append(Step("Scale", f"× {logit_scale(config):.4g}"))
    if model.output_bias:
        steps.append(Step("+ output bias", f"{V} numbers", EMBED))
    if model.logit_softcap:
        cap = f"{model.logit_softcap:g}"
        steps.append(Step("Soft-cap", f"{cap} · tanh(logit / {cap})"))
    return [*steps, Step("Softmax", f"over {V} tokens", BEND)]


def sub_layer(config: Config, *layer: Step) -> list[Step]:
    """x + layer(x), with norms where `model.norm_position` puts them."""
    where = config.model.norm_position
    before = [norm(config)] * (where in ("pre", "both"))
    leaving = [norm(config)] * (where in ("both", "output"))
    return [*before, *layer, *leaving, *dropout(config), ADD, *[norm(config)] * (where == "post")]


def self_attention(config: Config, *, masked: bool = False) -> Step:
    """A block's attention to its own tokens."""
    N, K, kind = config.model.num_heads, num_kv_heads(config), config.model.attention
    name = {"latent": "Latent attention", "linear": "Linear attention", "delta": "Delta attention"}.get(
        kind, "Multi-head attention"
    )
    if masked:
        name = f"Masked {name[0].lower()}{name[1:]}"
    H = head_width(config)
    state = {"linear": f", a state of {H} × ({H} + 1) each", "delta": f", a state of {H} × {H} each"}.get(kind, "")
    heads = f"{N} heads" if N == K else f"{N} heads, {K} key/value"
    return Step(name, heads + state, MIX)


def feed_forward(config: Config) -> list[Step]:
    """The steps of a feed-forward layer or, where there are experts, one for the whole mixture."""
    model = config.model
    if model.num_experts:
        return [Step("Mixture of experts", f"{model.experts_per_token} of {model.num_experts} for each token", MIX)]
    return feed_forward_steps(config, marked=True)


def feed_forward_steps(config: Config, *, marked: bool) -> list[Step]:
    """Widen, bend, narrow: one expert of a mixture (whose maps have no LoRA), or the `marked` layer of a block."""
    model, D, F = config.model, config.model.width, feed_forward_width(config)
    up, gate, down = (lora(config, name) if marked else "" for name in ("up", "gate", "down"))
    wide, activation = f"{D} → {F}{bias(config)}", _ACTIVATIONS[model.activation]
    narrow = Step("Linear", f"{F} → {D}{bias(config)}", LINEAR, mark=down)
    if model.gated:
        pair = Step("Linear, gate", wide, LINEAR, "pair", "Linear, up", mark=gate, other_mark=up)
        return [pair, Step(activation, "", BEND, "times"), narrow]
    return [Step("Linear", wide, LINEAR, mark=up), Step(activation, "", BEND), narrow]
