"""The structure diagram is of this config, not of Transformers in general."""

from __future__ import annotations

import itertools
import xml.etree.ElementTree as ElementTree
from typing import Any

import pytest

from configs.check import check_network
from configs.convert import override
from configs.presets import PRESETS, preset
from configs.schema import Config
from launch.views.structure import structure_svg

BASE = Config()
KINDS: dict[str, dict[str, Any]] = {
    "decoder": {},
    "encoder": {"model.network": "encoder"},
    "encoder_decoder": {"model.network": "encoder_decoder"},
    "lstm": {"model.network": "lstm"},
    "lstm_encoder_decoder": {"model.network": "lstm_encoder_decoder"},
    "latent": {"model.attention": "latent"},
    "linear": {"model.attention": "linear", "model.position": "none"},
    "delta": {"model.attention": "delta", "model.position": "none"},
    "experts": {"model.num_experts": 6},
    "attention alone": {"model.feed_forward": False},
}


def kind(name: str, changes: dict[str, Any] | None = None) -> Config:
    """The default network in one of its kinds, with other changes."""
    return check_network(override(BASE, {**KINDS[name], **(changes or {})}))


def words(config: Config) -> str:
    """The text of the diagram, which must parse as XML."""
    root = ElementTree.fromstring(structure_svg(config, 1_234_567))
    return "\n".join(element.text or "" for element in root.iter("{http://www.w3.org/2000/svg}text"))


def test_the_diagram_names_the_shapes_and_the_number_of_parameters():
    text = words(BASE)
    for label in (
        "quickstart: 1,234,567 parameters", "T × 256", "256 → 8 × 32", "256 → 2 × 32", "256 → 688", "688 → 256",
        "table 4096 × 256", "÷ √32", "8 query heads, 4 to each of 2 keys and values", "T × 4096 probabilities",
    ):  # fmt: skip
        assert label in text


@pytest.mark.parametrize(
    ("changes", "appears"),
    [
        ({"model.attention": "mha"}, "each with its own key and value"),
        ({"model.attention": "mqa"}, "all with one key and value"),
        ({"model.qk_norm": "head"}, "of each head"),
        ({"model.qk_norm": "all"}, "of all heads"),
        ({"model.position": "relative", "model.relative_buckets": 16}, "learned for 16 ranges up to 128"),
        ({"model.rope_fraction": 0.5}, "RoPE turns the first 16 of each head's 32 numbers"),
        ({"model.rope_local_base": 5e3}, "In layers with a window RoPE has base 5,000, unstretched"),
        ({"model.rope_scaling": "yarn", "model.rope_scaling_factor": 4.0}, "and what is rotated × 1.14"),
        ({"model.attention_scale": 0.25}, "× 0.25"),
        ({"model.activation": "gelu_exact"}, "GELU, exact"),
        ({"model.scale_embeddings": True}, "× √256"),
        ({"model.output_bias": True}, "+ output bias"),
        ({"model.logit_scale": 0.0625}, "× 0.0625"),
        ({"model.qkv_biases": True}, "256 → 8 × 32 + bias"),
        ({"model.lora_rank": 4}, "LoRA 4"),
        ({"model.num_experts": 6}, "2 of 6 for each token"),
        ({"model.num_layers": 3}, "3 layers, width 256"),
        ({"model.position": "alibi"}, "ALiBi"),
        ({"model.position": "learned", "data.length": 99}, "table 99 × 256"),
        ({"model.position": "sinusoidal"}, "+ sinusoidal position"),
        ({"model.rope_base": 5e5}, "base 500,000"),
        ({"model.rope_scaling": "ntk", "model.rope_scaling_factor": 4.0}, "RoPE stretched by 4 (ntk)"),
        ({"model.norm": "layer"}, "Layer norm"),
        ({"model.gated": False}, "256 → 1024"),
        ({"model.activation": "relu2"}, "ReLU²"),
        ({"model.biases": True}, "+ bias"),
        ({"model.dropout": 0.1}, "Dropout 0.1"),
        ({"model.window": 64}, "sees itself and 63 before it"),
        ({"model.window": 64, "model.window_pattern": "LG"}, "sees all before it, or 63 in L layers"),
        ({"model.attention_softcap": 50.0}, "50 · tanh(score / 50)"),
        ({"model.logit_softcap": 30.0}, "30 · tanh(logit / 30)"),
        ({"model.attention_sinks": True}, "a learned sink"),
        ({"model.tied_embeddings": False}, "linear, 256 → 4096"),
        ({"model.num_layers": 30}, "… 25 more …"),
        ({"model.num_layers": 30, "model.window": 8, "model.window_pattern": "LLG"}, "in the pattern LLG"),
        ({"tokenizer.vocab_size": 300}, "over 300 tokens"),
        ({"model.dtype": "bfloat16"}, "computed in bfloat16"),
    ],
)
def test_a_changed_setting_is_drawn(changes: dict[str, Any], appears: str):
    assert appears not in words(BASE)
    assert appears in words(override(BASE, changes))


@pytest.mark.parametrize(("position", "norms"), [("pre", 3), ("post", 2), ("both", 5), ("output", 3)])
def test_the_norms_are_drawn_where_the_block_has_them(position: str, norms: int):
    text = words(override(BASE, {"model.norm_position": position})).split("\n")
    assert text.count("RMS norm") == norms
    block = text[text.index("One block") :]
    first = [label for label in block if label in ("RMS norm", "Multi-head attention", "+")][:3]
    assert (
        first
        == {
            "pre": ["RMS norm", "Multi-head attention", "+"],
            "post": ["Multi-head attention", "+", "RMS norm"],
            "both": ["RMS norm", "Multi-head attention", "RMS norm"],
            "output": ["Multi-head attention", "RMS norm", "+"],
        }[position]
    )


def test_tied_embeddings_are_joined_by_a_dashed_line():
    assert "dasharray" in structure_svg(BASE, 1)
    assert "dasharray" not in structure_svg(override(BASE, {"model.tied_embeddings": False}), 1)


def test_everything_stays_inside_the_drawing():
    deep = override(
        BASE,
        {"model.num_layers": 40, "model.norm_position": "both", "model.dropout": 0.1, "model.qk_norm": "head",
         "model.position": "learned", "model.logit_softcap": 30.0, "model.num_heads": 64},
    )  # fmt: skip
    root = ElementTree.fromstring(structure_svg(deep, 1))
    width, height = float(root.attrib["width"]), float(root.attrib["height"])
    for element in root.iter():
        if "x" in element.attrib:
            assert 0 <= float(element.attrib["x"]) <= width
            assert 0 <= float(element.attrib["y"]) <= height


@pytest.mark.parametrize(
    ("network", "labels"),
    [
        ("encoder", ["Every token sees every other: no mask.", "T tokens, some of them masked", "sees all"]),
        ("encoder_decoder", ["4 ×", "Masked multi-head attention", "Cross-attention", "memory, S × 256", "Encoder"]),
        ("lstm", ["One LSTM cell", "Forget gate", "256 → 4 × 256 + bias", "LSTM layer 3", "h at t−1"]),
        ("lstm_encoder_decoder", ["LSTM, backward", "256 → 128", "128 + 128", "luong, then 512 → 256", "last states"]),
        ("latent", ["Latent attention", "256 → 128", "128 → 8 × 32", "256 → 8 × (32 + 16)", "÷ √(32 + 16)"]),
        ("linear", ["Linear attention", "elu(x) + 1", "8 heads, a state of 32 × (32 + 1) each"]),
        ("delta", ["Gated delta rule", "Convolution over 4 tokens, SiLU", "strength", "decay", "then ÷ √32"]),
        ("experts", ["linear, 256 → 6", "Top 2 of 6", "over 6 experts", "6 experts, 2 for each token", "256 → 688"]),
    ],
)
def test_every_kind_names_its_own_parts(network: str, labels: list[str]):
    text = words(kind(network)).split("\n")
    assert [label for label in labels if label not in text] == []


@pytest.mark.parametrize(
    ("network", "changes", "appears"),
    [
        ("encoder", {"model.window": 9}, "sees itself and 8 on each side"),
        ("encoder", {"model.window": 9}, "sees 17 tokens"),
        ("encoder_decoder", {"model.encoder_layers": 7}, "7 ×"),
        ("encoder_decoder", {"model.num_experts": 6}, "Mixture of experts"),
        ("encoder_decoder", {"model.tied_embeddings": False}, "linear, 256 → 4096"),
        ("encoder_decoder", {"model.position": "relative"}, "Encoder and decoder have a table of biases each."),
        ("encoder_decoder", {"model.attention": "latent"}, "Masked latent attention"),
        ("encoder_decoder", {"model.feed_forward_width": 99}, "99 → 256"),
        ("encoder_decoder", {"data.source_length": 77}, "(S = 77, T = 256 in training)"),
        ("lstm", {"model.num_layers": 9}, "… 4 more …"),
        ("lstm", {"model.dropout": 0.2}, "Dropout 0.2"),
        ("lstm_encoder_decoder", {"model.alignment": "bahdanau"}, "256 → 1, a score per pair"),
        ("lstm_encoder_decoder", {"model.encoder_layers": 2}, "2 ×"),
        ("latent", {"model.query_latent_width": 48}, "256 → 48"),
        ("latent", {"model.latent_width": 40}, "A cache keeps 40 numbers per token, and 16 rotated ones"),
        ("latent", {"model.position": "none"}, "256 → 8 × 32"),
        ("delta", {"model.convolution": 3}, "Convolution over 3 tokens, SiLU"),
        ("experts", {"model.experts_per_token": 3}, "Top 3 of 6"),
        ("experts", {"model.expert_capacity": 1.25}, "at most 1.25 × a fair share"),
        ("experts", {"model.router_renormalize": False}, "the router's own weights"),
        ("experts", {"model.router_balance": 0.0}, "The router adds 0.001 × log(Z)² to the loss."),
    ],
)
def test_a_changed_setting_of_a_kind_is_drawn(network: str, changes: dict[str, Any], appears: str):
    assert appears not in words(kind(network))
    assert appears in words(kind(network, changes))


@pytest.mark.parametrize(("position", "final", "norms"), [("pre", "auto", 7), ("post", "auto", 5), ("post", "on", 7)])
def test_an_encoder_decoder_has_its_norms_in_both_stacks(position: str, final: str, norms: int):
    changes = {"model.norm_position": position, "model.final_norm": final}
    assert words(kind("encoder_decoder", changes)).split("\n").count("RMS norm") == norms


def test_only_the_decoder_of_a_translator_is_masked():
    text = words(kind("encoder_decoder")).split("\n")
    assert "Mask, in the decoder" in text
    assert "Mask, in the encoder" not in text
    assert "Mask, in the encoder" in words(kind("encoder_decoder", {"model.window": 9}))


def test_lora_marks_only_the_maps_that_have_it():
    one = {"model.lora_rank": 4, "model.lora_targets": "up"}
    assert words(kind("decoder", one)).split("\n").count("LoRA 4") == 1
    assert words(kind("decoder", {**one, "model.lora_targets": "all"})).split("\n").count("LoRA 4") == 7
    assert "LoRA 4" not in words(kind("experts", one)).split("\n")


WIDE: dict[str, Any] = {
    "model.width": 4096, "model.num_heads": 32, "model.num_layers": 12, "tokenizer.vocab_size": 128_256,
    "model.biases": True, "model.dropout": 0.1, "model.norm_position": "both", "model.scale_embeddings": True,
    "model.lora_rank": 8, "model.lora_targets": "all",
    "model.output_bias": True, "model.logit_scale": 0.5, "model.logit_softcap": 30.0,
}  # fmt: skip


@pytest.mark.parametrize("changes", [{}, WIDE], ids=["default", "wide"])
@pytest.mark.parametrize("network", KINDS)
def test_no_text_lies_on_another_or_outside_the_drawing(network: str, changes: dict[str, Any]):
    check_texts(kind(network, changes))


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_drawn(name: str):
    check_texts(preset(name))


def check_texts(config: Config) -> None:
    """Letters are taken as half as wide as they are high, which is about what they are."""
    root = ElementTree.fromstring(structure_svg(config, 1_234_567))
    boxes = []
    for element in root.iter("{http://www.w3.org/2000/svg}text"):
        text, size = element.text or "", float(element.attrib["font-size"])
        width = 0.5 * size * len(text)
        left = (
            float(element.attrib["x"])
            - {"start": 0.0, "middle": width / 2, "end": width}[element.attrib["text-anchor"]]
        )
        low = float(element.attrib["y"])
        boxes.append((left, left + width, low - 0.7 * size, low, text))
        assert 0 <= left <= float(root.attrib["width"]) - width, text
        assert size <= low <= float(root.attrib["height"]), text
        assert size >= 5, text
    for one, other in itertools.combinations(boxes, 2):
        apart = one[1] <= other[0] or other[1] <= one[0] or one[3] <= other[2] or other[3] <= one[2]
        assert apart, f"{one[4]!r} lies on {other[4]!r}"


def test_a_name_cannot_become_markup():
    assert "</svg><b>: " in words(override(BASE, {"name": "</svg><b>"}))
