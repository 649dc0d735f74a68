"""PyTorch's LSTM, an independent implementation, computes what ours does: values and gradients."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import random_params, random_tokens, tiny

from model import build, lstm

torch = pytest.importorskip("torch")


def torch_weights(cell):
    """Our parameters (of one layer) as PyTorch names, stacks and transposes them; of its two biases one is 0."""
    of = lambda kind, name: np.concatenate([np.asarray(cell[f"{kind}{gate}"][name]).T for gate in "ifgo"])  # noqa: E731
    bias = of("h", "bias")
    return {
        "weight_ih": of("i", "kernel"),
        "weight_hh": of("h", "kernel"),
        "bias_ih": np.zeros_like(bias),
        "bias_hh": bias,
    }


def torch_lstm(layers, inputs, width):
    """PyTorch's module with our parameters: a list of {suffix: cell}, suffix `_reverse` for the other direction."""
    module = torch.nn.LSTM(inputs, width, len(layers), batch_first=True, bidirectional=len(layers[0]) == 2)
    state = {
        f"{name}_l{number}{suffix}": torch.tensor(value)
        for number, cells in enumerate(layers)
        for suffix, cell in cells.items()
        for name, value in torch_weights(cell).items()
    }
    module.load_state_dict(state)
    return module


def test_a_language_model_has_the_logits_and_the_gradient_of_pytorch():
    module = build(tiny(network="lstm", num_layers=3))
    params, tokens_BT = random_params(module), random_tokens(4, 11)
    cells = [{"": jax.tree.map(lambda x: x[layer], params["layers"]["lstm"])} for layer in range(3)]  # noqa: B023
    theirs = torch_lstm(cells, 16, 16)
    table_VD = torch.tensor(np.asarray(params["embedding"]["embedding"]), requires_grad=True)
    logits_BTV = theirs(table_VD[torch.tensor(tokens_BT, dtype=torch.long)])[0] @ table_VD.T
    torch.sin(logits_BTV).sum().backward()

    def total(params):
        logits_BTV = module.apply({"params": params}, tokens_BT)
        return jnp.sum(jnp.sin(logits_BTV)), logits_BTV

    gradient, found_BTV = jax.jit(jax.grad(total, has_aux=True))(params)
    np.testing.assert_allclose(found_BTV, logits_BTV.detach().numpy(), atol=1e-4)
    np.testing.assert_allclose(gradient["embedding"]["embedding"], table_VD.grad.numpy(), atol=2e-4)
    for layer in range(3):
        ours = torch_weights(jax.tree.map(lambda x: x[layer], gradient["layers"]["lstm"]))  # noqa: B023
        for name in ("weight_ih", "weight_hh", "bias_hh"):
            np.testing.assert_allclose(ours[name], getattr(theirs, f"{name}_l{layer}").grad.numpy(), atol=2e-4)


def test_both_directions_over_padded_rows_are_those_of_pytorch_on_packed_sequences():
    lengths, random = [7, 3, 5], np.random.default_rng(0)
    x_BSD = random.normal(size=(3, 7, 6)).astype(np.float32)
    real_BS = np.arange(7)[None] < np.array(lengths)[:, None]
    begins = {
        "": np.arange(7)[None] == np.zeros((3, 1)),
        "_reverse": np.arange(7)[None] == np.array(lengths)[:, None] - 1,
    }
    ours, cells = {}, {}
    for suffix, begins_BS in begins.items():
        recurrence = lstm.Recurrence(tiny(network="lstm"), 5, reverse=bool(suffix))
        cells[suffix] = recurrence.init(jax.random.key(len(suffix)), x_BSD, begins_BS, real_BS)["params"]
        ours[suffix] = recurrence.apply({"params": cells[suffix]}, x_BSD, begins_BS, real_BS)
    batch = torch.nn.utils.rnn.pack_padded_sequence(
        torch.tensor(x_BSD), lengths, batch_first=True, enforce_sorted=False
    )
    out, (last_hidden, last_cell) = torch_lstm([cells], 6, 5)(batch)
    theirs_BSH, _ = torch.nn.utils.rnn.pad_packed_sequence(out, batch_first=True)
    found_BSH = np.concatenate([ours[""][1], ours["_reverse"][1]], axis=-1)
    np.testing.assert_allclose(found_BSH[real_BS], theirs_BSH.detach().numpy()[real_BS], atol=1e-5)
    # Padding leaves a state as it is, so it is the last one's at the end of the row, on either side.
    for suffix, end in (("", -1), ("_reverse", 0)):
        for found, expected in zip(ours[suffix], (last_cell, last_hidden), strict=True):
            np.testing.assert_allclose(found[:, end], expected[int(bool(suffix))].detach().numpy(), atol=1e-5)
