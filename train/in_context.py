"""What a network finds out about a row's own function from examples of it, and what could be found out.

Shapes: B rows, P examples in a row, D numbers in an input, I inputs and O outputs
that there are, T length, W words of the task, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np

from train.checkpoint import Restored
from train.data.in_context import NOISE, Lookup, Regression
from train.data.sources import open_corpus
from train.data.tasks import Examples
from train.tasks import answers


@dataclass(frozen=True)
class Errors:
    """Mean error on held-out rows after 0, 1, 2, ... examples."""

    network: list[float]
    others: dict[str, list[float]]  # By name, those of who knows how rows are made.


def regression_errors(restored: Restored) -> Errors:
    """On `--data.source=regression`: mean squared error of the mean of the outputs that the network holds possible.

    Beside it those of least squares, and of ridge regression with the penalty that follows from how slopes and noise
    are drawn (Bishop 2006, section 3.3.1): but for rounding and the bounds of outputs none can be better.
    """
    task = cast(Regression, _examples(restored).task)
    inputs_ID, outputs_O = task.inputs, task.outputs
    id_W = np.array([restored.tokenizer.encode(f" {word}")[0] for word in task.words])
    word_of = np.zeros(id_W.max() + 1, int)
    word_of[id_W] = np.arange(len(id_W))
    said, inputs, outputs = [], [], []
    for logits_BTV, batch in answers(restored):
        input_BP, output_BP = np.divmod(word_of[_asked(batch["targets"], task)] - len(inputs_ID), len(outputs_O))
        # Of all words those that can stand here: the input, which has just been read, and any output.
        id_BPO = id_W[len(inputs_ID) :].reshape(len(inputs_ID), -1)[input_BP]
        logits_BPO = np.take_along_axis(_asked(logits_BTV, task), id_BPO, axis=-1)
        share_BPO = np.exp(logits_BPO - logits_BPO.max(axis=-1, keepdims=True))
        said.append(share_BPO @ outputs_O / share_BPO.sum(axis=-1))
        inputs.append(inputs_ID[input_BP])
        outputs.append(outputs_O[output_BP])
    inputs_BPD, outputs_BP = np.concatenate(inputs), np.concatenate(outputs)
    penalty = task.dimensions * NOISE**2
    told = {
        "least squares": fitted(inputs_BPD, outputs_BP),
        "ridge regression": fitted(inputs_BPD, outputs_BP, penalty),
    }
    return Errors(
        ((np.concatenate(said) - outputs_BP) ** 2).mean(axis=0).tolist(),
        {name: ((told_BP - outputs_BP) ** 2).mean(axis=0).tolist() for name, told_BP in told.items()},
    )


def fitted(inputs_BPD: np.ndarray, outputs_BP: np.ndarray, penalty: float = 0.0) -> np.ndarray:
    """What the plane through all examples before each one says of its output, [B,P].

    Its slopes w_D make the sum of squared errors plus penalty·|w|² least; of several that do, the shortest.
    """
    told_BP = np.zeros_like(outputs_BP)
    for place in range(1, outputs_BP.shape[1]):
        x_BpD, y_Bp = inputs_BPD[:, :place], outputs_BP[:, :place]
        squares_BDD = np.swapaxes(x_BpD, 1, 2) @ x_BpD + penalty * np.eye(x_BpD.shape[-1])
        inverse_BDD = np.linalg.pinv(squares_BDD, hermitian=True)
        told_BP[:, place] = np.einsum("BD,BDE,BpE,Bp->B", inputs_BPD[:, place], inverse_BDD, x_BpD, y_Bp, optimize=True)
    return told_BP


def lookup_errors(restored: Restored) -> Errors:
    """On `--data.source=lookup`: the share of values for which the network holds another one likelier.

    Beside it that of who remembers everything: he is wrong if the key is new, and his guess is not the value.
    """
    task = cast(Lookup, _examples(restored).task)
    wrong = [_asked(logits_BTV.argmax(axis=-1) != batch["targets"], task) for logits_BTV, batch in answers(restored)]
    return Errors(np.concatenate(wrong).mean(axis=0).tolist(), {"all remembered": remembered(task).tolist()})


def remembered(task: Lookup) -> np.ndarray:
    """The share of values that cannot be known, nor are guessed, after 0, 1, 2, ... examples, [P]."""
    return (1 - 1 / task.keys) ** np.arange(task.pairs) * (1 - 1 / task.values)


def _examples(restored: Restored) -> Examples:
    return cast(Examples, open_corpus(restored.config.data).held_out)


def _asked(x_BT: np.ndarray, task: Regression | Lookup) -> np.ndarray:
    """Of what is there for each word, [B,T] or [B,T,V], what is there for the second of each pair, [B,P] or [B,P,V]."""
    return x_BT[:, 1 : 2 * task.pairs : 2]
