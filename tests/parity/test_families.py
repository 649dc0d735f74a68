"""Every architecture that we read computes what `transformers` computes: logits, greedy text, gradients, both ways."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

import compare as parity  # noqa: E402
import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from flax.traverse_util import flatten_dict  # noqa: E402

from configs import schema  # noqa: E402
from model import build, exchange  # noqa: E402
from model.exchange import families, stream  # noqa: E402
from model.sharding import make_mesh  # noqa: E402

TOLERANCE = 1e-4


@pytest.mark.parametrize("case", parity.CASES.values(), ids=parity.CASES.keys())
def test_same_logits_same_text_and_back(case, tmp_path):
    found = parity.compare(case, tmp_path)
    assert found.largest_logit > 0.5  # Else the comparison would say nothing.
    assert found.logits <= TOLERANCE
    assert found.exported <= TOLERANCE
    assert found.same_text


class Gradients:
    """The gradients of a network in torch, as if they were the tensors of a checkpoint."""

    def __init__(self, network):
        self.values = {name: weight.grad.numpy() for name, weight in network.named_parameters()}

    def names(self):
        return self.values

    def shape(self, name):
        return self.values[name].shape

    def read(self, name):
        return self.values[name]


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_same_gradients(name, tmp_path):
    network = parity.make(parity.CASES[name])
    network.save_pretrained(tmp_path)
    imported = exchange.read(str(tmp_path))
    tokens_BT, real_BT = parity.texts(network.config)

    logits_BTV = network(
        input_ids=torch.tensor(tokens_BT, dtype=torch.long), attention_mask=torch.tensor(real_BT, dtype=torch.long)
    ).logits
    counted = torch.tensor(real_BT[:, 1:] == 1)
    targets = torch.tensor(tokens_BT[:, 1:], dtype=torch.long)
    torch.nn.functional.cross_entropy(logits_BTV[:, :-1][counted], targets[counted]).backward()
    family = families.FAMILIES[network.config.model_type]
    theirs = stream.load(family, imported.config, Gradients(network), make_mesh(schema.Mesh()))

    def loss(params):
        ours_BTV = build(imported.config).apply({"params": params}, jnp.asarray(tokens_BT), None, jnp.asarray(real_BT))
        log_BTV = jax.nn.log_softmax(ours_BTV)[:, :-1]
        log_BT = jnp.take_along_axis(log_BTV, jnp.asarray(tokens_BT)[:, 1:, None], axis=-1)[..., 0]
        weights_BT = jnp.asarray(real_BT[:, 1:], jnp.float32)
        return -jnp.sum(log_BT * weights_BT) / jnp.sum(weights_BT)

    ours = flatten_dict(jax.jit(jax.grad(loss))(imported.params), sep="/")
    for path, expected in flatten_dict(theirs, sep="/").items():
        expected = np.asarray(expected)
        if path.endswith("key/bias"):
            assert np.abs(ours[path]).max() < 1e-6  # The same for all keys, so softmax does not see it.
            continue
        assert np.abs(expected).max() > 1e-4, path
        np.testing.assert_allclose(np.asarray(ours[path]), expected, atol=1e-5, err_msg=path)


def test_old_names_of_fields_mean_the_same_to_transformers(tmp_path):
    """What we write has the names that `transformers` had before its fifth version."""
    case = parity.CASES["gemma3"]
    network = parity.make(case)
    network.save_pretrained(tmp_path / "new")
    imported = exchange.read(str(tmp_path / "new"))
    exchange.write(tmp_path / "old", imported.config, imported.params, None, "gemma3_text")
    text = (tmp_path / "old" / "config.json").read_text()
    assert "rope_local_base_freq" in text
    assert "rope_parameters" not in text
    again = exchange.read(str(tmp_path / "old"))
    assert again.config.model == imported.config.model


def test_untied_by_transformers_own_hand(tmp_path):
    """A tensor that should be a copy of the embedding and is not: `transformers` unties, we refuse by name."""
    network = parity.make(parity.CASES["llama-tied-biases"])
    network.save_pretrained(tmp_path)
    from safetensors.torch import load_file, save_file

    tensors = load_file(tmp_path / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + 1
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(exchange.ExchangeError, match=r"lm_head\.weight differs from model\.embed_tokens\.weight"):
        exchange.read(str(tmp_path))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_files_are_read_as_transformers_reads_them(dtype, tmp_path):
    network = parity.make(parity.CASES["llama"]).to(getattr(torch, dtype))
    network.save_pretrained(tmp_path)
    imported = exchange.read(str(tmp_path))
    tokens_BT, real_BT = parity.texts(network.config)
    network = type(network).from_pretrained(tmp_path, dtype=torch.float32).eval()
    reference = parity.their_logits(network, tokens_BT, real_BT)
    found = parity.our_logits(imported, tokens_BT, real_BT)
    assert np.abs(found - reference)[real_BT == 1].max() <= TOLERANCE
