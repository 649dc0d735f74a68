"""A PyTorch encoder-decoder that others trained (PyPI: annalog, MIT, rewrites molecules) through a key map."""

from __future__ import annotations

import importlib.metadata
import pickle
import sys
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from configs.schema import Mesh  # noqa: E402
from model import Source, build  # noqa: E402
from model.exchange.mapped import read_mapped  # noqa: E402
from model.lens.record import record  # noqa: E402
from model.sharding import make_mesh  # noqa: E402

try:
    FILES = importlib.metadata.distribution("annalog").files or ()
except importlib.metadata.PackageNotFoundError:
    pytest.skip("annalog is not installed: pip install --no-deps annalog==1.0.6", allow_module_level=True)

START, END, PAD, MOST = 2, 3, 1, 102
MOLECULES = ["CC(=O)Oc1ccccc1C(=O)O", "CN1C=NC2=C1C(=O)N(C(=O)N2C)C", "C[C@H](N)C(=O)O", "Clc1ccc(Br)cc1"]


def located(name: str) -> Path:
    return Path(str(next(file for file in FILES if file.name == name).locate()))


def state_dict() -> dict[str, np.ndarray]:
    weights = torch.load(located("Lev_extended.pt"), weights_only=True, map_location="cpu")
    return {name: tensor.numpy() for name, tensor in weights.items()}


def with_one_vocabulary(state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Source and target have their own vectors for the same words: here the source's are words of their own, behind.

    They are never written: their logit is that of a bias of -1e9.
    """
    state = dict(state)
    words = [state.pop(f"{part}.tok_embedding.weight") for part in ("decoder", "encoder")]
    state["embedding.weight"] = np.concatenate(words)
    state["decoder.fc_out.weight"] = np.pad(state["decoder.fc_out.weight"], ((0, len(words[1])), (0, 0)))
    state["decoder.fc_out.bias"] = np.pad(state["decoder.fc_out.bias"], (0, len(words[1])), constant_values=-1e9)
    return state


@pytest.fixture(scope="module")
def ours():
    """Our network, its parameters, and the number of the first source word."""
    key_map = Path(__file__).with_name("annalog.json")
    state = state_dict()
    mesh = make_mesh(Mesh(data=1), jax.devices()[:1])
    config, params = read_mapped(with_one_vocabulary(state), key_map, mesh)
    return build(config), params, len(state["decoder.fc_out.bias"])


@pytest.fixture(scope="module")
def theirs():
    """Their network. Importing the package would need a library of chemistry, so its folder stands in for it."""
    package = types.ModuleType("annalog_files")
    package.__path__ = [str(located("seq2seq_attention.py").parent)]
    sys.modules["annalog_files"] = package
    code = importlib.import_module("annalog_files.seq2seq_attention")
    parts = [
        kind(59, 256, 3, 8, 512, 0.1, torch.device("cpu"), MOST)
        for kind in (code.Encoder, code.Decoder)
    ]  # fmt: skip
    network = code.Seq2Seq(*parts, PAD, PAD, torch.device("cpu"))
    network.load_state_dict(torch.load(located("Lev_extended.pt"), weights_only=True, map_location="cpu"))
    return network.eval()


class PlainUnpickler(pickle.Unpickler):
    """Reads lists, dictionaries, strings and numbers, and runs nothing."""

    def find_class(self, module: str, name: str):
        raise pickle.UnpicklingError(f"{module}.{name} is no plain value")


def words(molecule: str) -> list[int]:
    """The words of a molecule, as their tokenizer and vocabulary have them, between start and end."""
    cut = importlib.import_module("annalog_files.vocabulary").SMILESTokenizer().tokenize(molecule)
    with located("stereo_experiment_vocab_ttf.pkl").open("rb") as file:
        vocabulary = PlainUnpickler(file).load()["stoi"]
    return [START, *(vocabulary[word] for word in cut), END]


def greedy(logits_of, most: int = MOST) -> list[int]:
    written = [START]
    while written[-1] != END and len(written) < most:
        written.append(int(np.argmax(logits_of(written))))
    return written


def test_logits_and_cross_attention_are_the_same(ours, theirs):
    module, params, offset = ours
    rows = [words(molecule) for molecule in MOLECULES]
    length = max(map(len, rows))
    source_BS = np.array([row + [PAD] * (length - len(row)) for row in rows])
    target_BT = np.array([[START, *row[1:8]] for row in rows[::-1]])
    with torch.no_grad():
        expected, attention = theirs(torch.tensor(source_BS), torch.tensor(target_BT))
    real_BS = (source_BS != PAD).astype(np.int32)
    source = Source(
        jnp.asarray(source_BS + offset, jnp.int32),
        jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32), source_BS.shape),
        jnp.asarray(real_BS),
    )
    tokens_BT = jnp.asarray(target_BT, jnp.int32)
    logits = np.asarray(module.apply({"params": params}, tokens_BT, source=source))
    assert np.abs(logits[..., :offset] - expected.numpy()).max() < 1e-4
    assert logits[..., offset:].max() < -1e8
    place = "layers/cross_attention/weights"
    recorded = np.asarray(record(module, params, tokens_BT, [place], source)[place])
    assert np.abs(recorded[-1] - attention.numpy()).max() < 1e-4


def test_greedy_output_is_the_same(ours, theirs):
    from model.generate import Sampling, generate

    module, params, offset = ours
    rows = [words(molecule) for molecule in MOLECULES]
    expected = []
    for row in rows:
        source = torch.tensor([row])
        with torch.no_grad():
            memory = theirs.encoder(source, theirs.make_src_mask(source))

            def last(written, source=source, memory=memory):
                target = torch.tensor([written])
                masks = theirs.make_trg_mask(target), theirs.make_src_mask(source)
                return theirs.decoder(target, memory, *masks)[0][0, -1].numpy()

            expected.append(greedy(last))
    assert all(len(written) > 5 and written[-1] == END for written in expected), "the test must see whole molecules"
    chunks = generate(
        module, params, [[START]] * len(rows), Sampling(temperature=0), max_tokens=MOST - 1, seeds=range(len(rows)),
        ends=[END], sources=[[word + offset for word in row] for row in rows],
    )  # fmt: skip
    tokens_BT = np.concatenate([chunk.tokens_BC for chunk in chunks], axis=1)
    for written, row in zip(expected, tokens_BT.tolist(), strict=True):
        assert row[: len(written) - 1] == written[1:]
