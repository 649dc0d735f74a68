"""The network's structure diagram, drawn from its config: from one head of attention, or one cell, to the whole.

The panels are those of the papers (figures 1 and 2 of "Attention Is All You Need", Vaswani et al. 2017, and others
named where they are drawn), read upwards, with what this config has and no more. Shapes stand for one text of T tokens;
the batch axis is left out.
"""

from __future__ import annotations

from configs.derived import encoder_layers, head_width, is_recurrent, source_length, translates
from configs.schema import Config
from launch.views.structure_attention import latent_panel, multi_head_panel, scaled_panel
from launch.views.structure_canvas import Panel, drawing
from launch.views.structure_lstm import recurrent_panels
from launch.views.structure_stack import (
    block_panel,
    encoder_decoder_panel,
    experts_panel,
    feed_forward_panel,
    stack_panel,
)
from launch.views.structure_state import delta_heads_panel, delta_panel, linear_panel

_DESCRIBE_POSITION = {
    "rope": "rotary positions",
    "learned": "learned positions",
    "sinusoidal": "sinusoidal positions",
    "alibi": "ALiBi positions",
    "relative": "relative positions",
    "none": "no positions",
}


def structure_svg(config: Config, num_parameters: int) -> str:
    """The structure of the network that `config` describes, as an SVG with its own light background.

    `num_parameters` is the number that the model really has; it is printed, not computed.
    """
    return drawing(f"{config.name}: {num_parameters:,} parameters", _summary(config), _panels(config))


def _panels(config: Config) -> list[Panel]:
    if is_recurrent(config):
        return recurrent_panels(config)
    attention = _attention_panels(config)
    feed = [experts_panel(config)] if config.model.num_experts else []
    if translates(config):
        feed = feed or [feed_forward_panel(config)] * config.model.feed_forward
        return [*attention, *feed, encoder_decoder_panel(config)]
    return [*attention, block_panel(config), *feed, stack_panel(config)]


def _attention_panels(config: Config) -> list[Panel]:
    kind = config.model.attention
    if kind == "linear":
        return [linear_panel(config), multi_head_panel(config)]
    if kind == "delta":
        return [delta_panel(config), delta_heads_panel(config)]
    if kind == "latent":
        cross = [multi_head_panel(config, cross=True)] if translates(config) else []
        return [scaled_panel(config), latent_panel(config), *cross]
    return [scaled_panel(config), multi_head_panel(config)]


def _summary(config: Config) -> str:
    model = config.model
    layers = f"{model.num_layers} layers"
    if translates(config):
        layers = f"{encoder_layers(config)} layers of encoder and {model.num_layers} of decoder"
    parts = [layers, f"width {model.width}"]
    if not is_recurrent(config):
        parts.append(f"{model.num_heads} heads of {head_width(config)}")
    if not is_recurrent(config) or model.position in ("learned", "sinusoidal"):
        parts.append(_DESCRIBE_POSITION[model.position])
    lengths = f"T = {config.data.length} in training"
    text = "one text of T tokens"
    if translates(config):
        text, lengths = "one source of S tokens and T of its target", f"S = {source_length(config.data)}, {lengths}"
    trained = " Only what LoRA adds is trained." if model.lora_rank else ""
    return f"{', '.join(parts)}, computed in {model.dtype}. Shapes are for {text} ({lengths}). Read upwards.{trained}"
