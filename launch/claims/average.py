"""Attention is a weighted average: what a head reads are its weights times the values, on a trained network."""

from __future__ import annotations

from typing import TYPE_CHECKING

from launch.claims.claim import Chart, Outcome, Setup, at_most

if TYPE_CHECKING:
    import numpy as np

TEXT = 'def area(width, height):\n    """The area of a rectangle."""\n    return width * height\n'
ROUNDING = 1e-5  # Of what is compared; numbers of float32 have 7 digits.


def run(setup: Setup) -> Outcome:
    """Multiply recorded weights with values by hand, in float64, and compare with what the network went on with."""
    import jax.numpy as jnp
    import numpy as np

    from configs.derived import num_kv_heads
    from configs.schema import ConfigError
    from model import build
    from model.lens.record import record
    from train.checkpoint import restore_params

    restored = restore_params(setup.checkpoint)
    model = restored.config.model
    if model.attention not in ("mha", "gqa", "mqa") or model.norm_position not in ("pre", "both") or model.biases:
        raise ConfigError(
            f"--checkpoint={setup.checkpoint} is computed by hand here with --model.attention=mha, gqa or mqa, "
            f"norms before what they feed and no biases: give another."
        )
    tokens_BT = jnp.array([restored.tokenizer.prompt(TEXT)], jnp.int32)
    places = [f"layers/{name}" for name in (
        "attention/weights", "attention/heads", "residual/before", "added/attention",
    )]  # fmt: skip
    found = record(build(restored.config), restored.params, tokens_BT, places)
    weights_LNTS, heads_LTNH, before_LTD, added_LTD = (np.asarray(found[place][:, 0], np.float64) for place in places)
    layers = restored.params["layers"]
    errors, outputs = [], []
    for layer in range(model.num_layers):
        kernel = {
            name: np.asarray(layers["attention"][name]["kernel"][layer], np.float64) for name in ("value", "output")
        }
        scale_D = np.asarray(layers["attention_norm"]["scale"][layer], np.float64)
        x_TD = _normalized(model.norm, before_LTD[layer], model.norm_epsilon) * scale_D
        value_SKH = np.einsum("SD,DKH->SKH", x_TD, kernel["value"])
        value_SNH = np.repeat(value_SKH, model.num_heads // num_kv_heads(restored.config), axis=1)
        average_TNH = np.einsum("NTS,SNH->TNH", weights_LNTS[layer], value_SNH)
        errors.append(np.abs(average_TNH - heads_LTNH[layer]).max() / np.abs(heads_LTNH[layer]).max())
        output_TD = np.einsum("TNH,NHD->TD", average_TNH, kernel["output"])
        outputs.append(np.abs(output_TD - added_LTD[layer]).max() / np.abs(added_LTD[layer]).max())
    rows_off = np.abs(weights_LNTS.sum(-1) - 1).max()
    ahead = weights_LNTS[..., *np.triu_indices(weights_LNTS.shape[-1], 1)].max()
    checks = [
        at_most("weights times values, against what heads read: largest difference, relative", max(errors), ROUNDING),
        at_most("the same through the output map, against what the layer adds", max(outputs), ROUNDING),
        at_most("a row of weights, less 1", rows_off, ROUNDING),
        at_most("the largest weight on a token that is still to come", ahead, 0.0),
    ]
    last_S, tokens = weights_LNTS[-1, :, -1].mean(0), [restored.tokenizer.token_text(int(id)) for id in tokens_BT[0]]
    rows = [
        {"x": f"{place}: {token!r}", "y": float(w)} for place, (token, w) in enumerate(zip(tokens, last_S, strict=True))
    ]
    figures = {"text": TEXT, "tokens": len(tokens), "errors": errors, "outputs": outputs}
    chart = Chart("What the last token reads, mean over the heads of the last layer", "token", "weight", rows, "bar")
    return Outcome(checks, figures, [chart])


def _normalized(kind: str, x_TD: np.ndarray, epsilon: float) -> np.ndarray:
    x_TD = x_TD - x_TD.mean(-1, keepdims=True) if kind == "layer" else x_TD
    return x_TD / ((x_TD**2).mean(-1, keepdims=True) + epsilon) ** 0.5
