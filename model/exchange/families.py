"""The families of networks that can be read and written: what their config.json means, and where their tensors go.

A family is data: a list of codecs for its config.json, the values that `transformers` takes where that has no such
field, and a table of its tensors. The names of fields are those of `transformers`' configuration classes.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import re
from collections.abc import Collection
from typing import Any

from configs.convert import check_network, max_length, override
from configs.schema import Config, ConfigError
from model.exchange import tables
from model.exchange.rope import phi3_rope, rope
from model.exchange.settings import (
    ACTIVATIONS,
    Codec,
    Fields,
    Settings,
    activation,
    always,
    canonical,
    kv_heads,
    layer_types,
    one_window,
    only,
    rename,
)
from model.exchange.source import ExchangeError
from model.exchange.tables import Table


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


# ----------------------------------------------------------------------------------------- T5


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

# ----------------------------------------------------------------------------------------- Marian


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
    LENGTH,
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

# ----------------------------------------------------------------------------------------- GPT-2


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
WRAPPED = {"gemma3": "gemma3_text"}  # Kinds that see pictures too: their text network is another kind's.


def find_family(config: Fields) -> tuple[Family, dict[str, Any]]:
    """The family of a config.json, and the fields of its text network.

    Raises:
      ExchangeError: a kind of network that is not known, or numbers that are quantized.
    """
    kind = config.get("model_type")
    if kind in WRAPPED:
        config = {**config.get("text_config", {}), "model_type": WRAPPED[kind]}
    family = FAMILIES.get(str(config.get("model_type")))
    if family is None:
        raise ExchangeError(
            f"The config.json has model_type={kind!r}, which is not known here. Known are: "
            f"{', '.join(sorted((*FAMILIES, *WRAPPED)))}."
        )
    if config.get("quantization_config"):
        raise ExchangeError(
            "The config.json has a quantization_config; only weights in float32, float16 and bfloat16 are read "
            "(and quantized ones from GGUF files)."
        )
    return family, dict(config)


def to_config(config: Fields, tensors: Collection[str], name: str = "imported") -> Config:
    """The config of ours that computes what the network of a config.json computes.

    Args:
      config: the fields of a config.json.
      tensors: the names of all tensors, which tell for T5 whether its embeddings are tied.
      name: of the config.

    Raises:
      ExchangeError: a kind of network, or a value of a field, that is not known here; names it.
    """
    family, given = find_family(config)
    return _read(family, {**given, "tensors": tensors}, name)


def _read(family: Family, given: Fields, name: str) -> Config:
    fields = collections.ChainMap(dict(given), family.defaults, SHARED)
    settings: Settings = {}
    try:
        for codec in family.codecs:
            settings |= codec.read(fields)
    except KeyError as error:
        raise ExchangeError(f"The config.json of a {family.model_type} network has no field {error}.") from error
    vocab_size = settings.pop("vocab_size")
    config = override(Config(), {f"model.{setting}": value for setting, value in settings.items()})
    length = min(config.data.length, config.model.max_length or config.data.length)
    flags = {"name": name, "tokenizer.source": "checkpoint", "tokenizer.vocab_size": vocab_size, "data.length": length}
    try:
        return check_network(override(config, flags))
    except ConfigError as error:
        raise ExchangeError(f"The config.json describes a network that cannot be built here: {error}") from error


def to_fields(config: Config, model_type: str | None = None) -> tuple[Family, dict[str, Any]]:
    """The family that can hold the network of `config` (or the one that is asked for), and its config.json.

    Raises:
      ExchangeError: no family computes the same; names the settings in which the nearest differs.
    """
    if model_type is not None and model_type not in FAMILIES:
        raise ExchangeError(f"There is no family {model_type}; known are {', '.join(FAMILIES)}.")
    if config.model.lora_rank:
        raise ExchangeError(
            f"--model.lora_rank={config.model.lora_rank}: what is trained beside the weights has to be merged into "
            f"them before they are written."
        )
    tried: list[tuple[int, str]] = []
    for family in [FAMILIES[model_type]] if model_type else FAMILIES.values():
        fields = _fields(family, config)
        wrong = _differences(family, fields, config)
        if not wrong:
            return family, fields
        tried.append((len(wrong), f"{family.model_type}, which has {'; '.join(wrong)}"))
    raise ExchangeError(
        f"No kind of network that transformers knows computes what this one does. The nearest is {min(tried)[1]}."
    )


def _fields(family: Family, config: Config) -> dict[str, Any]:
    settings = canonical(config) | {"max_length": max_length(config), "router_balance": config.model.router_balance}
    fields: dict[str, Any] = {"architectures": [family.architecture], "model_type": family.model_type}
    for codec in family.codecs:
        try:
            fields |= codec.write(settings)
        except KeyError:  # A setting that this network does not have: `_differences` will name it.
            continue
    fields["torch_dtype"] = config.model.param_dtype
    fields["is_encoder_decoder"] = config.model.network == "encoder_decoder"
    return fields


def _differences(family: Family, fields: dict[str, Any], config: Config) -> list[str]:
    """The settings in which the network of `fields` is another than that of `config`."""
    tensors = () if config.model.tied_embeddings else ("lm_head.weight",)
    try:
        theirs = canonical(_read(family, {**fields, "tensors": tensors}, config.name))
    except (ExchangeError, TypeError) as error:
        return [str(error)]
    ours = canonical(config)
    return [
        f"{name}={theirs.get(name)!r} where this one has {ours.get(name)!r}"
        for name in sorted(ours.keys() | theirs.keys())
        if not _same(ours.get(name), theirs.get(name))
    ]


def _same(one: Any, other: Any) -> bool:
    """Equal, or numbers that differ by rounding alone."""
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-9)
    return one == other


def canonical_name(family: Family, name: str) -> str:
    """A tensor's name as the family's table has it; some files leave out, or add, what stands before it."""
    for pattern, replacement in family.renamed:
        if re.fullmatch(pattern, name):
            return re.sub(pattern, replacement, name)
    return name
