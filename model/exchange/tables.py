"""Which tensor of a foreign checkpoint holds which parameter of ours.

A line of a table is the tensor's name, its axes, and for each parameter in it, its path and its axes. Letters are
sizes: V vocabulary, P rows of the position table, D width, N heads, K key/value heads, H head width, F feed-forward
width, E experts, R ranges of distances, M = N H and J = K H where a vector is for all heads together. `NH,D` is a
matrix whose first axis holds all heads' numbers, which we keep as `DNH`; `NH+KH+KH,D` holds three parameters, one
after the other along its first axis. `{layer}` and `{expert}` stand for a number; our parameters have all layers (and
experts) stacked on their first axes.

One table serves both directions, so what is written is read again.
"""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One tensor (of each layer) of a foreign checkpoint."""

    name: str
    axes: str
    parts: tuple[tuple[str, str], ...]  # path and axes of each parameter in it, in their order along the axis with `+`


Table = tuple[Tensor, ...]


def tensor(name: str, axes: str, *parts: str) -> Tensor:
    """A line of a table; a part is written `path:AXES`."""
    return Tensor(name, axes, tuple((part.split(":")[0], part.split(":")[1]) for part in parts))


def linear(name: str, axes: str, part: str) -> Table:
    """A linear map as torch keeps it: `weight` [outputs, inputs], and `bias` [outputs] where there is one."""
    path, ours = part.split(":")
    outputs, bias = axes.split(",")[0], "".join(letter for letter in ours if letter in axes.split(",")[0])
    return (
        tensor(f"{name}.weight", axes, f"{path}/kernel:{ours}"),
        tensor(f"{name}.bias", outputs, f"{path}/bias:{bias}"),
    )


def norm(name: str, path: str, axes: str = "D") -> Table:
    """A norm's scale and, for a layer norm, its bias."""
    return tensor(f"{name}.weight", axes, f"{path}/scale:{axes}"), tensor(f"{name}.bias", axes, f"{path}/bias:{axes}")


GPT2: Table = (
    tensor("transformer.wte.weight", "V,D", "embedding/embedding:VD"),
    tensor("transformer.wpe.weight", "P,D", "position/embedding:PD"),
    *norm("transformer.h.{layer}.ln_1", "layers/attention_norm"),
    # Unlike all others, its linear maps are kept as [inputs, outputs].
    tensor(
        "transformer.h.{layer}.attn.c_attn.weight", "D,NH+KH+KH",
        "layers/attention/query/kernel:DNH", "layers/attention/key/kernel:DKH", "layers/attention/value/kernel:DKH",
    ),
    tensor(
        "transformer.h.{layer}.attn.c_attn.bias", "NH+KH+KH",
        "layers/attention/query/bias:NH", "layers/attention/key/bias:KH", "layers/attention/value/bias:KH",
    ),
    tensor("transformer.h.{layer}.attn.c_proj.weight", "NH,D", "layers/attention/output/kernel:NHD"),
    tensor("transformer.h.{layer}.attn.c_proj.bias", "D", "layers/attention/output/bias:D"),
    *norm("transformer.h.{layer}.ln_2", "layers/feed_forward_norm"),
    tensor("transformer.h.{layer}.mlp.c_fc.weight", "D,F", "layers/feed_forward/up/kernel:DF"),
    tensor("transformer.h.{layer}.mlp.c_fc.bias", "F", "layers/feed_forward/up/bias:F"),
    tensor("transformer.h.{layer}.mlp.c_proj.weight", "F,D", "layers/feed_forward/down/kernel:FD"),
    tensor("transformer.h.{layer}.mlp.c_proj.bias", "D", "layers/feed_forward/down/bias:D"),
    *norm("transformer.ln_f", "final_norm"),
    tensor("lm_head.weight", "V,D", "output/kernel:DV"),
)  # fmt: skip

ENDS: Table = (
    tensor("model.embed_tokens.weight", "V,D", "embedding/embedding:VD"),
    *norm("model.norm", "final_norm"),
    tensor("lm_head.weight", "V,D", "output/kernel:DV"),
)
ATTENTION_OUTPUT: Table = linear("model.layers.{layer}.self_attn.o_proj", "D,NH", "layers/attention/output:NHD")
ATTENTION: Table = (
    *linear("model.layers.{layer}.self_attn.q_proj", "NH,D", "layers/attention/query:DNH"),
    *linear("model.layers.{layer}.self_attn.k_proj", "KH,D", "layers/attention/key:DKH"),
    *linear("model.layers.{layer}.self_attn.v_proj", "KH,D", "layers/attention/value:DKH"),
    *ATTENTION_OUTPUT,
)
FEED_FORWARD: Table = (
    *linear("model.layers.{layer}.mlp.gate_proj", "F,D", "layers/feed_forward/gate:DF"),
    *linear("model.layers.{layer}.mlp.up_proj", "F,D", "layers/feed_forward/up:DF"),
    *linear("model.layers.{layer}.mlp.down_proj", "D,F", "layers/feed_forward/down:FD"),
)
PRE_NORMS: Table = (
    *norm("model.layers.{layer}.input_layernorm", "layers/attention_norm"),
    *norm("model.layers.{layer}.post_attention_layernorm", "layers/feed_forward_norm"),
)
HEAD_NORMS: Table = (
    tensor("model.layers.{layer}.self_attn.q_norm.weight", "H", "layers/attention/query_norm/scale:H"),
    tensor("model.layers.{layer}.self_attn.k_norm.weight", "H", "layers/attention/key_norm/scale:H"),
)

LLAMA: Table = (*ENDS, *PRE_NORMS, *ATTENTION, *FEED_FORWARD)
QWEN3: Table = (*LLAMA, *HEAD_NORMS)
GEMMA: Table = (
    *ENDS,
    *ATTENTION,
    *HEAD_NORMS,
    *FEED_FORWARD,
    *norm("model.layers.{layer}.input_layernorm", "layers/attention_norm"),
    *norm("model.layers.{layer}.post_attention_layernorm", "layers/attention_post_norm"),
    *norm("model.layers.{layer}.pre_feedforward_layernorm", "layers/feed_forward_norm"),
    *norm("model.layers.{layer}.post_feedforward_layernorm", "layers/feed_forward_post_norm"),
)
OLMO2: Table = (
    *ENDS,
    *ATTENTION,
    tensor("model.layers.{layer}.self_attn.q_norm.weight", "M", "layers/attention/query_norm/scale:M"),
    tensor("model.layers.{layer}.self_attn.k_norm.weight", "J", "layers/attention/key_norm/scale:J"),
    *FEED_FORWARD,
    *norm("model.layers.{layer}.post_attention_layernorm", "layers/attention_post_norm"),
    *norm("model.layers.{layer}.post_feedforward_layernorm", "layers/feed_forward_post_norm"),
)
PHI3: Table = (
    *ENDS,
    *PRE_NORMS,
    tensor(
        "model.layers.{layer}.self_attn.qkv_proj.weight", "NH+KH+KH,D",
        "layers/attention/query/kernel:DNH", "layers/attention/key/kernel:DKH", "layers/attention/value/kernel:DKH",
    ),
    *ATTENTION_OUTPUT,
    tensor(
        "model.layers.{layer}.mlp.gate_up_proj.weight", "F+F,D",
        "layers/feed_forward/gate/kernel:DF", "layers/feed_forward/up/kernel:DF",
    ),
    *linear("model.layers.{layer}.mlp.down_proj", "D,F", "layers/feed_forward/down:FD"),
)  # fmt: skip


def experts(block: str, gate: str, up: str, down: str) -> Table:
    """A router and the feed-forward layers that it chooses among."""
    return (
        tensor(f"{block}.gate.weight", "E,D", "layers/feed_forward/router/kernel:DE"),
        tensor(f"{block}.experts.{{expert}}.{gate}.weight", "F,D", "layers/feed_forward/experts/gate/kernel:DF"),
        tensor(f"{block}.experts.{{expert}}.{up}.weight", "F,D", "layers/feed_forward/experts/up/kernel:DF"),
        tensor(f"{block}.experts.{{expert}}.{down}.weight", "D,F", "layers/feed_forward/experts/down/kernel:FD"),
    )


MIXTRAL: Table = (*ENDS, *PRE_NORMS, *ATTENTION, *experts("model.layers.{layer}.block_sparse_moe", "w1", "w3", "w2"))
QWEN3_MOE: Table = (
    *ENDS, *PRE_NORMS, *ATTENTION, *HEAD_NORMS,
    *experts("model.layers.{layer}.mlp", "gate_proj", "up_proj", "down_proj"),
)  # fmt: skip


def _t5_attention(name: str, path: str) -> Table:
    return (
        *linear(f"{name}.q", "NH,D", f"{path}/query:DNH"),
        *linear(f"{name}.k", "KH,D", f"{path}/key:DKH"),
        *linear(f"{name}.v", "KH,D", f"{path}/value:DKH"),
        *linear(f"{name}.o", "D,NH", f"{path}/output:NHD"),
    )


def _t5_stack(name: str, at: str, feed_forward: int) -> Table:
    block, dense = f"{name}.block.{{layer}}.layer", f"{name}.block.{{layer}}.layer.{feed_forward}.DenseReluDense"
    # Its first layer's table of biases is that of all layers.
    first = f"{name}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    return (
        tensor(first, "R,N", f"{at}relative/embedding:RN"),
        *_t5_attention(f"{block}.0.SelfAttention", f"{at}layers/attention"),
        *norm(f"{block}.0.layer_norm", f"{at}layers/attention_norm"),
        *linear(f"{dense}.wi", "F,D", f"{at}layers/feed_forward/up:DF"),
        *linear(f"{dense}.wo", "D,F", f"{at}layers/feed_forward/down:FD"),
        *norm(f"{block}.{feed_forward}.layer_norm", f"{at}layers/feed_forward_norm"),
        *norm(f"{name}.final_layer_norm", f"{at}final_norm"),
    )


T5: Table = (
    tensor("shared.weight", "V,D", "embedding/embedding:VD"),
    *_t5_stack("encoder", "encoder/", 1),
    *_t5_stack("decoder", "", 2),
    *_t5_attention("decoder.block.{layer}.layer.1.EncDecAttention", "layers/cross_attention"),
    *norm("decoder.block.{layer}.layer.1.layer_norm", "layers/cross_attention_norm"),
    tensor("lm_head.weight", "V,D", "output/kernel:DV"),
)


def _gated_t5() -> Table:
    """Version 1.1, FLAN-T5: the first map is there twice."""
    lines: list[Tensor] = []
    for line in T5:
        if ".wi." not in line.name:
            lines.append(line)
            continue
        ((path, axes),) = line.parts
        lines.append(Tensor(line.name.replace(".wi.", ".wi_0."), line.axes, ((path.replace("/up/", "/gate/"), axes),)))
        lines.append(dataclasses.replace(line, name=line.name.replace(".wi.", ".wi_1.")))
    return tuple(lines)


GATED_T5: Table = _gated_t5()


def _marian_attention(name: str, path: str) -> Table:
    return (
        *linear(f"{name}.q_proj", "NH,D", f"{path}/query:DNH"),
        *linear(f"{name}.k_proj", "KH,D", f"{path}/key:DKH"),
        *linear(f"{name}.v_proj", "KH,D", f"{path}/value:DKH"),
        *linear(f"{name}.out_proj", "D,NH", f"{path}/output:NHD"),
    )


def _marian_stack(name: str, at: str) -> Table:
    layer = f"model.{name}.layers.{{layer}}"
    return (
        *_marian_attention(f"{layer}.self_attn", f"{at}layers/attention"),
        *norm(f"{layer}.self_attn_layer_norm", f"{at}layers/attention_norm"),
        *linear(f"{layer}.fc1", "F,D", f"{at}layers/feed_forward/up:DF"),
        *linear(f"{layer}.fc2", "D,F", f"{at}layers/feed_forward/down:FD"),
        *norm(f"{layer}.final_layer_norm", f"{at}layers/feed_forward_norm"),
    )


MARIAN: Table = (
    tensor("model.shared.weight", "V,D", "embedding/embedding:VD"),
    *_marian_stack("encoder", "encoder/"),
    *_marian_stack("decoder", ""),
    *_marian_attention("model.decoder.layers.{layer}.encoder_attn", "layers/cross_attention"),
    *norm("model.decoder.layers.{layer}.encoder_attn_layer_norm", "layers/cross_attention_norm"),
    tensor("final_logits_bias", "1,V", "output_bias/bias:V"),
)
