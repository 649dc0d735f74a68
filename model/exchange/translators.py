"""What the config.json of a network that translates means: T5's (with FLAN-T5's) and Marian's."""

from __future__ import annotations

from typing import Any

from model.exchange.settings import ACTIVATIONS, Codec, Fields, Settings, activation, always, only, rename
from model.exchange.source import ExchangeError


def _t5(fields: Fields) -> Settings:
    kind = fields["feed_forward_proj"]
    name = kind.removeprefix("gated-")
    if name == "gelu" and name != kind:
        name = "gelu_new"  # What was meant from the beginning.
    if name not in ACTIVATIONS:
        raise ExchangeError(f"The config.json has feed_forward_proj={kind!r}, whose activation is unknown here.")
    # Whether the embedding is the output layer too, and whether its logits are scaled, was one field once.
    scaled = fields["scale_decoder_outputs"]
    scaled = fields["tie_word_embeddings"] is not False if scaled is None else scaled
    return {
        "activation": ACTIVATIONS[name],
        "gated": name != kind and kind.startswith("gated-"),
        "num_layers": fields["num_decoder_layers"] or fields["num_layers"],
        "encoder_layers": fields["num_layers"],
        "num_kv_heads": fields["num_heads"],
        "logit_scale": fields["d_model"] ** -0.5 if scaled else 1.0,
        "tied_embeddings": scaled or "lm_head.weight" not in fields["tensors"],
    }


def _t5_fields(settings: Settings) -> dict[str, Any]:
    act: str = settings["activation"]
    name = {"gelu": "gelu_new", "gelu_exact": "gelu"}.get(act, act)
    if settings["gated"]:
        name = {"gelu_new": "gated-gelu", "gelu": "gated-gelu_exact"}.get(name, f"gated-{name}")
    scaled = settings["logit_scale"] != 1
    return {
        "feed_forward_proj": name,
        "num_layers": settings["encoder_layers"],
        "num_decoder_layers": settings["num_layers"],
        "scale_decoder_outputs": scaled,
        "tie_word_embeddings": settings["tied_embeddings"] and scaled,
    }


T5 = (
    rename(
        vocab_size="vocab_size", d_model="width", num_heads="num_heads", d_kv="head_width", d_ff="feed_forward_width",
        layer_norm_epsilon="norm_epsilon", relative_attention_num_buckets="relative_buckets",
        relative_attention_max_distance="relative_distance",
    ),
    Codec(_t5, _t5_fields),
    always(network="encoder_decoder", position="relative", norm="rms", attention="gqa", attention_scale=1.0),
)  # fmt: skip


def _marian(fields: Fields) -> Settings:
    for name in ("attention_heads", "ffn_dim"):
        if fields[f"encoder_{name}"] != fields[f"decoder_{name}"]:
            raise ExchangeError(
                f"The config.json has encoder_{name}={fields[f'encoder_{name}']} and decoder_{name}="
                f"{fields[f'decoder_{name}']}; here both have to be the same."
            )
    if fields["decoder_vocab_size"] not in (None, fields["vocab_size"]):
        raise ExchangeError(
            f"The config.json has decoder_vocab_size={fields['decoder_vocab_size']} and vocab_size="
            f"{fields['vocab_size']}; here one vocabulary serves both languages."
        )
    return {"num_kv_heads": fields["decoder_attention_heads"], "attention": "gqa"}


MARIAN = (
    rename(
        vocab_size="vocab_size", d_model="width", encoder_layers="encoder_layers", decoder_layers="num_layers",
        decoder_attention_heads="num_heads", decoder_ffn_dim="feed_forward_width", scale_embedding="scale_embeddings",
    ),
    rename(max_position_embeddings="max_length"),
    activation("activation_function", {"gelu": "gelu_new"}),
    Codec(
        _marian,
        lambda settings: {
            "encoder_attention_heads": settings["num_heads"],
            "encoder_ffn_dim": settings["feed_forward_width"],
            "decoder_vocab_size": settings["vocab_size"],
        },
    ),
    only(
        share_encoder_decoder_embeddings=True, tie_word_embeddings=True, static_position_embeddings=True,
        normalize_before=False, normalize_embedding=False, add_final_layer_norm=False,
    ),
    always(
        network="encoder_decoder", position="sinusoidal", norm="layer", norm_position="post", gated=False, biases=True,
        output_bias=True, tied_embeddings=True, norm_epsilon=1e-5,
    ),
)  # fmt: skip
