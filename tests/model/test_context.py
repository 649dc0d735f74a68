"""Loss token by token, and how it falls along a text."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from tiny import random_params, random_tokens, tiny

from model import build
from model.lens.context import in_context_score, token_losses

TOKENS_BT = random_tokens(2, 9)


def test_losses_are_those_of_the_logits_of_the_token_before():
    module = build(tiny())
    params = random_params(module)
    logits_BTV = np.asarray(jax.jit(module.apply)({"params": params}, TOKENS_BT), np.float64)
    losses_BT = np.asarray(token_losses(module, params, TOKENS_BT))
    assert losses_BT.shape == (2, 8)
    row_V = logits_BTV[1, 3]
    assert losses_BT[1, 3] == pytest.approx(np.log(np.exp(row_V).sum()) - row_V[TOKENS_BT[1, 4]], abs=1e-4)


def test_the_score_compares_the_token_late_with_the_token_early():
    losses_BT = np.array([[9.0, 4.0, 3.0, 1.0], [9.0, 6.0, 3.0, 2.0]])  # Of tokens 2 to 5.
    assert in_context_score(losses_BT, early=3, late=5) == 1.5 - 5
    with pytest.raises(ValueError, match="3 and 6 are asked for, of texts of 5"):
        in_context_score(losses_BT, early=3, late=6)
