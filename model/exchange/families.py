"""The families of networks that can be read and written: what their config.json means, and where their tensors go.

A family is data: a list of codecs for its config.json, the values that `transformers` takes where that has no such
field, and a table of its tensors. The names of fields are those of `transformers`' configuration classes.
"""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any

from configs.schema import Config
from model.exchange import tables
from model.exchange.rope import phi3_rope, rope
from model.exchange.settings import (
    Codec,
    Fields,
    Settings,
    activation,
    always,
    kv_heads,
    layer_types,
    one_window,
    only,
    rename,
)
from model.exchange.source import ExchangeError
from model.exchange.tables import Table
from model.exchange.translators import MARIAN, T5


@dataclasses.dataclass(frozen=True)
class Family:
    """One kind of network, by the name that it has in the field `model_type` of a config.json."""

    model_type: str
    architecture: str  # the class in `transformers`
    codecs: tuple[Codec, ...]
    defaults: dict[str, Any]  # fields that may be missing
    table: Table
    gated_table: Table | None = None  # where the feed-forward layer has other tensors if it is gated
    renamed: tuple[tuple[str, str], ...] = ()  # other names of tensors in files of this kind: pattern and replacement
    ignored: str = r"(?!)"  # a pattern of tensors that are no parameters
    copies: dict[str, str] = dataclasses.field(default_factory=dict)  # tensors that some files hold twice, if tied
    norm_offset: float = 0.0  # what a norm multiplies by is the tensor plus this

    def tensors(self, config: Config) -> Table:
        """The table of a network."""
        return self.gated_table if self.gated_table and config.model.gated else self.table


# What a field that is missing means, where the family does not say otherwise.
SHARED: dict[str, Any] = {
    "rope_parameters": None, "rope_scaling": None, "rope_theta": 10_000.0, "partial_rotary_factor": None,
    "tie_word_embeddings": True, "attention_bias": False, "mlp_bias": False, "sliding_window": None,
    "layer_types": None, "num_key_value_heads": None, "head_dim": None, "quantization_config": None,
    "original_max_position_embeddings": None,
}  # fmt: skip
SIZES = rename(
    vocab_size="vocab_size", hidden_size="width", num_hidden_layers="num_layers", num_attention_heads="num_heads",
    rms_norm_eps="norm_epsilon", tie_word_embeddings="tied_embeddings",
)  # fmt: skip
LENGTH = rename(max_position_embeddings="max_length")
DENSE = rename(intermediate_size="feed_forward_width")
LLAMA_LIKE = (
    SIZES, LENGTH, kv_heads(), activation("hidden_act", {}),
    always(network="decoder", position="rope", norm="rms", gated=True),
)  # fmt: skip
# Buffers that old files hold: RoPE's waves, and causal masks.
BUFFERS = r".*(rotary_emb\.inv_freq|attn\.masked_bias|attn\.bias)"
TIED = {"lm_head.weight": "model.embed_tokens.weight"}


def _qwen_default(fields: Fields) -> list[bool]:
    return [layer >= fields["max_window_layers"] for layer in range(fields["num_hidden_layers"])]


def _gemma2_default(fields: Fields) -> list[bool]:
    return [layer % 2 == 0 for layer in range(fields["num_hidden_layers"])]


def _gemma3_default(fields: Fields) -> list[bool]:
    period = fields["_sliding_window_pattern"] or fields["sliding_window_pattern"]
    return [(layer + 1) % period != 0 for layer in range(fields["num_hidden_layers"])]


def _softcap(field: str, setting: str) -> Codec:
    return Codec(lambda fields: {setting: fields[field] or 0.0}, lambda settings: {field: settings[setting] or None})


QUERY_SCALAR = Codec(
    lambda fields: {"attention_scale": fields["query_pre_attn_scalar"] ** -0.5},
    lambda settings: {"query_pre_attn_scalar": round(settings["attention_scale"] ** -2)},
)
GEMMA = (
    SIZES, LENGTH, DENSE, kv_heads(), activation("hidden_activation", {}), QUERY_SCALAR,
    _softcap("attn_logit_softcapping", "attention_softcap"), _softcap("final_logit_softcapping", "logit_softcap"),
    only(attention_bias=False, use_bidirectional_attention=False),
    always(
        network="decoder", position="rope", norm="rms", gated=True, norm_position="both", scale_embeddings=True,
    ),
)  # fmt: skip
GEMMA_DEFAULTS = {
    "hidden_activation": "gelu_pytorch_tanh", "rms_norm_eps": 1e-6, "use_bidirectional_attention": False,
    "attn_logit_softcapping": None, "final_logit_softcapping": None, "query_pre_attn_scalar": 256, "head_dim": 256,
    "sliding_window": 4096,
}  # fmt: skip


def _llama_biases(fields: Fields) -> Settings:
    if fields["attention_bias"] != fields["mlp_bias"]:
        raise ExchangeError(
            f"The config.json has attention_bias={fields['attention_bias']} and mlp_bias={fields['mlp_bias']}; "
            f"only both or neither are known here."
        )
    return {"biases": bool(fields["attention_bias"])}


LLAMA_BIASES = Codec(
    _llama_biases, lambda settings: {"attention_bias": settings["biases"], "mlp_bias": settings["biases"]}
)
EXPERTS = (
    rename(num_experts_per_tok="experts_per_token", router_aux_loss_coef="router_balance"),
    always(router_z_loss=0.0),
)


def _num_experts(fields: Fields) -> Settings:
    """Files of different ages call it differently; old Mixtral files and new Qwen ones have `num_local_experts`."""
    return {"num_experts": fields["num_local_experts"] or fields["num_experts"]}


def _gpt2(fields: Fields) -> Settings:
    return {
        "num_kv_heads": fields["n_head"],
        "feed_forward_width": fields["n_inner"] or 4 * fields["n_embd"],
        "attention_scale": 0.0 if fields["scale_attn_weights"] else 1.0,
    }


def _gpt2_fields(settings: Settings) -> dict[str, Any]:
    scaled = math.isclose(settings["attention_scale"], settings["head_width"] ** -0.5)
    return {"n_inner": settings["feed_forward_width"], "scale_attn_weights": scaled}


GPT2 = (
    rename(
        vocab_size="vocab_size", n_positions="max_length", n_embd="width", n_layer="num_layers", n_head="num_heads",
        layer_norm_epsilon="norm_epsilon", tie_word_embeddings="tied_embeddings",
    ),
    activation("activation_function", {"gelu": "gelu_new"}),
    Codec(_gpt2, _gpt2_fields),
    only(scale_attn_by_inverse_layer_idx=False, add_cross_attention=False),
    always(network="decoder", position="learned", norm="layer", gated=False, biases=True, attention="gqa"),
)  # fmt: skip

QWEN_DEFAULTS = {"use_sliding_window": False, "max_window_layers": 28, "tie_word_embeddings": False}
FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (
        Family(
            "gpt2", "GPT2LMHeadModel", GPT2,
            {"activation_function": "gelu_new", "layer_norm_epsilon": 1e-5, "n_inner": None, "scale_attn_weights": True,
             "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False, "tie_word_embeddings": True},
            tables.GPT2, renamed=((r"(h|wte|wpe|ln_f)\.(.*)", r"transformer.\1.\2"),), ignored=BUFFERS,
            copies={"lm_head.weight": "transformer.wte.weight"},
        ),
        Family(
            "llama", "LlamaForCausalLM", (*LLAMA_LIKE, DENSE, rope(), LLAMA_BIASES),
            {"hidden_act": "silu", "rms_norm_eps": 1e-6, "tie_word_embeddings": False},
            tables.LLAMA, ignored=BUFFERS, copies=TIED,
        ),
        Family(
            "mistral", "MistralForCausalLM", (*LLAMA_LIKE, DENSE, rope(), one_window()),
            {"hidden_act": "silu", "rms_norm_eps": 1e-6, "tie_word_embeddings": False},
            tables.LLAMA, ignored=BUFFERS, copies=TIED,
        ),
        Family(
            "qwen2", "Qwen2ForCausalLM",
            (*LLAMA_LIKE, DENSE, rope(), layer_types(_qwen_default, switch="use_sliding_window"),
             always(qkv_biases=True)),
            {"hidden_act": "silu", "rms_norm_eps": 1e-6} | QWEN_DEFAULTS,
            tables.LLAMA, ignored=BUFFERS, copies=TIED,
        ),
        Family(
            "qwen3", "Qwen3ForCausalLM",
            (*LLAMA_LIKE, DENSE, rope(), layer_types(_qwen_default, switch="use_sliding_window"),
             only(attention_bias=False), always(qk_norm="head")),
            {"hidden_act": "silu", "rms_norm_eps": 1e-6, "head_dim": 128} | QWEN_DEFAULTS,
            tables.QWEN3, ignored=BUFFERS, copies=TIED,
        ),
        Family(
            "gemma2", "Gemma2ForCausalLM", (*GEMMA, rope(), layer_types(_gemma2_default)),
            GEMMA_DEFAULTS, tables.GEMMA, ignored=BUFFERS, copies=TIED, norm_offset=1.0,
        ),
        Family(
            "gemma3_text", "Gemma3ForCausalLM",
            (*GEMMA, rope(local_base=10_000.0), layer_types(_gemma3_default), always(qk_norm="head")),
            GEMMA_DEFAULTS | {"rope_theta": 1_000_000.0, "_sliding_window_pattern": None, "sliding_window_pattern": 6,
                              "rope_local_base_freq": 10_000.0, "vocab_size": 262_208, "hidden_size": 2304,
                              "num_hidden_layers": 26, "num_attention_heads": 8, "num_key_value_heads": 4,
                              "intermediate_size": 9216, "max_position_embeddings": 131_072},
            tables.GEMMA, ignored=rf"{BUFFERS}|.*(vision_tower|multi_modal_projector)\..*", copies=TIED,
            renamed=((r"language_model\.(model|lm_head)\.(.*)", r"\1.\2"),
                     (r"model\.language_model\.(.*)", r"model.\1")),
            norm_offset=1.0,
        ),
        Family(
            "olmo2", "Olmo2ForCausalLM",
            (*LLAMA_LIKE, DENSE, rope(), only(attention_bias=False), always(qk_norm="all", norm_position="output")),
            {"hidden_act": "silu", "rms_norm_eps": 1e-5, "tie_word_embeddings": False},
            tables.OLMO2, ignored=BUFFERS, copies=TIED,
        ),
        Family(
            "phi3", "Phi3ForCausalLM", (*LLAMA_LIKE, DENSE, phi3_rope(), one_window()),
            {"hidden_act": "silu", "rms_norm_eps": 1e-5, "tie_word_embeddings": False},
            tables.PHI3, ignored=BUFFERS, copies=TIED,
        ),
        Family(
            "mixtral", "MixtralForCausalLM",
            (*LLAMA_LIKE, DENSE, rope(), one_window(), *EXPERTS, always(router_renormalize=True),
             Codec(_num_experts, lambda settings: {"num_local_experts": settings["num_experts"]})),
            {"hidden_act": "silu", "rms_norm_eps": 1e-5, "tie_word_embeddings": False, "rope_theta": 1_000_000.0,
             "num_local_experts": None, "num_experts": 8, "num_experts_per_tok": 2, "router_aux_loss_coef": 0.001},
            tables.MIXTRAL, ignored=BUFFERS, copies=TIED,
        ),
        Family(
            "qwen3_moe", "Qwen3MoeForCausalLM",
            (*LLAMA_LIKE, rope(), one_window("use_sliding_window"), *EXPERTS, always(qk_norm="head"),
             rename(moe_intermediate_size="feed_forward_width", norm_topk_prob="router_renormalize"),
             Codec(_num_experts, lambda settings: {"num_experts": settings["num_experts"]}),
             only(attention_bias=False, decoder_sparse_step=1, mlp_only_layers=[])),
            {"hidden_act": "silu", "rms_norm_eps": 1e-6, "num_local_experts": None, "num_experts": 128,
             "num_experts_per_tok": 8, "norm_topk_prob": False, "moe_intermediate_size": 768, "decoder_sparse_step": 1,
             "mlp_only_layers": [], "router_aux_loss_coef": 0.001} | QWEN_DEFAULTS,
            tables.QWEN3_MOE, ignored=BUFFERS, copies=TIED,
        ),
        Family(
            "t5", "T5ForConditionalGeneration", T5,
            {"layer_norm_epsilon": 1e-6, "relative_attention_num_buckets": 32, "relative_attention_max_distance": 128,
             "feed_forward_proj": "relu", "num_decoder_layers": None, "scale_decoder_outputs": None},
            tables.T5, gated_table=tables.GATED_T5,
            # Some files hold a table of biases that their layer does not use.
            ignored=r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight",
            copies={"lm_head.weight": "shared.weight", "encoder.embed_tokens.weight": "shared.weight",
                    "decoder.embed_tokens.weight": "shared.weight"},
        ),
        Family(
            "marian", "MarianMTModel", MARIAN,
            {"activation_function": "gelu", "scale_embedding": False, "decoder_vocab_size": None,
             "share_encoder_decoder_embeddings": True, "static_position_embeddings": True, "normalize_before": False,
             "normalize_embedding": False, "add_final_layer_norm": False, "max_position_embeddings": 1024},
            tables.MARIAN, ignored=r"model\.(encoder|decoder)\.embed_positions\.weight",
            copies={name: "model.shared.weight" for name in
                    ("lm_head.weight", "model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight")},
        ),
    )
}  # fmt: skip


def canonical_name(family: Family, name: str) -> str:
    """A tensor's name as the family's table has it; some files leave out, or add, what stands before it."""
    for pattern, replacement in family.renamed:
        if re.fullmatch(pattern, name):
            return re.sub(pattern, replacement, name)
    return name
