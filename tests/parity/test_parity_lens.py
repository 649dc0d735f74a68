"""What is recorded is what `transformers` and TransformerLens find in networks with the same weights."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from model import build, exchange  # noqa: E402
from model.lens.gradients import attribution_patching  # noqa: E402
from model.lens.logits import direct_attribution, logit_lens  # noqa: E402
from model.lens.patch import patch_everywhere  # noqa: E402
from model.lens.record import record  # noqa: E402
from tests.parity.compare import CASES, VOCABULARY, make  # noqa: E402

TOKENS_BT, OTHER_BT = np.random.default_rng(0).integers(3, VOCABULARY - 1, (2, 2, 9), np.int32)
AT, IDS_B2 = 5, np.array([[3, 5], [17, 2]], np.int32)
PLACES = {
    "hook_resid_pre": "layers/residual/before", "hook_resid_mid": "layers/residual/middle",
    "hook_resid_post": "layers/residual/after", "attn.hook_pattern": "layers/attention/weights",
    "attn.hook_z": "layers/attention/heads", "mlp.hook_post": "layers/feed_forward/hidden",
    "hook_attn_out": "layers/added/attention", "hook_mlp_out": "layers/added/feed_forward",
}  # fmt: skip


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def pair(request, tmp_path_factory):
    """A network in torch, the folder where it lies, and ours with the same weights."""
    folder = tmp_path_factory.mktemp(request.param)
    network = make(CASES[request.param])
    network.set_attn_implementation("eager")
    network.save_pretrained(folder)
    imported = exchange.read(str(folder))
    return network, folder, build(imported.config), imported.params


@pytest.fixture(scope="module")
def seen(pair):
    return record(*pair[2:], TOKENS_BT, (*PLACES.values(), "final"))


def test_weights_and_hidden_states_are_those_of_transformers(pair, seen):
    with torch.no_grad():
        theirs = pair[0](torch.tensor(TOKENS_BT).long(), output_attentions=True, output_hidden_states=True)
    np.testing.assert_allclose(seen["layers/attention/weights"], np.stack(theirs.attentions), atol=1e-4)
    hidden_LBTD = np.stack(theirs.hidden_states)
    np.testing.assert_allclose(seen["layers/residual/before"], hidden_LBTD[:-1], atol=1e-4)
    np.testing.assert_allclose(seen["final"], hidden_LBTD[-1], atol=1e-4)


def test_a_patched_vector_is_what_a_hook_in_torch_puts_there(pair):
    """In the run of each vector: layer 1, token 3."""
    network, _, module, params = pair
    layers = network.model.layers if hasattr(network, "model") else network.transformer.h
    with torch.no_grad():
        other = network(torch.tensor(OTHER_BT).long(), output_hidden_states=True).hidden_states[2]

        def replace(_, __, output):
            vectors = output[0] if isinstance(output, tuple) else output
            vectors[:, 3] = other[:, 3]
            return output

        handle = layers[1].register_forward_hook(replace)
        theirs_BV = network(torch.tensor(TOKENS_BT).long()).logits[:, AT].numpy()
        handle.remove()
    patched_LSBV = patch_everywhere(module, params, TOKENS_BT, OTHER_BT, AT)
    np.testing.assert_allclose(patched_LSBV[1, 3], theirs_BV, atol=1e-4)


def test_gradients_are_those_of_torch(pair):
    """Attribution patching of the residual stream, with autograd there."""
    network, _, module, params = pair
    place = "layers/residual/before"
    theirs = network(torch.tensor(TOKENS_BT).long(), output_hidden_states=True)
    others = network(torch.tensor(OTHER_BT).long(), output_hidden_states=True)
    slopes = torch.autograd.grad(theirs.logits[:, AT, 3].sum(), theirs.hidden_states[:-1])
    states = zip(others.hidden_states, theirs.hidden_states, slopes, strict=False)
    expected_LBT = [((other - own) * slope).sum(-1).detach().numpy() for other, own, slope in states]
    found = attribution_patching(module, params, TOKENS_BT, OTHER_BT, (place,), lambda logits_BTV: logits_BTV[:, AT, 3])
    np.testing.assert_allclose(found[place], np.stack(expected_LBT), atol=1e-3)


@pytest.fixture(scope="module")
def theirs(pair):
    """The cache of TransformerLens, which wants a tokenizer, and its bridge."""
    bridges = pytest.importorskip("transformer_lens.model_bridge")
    from tokenizers import Tokenizer, models

    words = Tokenizer(models.WordLevel({str(id): id for id in range(VOCABULARY)}, unk_token="0"))
    special = {"bos_token": "1", "eos_token": "2", "pad_token": "0", "unk_token": "0"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, **special).save_pretrained(pair[1])
    bridge = bridges.TransformerBridge.boot_transformers(str(pair[1]), hf_model=pair[0], device="cpu")
    tokens = torch.tensor(TOKENS_BT).long()
    with torch.no_grad():
        raw = {name: value.numpy() for name, value in bridge.run_with_cache(tokens)[1].items()}
        # By default it counts what heads make of the biases of values among the output's bias.
        bridge.enable_compatibility_mode(disable_warnings=True, fold_value_biases=False)
        return raw, bridge, bridge.run_with_cache(tokens)[1]


def test_every_place_is_that_of_transformer_lens(seen, theirs):
    for hook, place in PLACES.items():
        ours = np.asarray(seen[place])
        expected = np.stack([theirs[0][f"blocks.{layer}.{hook}"] for layer in range(len(ours))])
        np.testing.assert_allclose(ours, expected.reshape(ours.shape), atol=1e-4, err_msg=place)


def test_lens_and_attribution_are_those_of_transformer_lens(pair, seen, theirs):
    """Up to what it adds to all logits of a token alike, so differences of two."""
    _, bridge, cache = theirs
    with torch.no_grad():
        stack, labels = cache.get_full_resid_decomposition(
            layer=-1, mlp_input=False, expand_neurons=False, apply_ln=False, return_labels=True
        )
        ids, others = (torch.tensor(IDS_B2[:, which]).long() for which in (0, 1))
        parts = cache.logit_attrs(stack, ids, others, has_batch_dim=True)[:, :, AT].numpy()
        lens = bridge.unembed(cache.accumulated_resid(layer=-1, apply_ln=True)).numpy()
    ours = direct_attribution(*pair[2:], TOKENS_BT, AT, IDS_B2)
    L, N, _ = ours["heads"].shape
    for layer in range(L):
        for head in range(N):
            np.testing.assert_allclose(ours["heads"][layer, head], parts[labels.index(f"L{layer}H{head}")], atol=1e-4)
    ours_LBT = np.asarray(logit_lens(*pair[2:], seen["layers/residual/after"]))[..., 3:5]
    np.testing.assert_allclose(ours_LBT[..., 0] - ours_LBT[..., 1], lens[1:, ..., 3] - lens[1:, ..., 4], atol=1e-4)
