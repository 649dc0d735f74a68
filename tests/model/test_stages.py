"""The pipeline compiles to what it is meant to be; that it computes the same is shown in tests/train/test_meshes.py."""

from __future__ import annotations

import re

import jax
import numpy as np
import pytest
from tiny import random_params, random_tokens, tiny, with_other_last_bits

from configs import schema
from configs.convert import override
from model import build, sharding
from model.lens.places import INTERMEDIATES

STAGES, ROWS, T = 4, 8, 8
LORA = {"lora_rank": 2, "lora_targets": "all"}
CONFIG = override(
    tiny(num_layers=8, **LORA), {"train.batch_size": ROWS, "train.microbatches": STAGES, "train.rounds": 2}
)


@pytest.fixture(scope="module")
def network():
    module = build(CONFIG)
    params, tokens_BT = random_params(module), random_tokens(ROWS, T)
    mesh = sharding.make_mesh(schema.Mesh(data=1, stage=STAGES), jax.devices()[:STAGES])
    there = jax.device_put(params, sharding.param_shardings(module, mesh))
    return module, params, there, tokens_BT, mesh


def test_logits_and_messages(network):
    module, params, there, tokens_BT, mesh = network
    apply = jax.jit(module.apply)
    expected = np.asarray(apply({"params": params}, tokens_BT))
    # Eight layers make much of the last bit at a few tokens, and other processors round otherwise.
    by_rounding_BT1 = np.zeros((ROWS, T, 1))
    for seed in range(2):
        change = abs(apply({"params": with_other_last_bits(params, seed)}, tokens_BT) - expected)
        by_rounding_BT1 = np.maximum(by_rounding_BT1, change.max(-1, keepdims=True))
    allowed_BT1 = 1e-5 * abs(expected).max() + by_rounding_BT1
    assert np.mean(allowed_BT1 < 2e-5 * abs(expected).max()) > 0.9
    rows = jax.device_put(tokens_BT, sharding.batch_sharding(mesh))
    with jax.set_mesh(mesh):
        compiled = apply.lower({"params": there}, rows).compile()
        assert np.all(abs(np.asarray(compiled({"params": there}, rows)) - expected) < allowed_BT1)


def test_between_stages_goes_a_part_and_nothing_else(network):
    """Not parameters, and not what all stages need of a part, in either direction: that would be once per visit."""
    module, _, there, tokens_BT, mesh = network
    rows = jax.device_put(tokens_BT, sharding.batch_sharding(mesh))
    loss = lambda params: module.apply({"params": params}, rows).sum()  # noqa: E731
    with jax.set_mesh(mesh):
        text = jax.jit(jax.grad(loss)).lower(there).compile().as_text()
    bodies = set(re.findall(r"body=(%[\w.\-]+)", text))
    sent, inside = set(), False
    for line in text.splitlines():
        if line.endswith("{"):
            inside = line.split(" ", 1)[0] in bodies
        if inside and (found := re.search(r"= (.*?) (all-\w+|reduce-scatter|collective-permute)(-start)?\(", line)):
            sent.add((found[2], found[1].split("{")[0]))
    assert sent == {("collective-permute", f"f32[1,{ROWS // STAGES},{T},16]")}


@pytest.mark.parametrize("remat", ["full", "qkv"])
def test_for_the_backward_pass_each_visit_keeps_activations_and_no_weights(network, remat):
    """Of the weights, which are chosen by the turn, each visit would keep its own."""
    module, params, _, tokens_BT, mesh = network
    module = build(override(module.config, {"model.remat": remat}))
    with jax.set_mesh(mesh):
        program = jax.make_jaxpr(jax.grad(lambda params: module.apply({"params": params}, tokens_BT).sum()))(params)
    visits, parts, turns = 2 * STAGES + STAGES - 1, (STAGES, ROWS // STAGES, T), 8 // STAGES // 2
    kept = {
        out.aval.shape[1:]  # type: ignore[union-attr]
        for scan in program.eqns
        if scan.primitive.name == "scan" and scan.params["length"] == visits
        for out in scan.outvars
        if out.aval.shape[:1] == (visits,)  # type: ignore[union-attr]
    }
    activations = {shape for shape in kept if len(shape) > 2}
    assert (turns, *parts, 16) in activations  # The input of each layer.
    assert {shape[: 1 + len(parts)] for shape in activations} == {(turns, *parts)}
    assert len(activations) == (1 if remat == "full" else 3)  # Queries; keys and values, of one shape.


def test_each_stage_holds_its_layers_only(network):
    _, _, there, _, _ = network
    kernel = there["layers"]["attention"]["query"]["kernel"]
    assert kernel.shape[0] == 8
    assert {shard.data.shape[0] for shard in kernel.addressable_shards} == {8 // STAGES}


def test_a_batch_without_parts_and_recording_go_through_the_layers_in_order(network):
    module, params, there, tokens_BT, mesh = network
    one = tokens_BT[:1]
    expected, recorded = module.apply({"params": params}, one, mutable=[INTERMEDIATES])
    with jax.set_mesh(mesh):
        logits, found = jax.jit(lambda p, x: module.apply({"params": p}, x, mutable=[INTERMEDIATES]))(there, one)
        plain = jax.jit(module.apply)({"params": there}, one)
    np.testing.assert_allclose(logits, expected, atol=1e-5 * abs(expected).max())
    np.testing.assert_allclose(plain, expected, atol=1e-5 * abs(expected).max())
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), found, recorded)
