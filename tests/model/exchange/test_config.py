"""config.json to settings: old and new names of fields, their defaults, and what cannot be."""

from __future__ import annotations

import pytest
from folders import LLAMA

from configs.derived import layer_windows
from model.exchange import ExchangeError
from model.exchange.config_json import to_config
from model.exchange.families import FAMILIES


def model_of(fields, tensors=()):
    return to_config(fields, tensors).model


def without(fields, *names):
    return {name: value for name, value in fields.items() if name not in names}


LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({"rope_theta": 5e5}, {"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}}),
        ({"rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", **LLAMA3}},
         {"rope_parameters": {"rope_theta": 5e5, "rope_type": "llama3", **LLAMA3}}),
        ({"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}},
         {"rope_parameters": {"rope_theta": 5e5, "rope_type": "linear", "factor": 2.0}}),
        ({"rope_theta": 5e5, "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}},
         {"rope_parameters": {"rope_theta": 5e5, "rope_type": "yarn", "factor": 4.0, "beta_fast": 32, "beta_slow": 1,
                              "original_max_position_embeddings": 16}}),
    ],
)  # fmt: skip
def test_both_generations_of_rope_fields_mean_the_same(old, new):
    base = without(LLAMA, "rope_theta")
    assert model_of(base | old) == model_of(base | new)
    assert model_of(base | old).rope_base == 5e5


def test_gemma3_has_two_bases_under_old_and_new_names():
    base = LLAMA | {"model_type": "gemma3_text", "sliding_window": 9, "num_hidden_layers": 7}
    old = base | {
        "rope_theta": 9e5,
        "rope_local_base_freq": 7e3,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        "sliding_window_pattern": 3,
    }
    new = without(base, "rope_theta") | {
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 9e5},
            "sliding_attention": {"rope_type": "default", "rope_theta": 7e3},
        },
        "layer_types": [("full" if layer % 3 == 2 else "sliding") + "_attention" for layer in range(7)],
    }
    assert model_of(old) == model_of(new)
    assert (model_of(old).rope_base, model_of(old).rope_local_base) == (9e5, 7e3)
    assert layer_windows(to_config(old, ()), 7) == [9, 9, 0, 9, 9, 0, 9]


def test_a_network_with_pictures_is_read_as_its_text_network():
    text = without(LLAMA, "model_type") | {"rope_local_base_freq": 100.0}
    wrapped = {"model_type": "gemma3", "text_config": text, "vision_config": {"hidden_size": 5}}
    assert model_of(wrapped) == model_of(text | {"model_type": "gemma3_text"})


def test_fields_that_are_missing_mean_what_transformers_takes_for_them():
    few = {"vocab_size": 19, "hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3,
           "intermediate_size": 10, "max_position_embeddings": 64}  # fmt: skip
    llama = model_of(few | {"model_type": "llama"})
    assert (llama.num_kv_heads, llama.head_width, llama.rope_base, llama.tied_embeddings) == (3, 4, 1e4, False)
    assert model_of(few | {"model_type": "mixtral"}).rope_base == 1e6
    assert model_of(few | {"model_type": "qwen3", "num_attention_heads": 2}).head_width == 128
    gemma = model_of(few | {"model_type": "gemma2"})
    assert (gemma.tied_embeddings, gemma.head_width, gemma.attention_scale, gemma.window) == (True, 256, 1 / 16, 4096)


def test_qwens_window_needs_its_switch_and_begins_at_a_layer():
    qwen = LLAMA | {"model_type": "qwen2", "num_hidden_layers": 4, "sliding_window": 6, "max_window_layers": 3}
    assert layer_windows(to_config(qwen, ()), 4) == [0, 0, 0, 0]
    assert layer_windows(to_config(qwen | {"use_sliding_window": True}, ()), 4) == [0, 0, 0, 6]


T5 = {"model_type": "t5", "vocab_size": 19, "d_model": 16, "d_kv": 6, "d_ff": 10, "num_layers": 2, "num_heads": 3}


def test_t5_ties_and_scales_by_one_field():
    first = model_of(T5)
    assert (first.tied_embeddings, first.logit_scale, first.activation, first.gated) == (True, 0.25, "relu", False)
    second = model_of(T5 | {"tie_word_embeddings": False, "feed_forward_proj": "gated-gelu"}, ("lm_head.weight",))
    assert (second.tied_embeddings, second.logit_scale, second.activation, second.gated) == (False, 1, "gelu", True)
    # As transformers 5 writes the second: the field is gone, another says whether to scale.
    third = model_of(T5 | {"tie_word_embeddings": True, "scale_decoder_outputs": False}, ("lm_head.weight",))
    assert (third.tied_embeddings, third.logit_scale) == (False, 1)


MOE = LLAMA | {"model_type": "qwen3_moe", "num_experts": 4}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (LLAMA | {"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "truncate": False}}, "truncate=False"),
        (MOE | {"mlp_only_layers": [1]}, r"mlp_only_layers=\[1\].*only known here with mlp_only_layers=\[\]"),
        (MOE | {"decoder_sparse_step": 2}, "decoder_sparse_step=2"),
        (LLAMA | {"model_type": "qwen3", "attention_bias": True}, "attention_bias=True"),
        (LLAMA | {"model_type": "gemma2", "use_bidirectional_attention": True}, "use_bidirectional_attention=True"),
        (LLAMA | {"model_type": "gemma2", "layer_types": ["chunked_attention"]}, "chunked_attention"),
        (T5 | {"feed_forward_proj": "gated-tanh"}, "feed_forward_proj='gated-tanh'"),
        (LLAMA | {"model_type": "marian", "d_model": 8, "encoder_layers": 1, "decoder_layers": 1,
                  "encoder_attention_heads": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 4},
         "encoder_attention_heads=2 and decoder_attention_heads=4"),
        (LLAMA | {"head_dim": 5}, "head width 5 is odd"),
    ],
)  # fmt: skip
def test_a_field_with_an_unknown_value_is_named(fields, message):
    with pytest.raises(ExchangeError, match=message):
        to_config(fields, ())


def test_every_family_of_the_issue_is_known():
    assert set(FAMILIES) == {
        "gpt2", "llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "olmo2", "phi3", "mixtral", "qwen3_moe",
        "t5", "marian",
    }  # fmt: skip
