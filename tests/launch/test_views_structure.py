"""The structure diagram is of this config, not of Transformers in general."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from typing import Any

import pytest

from configs.convert import override
from configs.schema import Config
from launch.views.structure import structure_svg

BASE = Config()


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


@pytest.mark.parametrize(("position", "norms"), [("pre", 3), ("post", 2), ("both", 5)])
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


def test_a_name_cannot_become_markup():
    assert "</svg><b>: " in words(override(BASE, {"name": "</svg><b>"}))
