from __future__ import annotations

import dataclasses
import functools
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.convert import override
from configs.schema import Config, Optimizer
from train.optimizer import decay_mask, evaluation_params, make_optimizer, parameter, schedule

NAMES = ("adamw", "adafactor", "lion", "muon", "sgd", "schedule_free")
L, D, N, H, F, V = 2, 40, 2, 20, 48, 50
SHAPES = {
    "embedding": {"embedding": (V, D)},
    "final_norm": {"scale": (D,)},
    "layers": {
        "attention": {"query": {"kernel": (L, D, N, H)}, "output": {"kernel": (L, N, H, D)}, "sinks": (L, N)},
        "feed_forward": {"up": {"kernel": (L, D, F)}},
        "attention_norm": {"scale": (L, D)},
    },
}
PLAIN = {
    "optimizer.schedule": "constant", "optimizer.warmup_steps": 0, "optimizer.clip_norm": 0.0,
    "optimizer.weight_decay": 0.0, "train.steps": 10,
}  # fmt: skip


def config(**settings) -> Config:
    return override(Config(), {**PLAIN, **{f"optimizer.{name}": value for name, value in settings.items()}})


def tree(seed: int, scale: float = 1.0, dtype=jnp.float32):
    rng = np.random.default_rng(seed)
    is_shape = lambda x: isinstance(x, tuple)  # noqa: E731
    return jax.tree.map(lambda shape: jnp.asarray(rng.normal(size=shape) * scale, dtype), SHAPES, is_leaf=is_shape)


@functools.cache
def compiled(config: Config, structure):
    """`init` and `update` of an optimizer; compiled once for all the tests that ask for the same."""
    optimizer = make_optimizer(config, jax.tree.unflatten(structure.tree, structure.leaves))
    return jax.jit(optimizer.init), jax.jit(optimizer.update)


class Structure(NamedTuple):
    tree: Any
    leaves: tuple[jax.ShapeDtypeStruct, ...]


def updates(config: Config, params, *gradients):
    """The update of each of several steps, at parameters that stay."""
    leaves, structure = jax.tree.flatten(params)
    shapes = tuple(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in leaves)
    init, step = compiled(config, Structure(structure, shapes))
    state, found = init(params), []
    for gradient in gradients:
        update, state = step(gradient, state, params)
        found.append(update)
    return found


def close(ours, theirs, **tolerance):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), ours, theirs)


def test_first_adamw_update_is_the_closed_form():
    params, gradient = tree(0), tree(1)
    update = updates(config(learning_rate=0.01, weight_decay=0.3, epsilon=1e-3), params, gradient)[0]
    expected = jax.tree.map(
        lambda g, p, decays: -0.01 * (g / (np.abs(g) + 1e-3) + 0.3 * decays * p), gradient, params, decay_mask(params)
    )
    close(update, expected, rtol=1e-4, atol=1e-7)


def test_clipping_scales_all_gradients_by_one_factor():
    params, gradient = tree(0), tree(1)
    norm = np.sqrt(sum(np.sum(np.square(x)) for x in jax.tree.leaves(gradient)))
    settings = {"name": "sgd", "beta1": 0.0, "learning_rate": 1.0}
    for clip, factor in ((0.5 * norm, 0.5), (2.0 * norm, 1.0)):
        update = updates(config(**settings, clip_norm=float(clip)), params, gradient)[0]
        close(update, jax.tree.map(lambda g, factor=factor: -factor * g, gradient), rtol=1e-5)


@pytest.mark.parametrize("mask", ["matrices", "all"])
def test_weight_decay_spares_norms_and_sinks(mask):
    params = tree(0)
    settings = {"name": "sgd", "learning_rate": 0.1, "weight_decay": 0.5, "decay_mask": mask}
    update = updates(config(**settings), params, jax.tree.map(jnp.zeros_like, params))[0]
    names = jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key, params)
    decays = jax.tree.map(lambda name: mask == "all" or name in ("kernel", "embedding"), names)
    close(update, jax.tree.map(lambda x, decays: -0.05 * decays * x, params, decays), rtol=1e-6)


def newton_schulz(matrix: np.ndarray) -> np.ndarray:
    """Five steps of Muon's quintic iteration (Jordan 2024) in float64."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrix / np.linalg.norm(matrix)
    for _ in range(5):
        s = x @ x.T
        x = a * x + (b * s + c * s @ s) @ x
    return x


def test_muon_orthogonalizes_each_layers_matrix_by_itself():
    params, gradients = tree(0), [tree(1), tree(2)]
    last = updates(config(name="muon", learning_rate=0.1, beta1=0.8), params, *gradients)[-1]
    # Momentum after two steps, bias-corrected, with Nesterov's look ahead.
    first, second = gradients
    ahead = jax.tree.map(
        lambda g1, g2: 0.8 * (0.2 * (0.8 * np.float64(g1) + g2)) / (1 - 0.8**3) + 0.2 * np.float64(g2) / (1 - 0.8**2),
        first, second,
    )["layers"]  # fmt: skip
    shapes = {("attention", "query"): (D, N * H), ("attention", "output"): (N * H, D),
              ("feed_forward", "up"): (D, F)}  # fmt: skip
    for (part, name), (inputs, outputs) in shapes.items():
        ours_L = np.asarray(last["layers"][part][name]["kernel"]).reshape(L, inputs, outputs)
        theirs_L = ahead[part][name]["kernel"].reshape(L, inputs, outputs)
        for layer in range(L):
            expected = -0.1 * 0.2 * np.sqrt(max(inputs, outputs)) * newton_schulz(theirs_L[layer])
            np.testing.assert_allclose(ours_L[layer], expected, atol=2e-4)
            # Orthogonalized: all singular values are near one, which those of a random matrix are not.
            singular = np.linalg.svd(ours_L[layer] / (0.02 * np.sqrt(max(inputs, outputs))), compute_uv=False)
            assert singular.min() > 0.3
            assert singular.max() < 1.4


def test_muon_leaves_all_but_hidden_matrices_to_adam():
    params, gradient = tree(0), tree(1)
    settings = {"learning_rate": 0.1, "beta1": 0.8, "beta2": 0.9}
    muon, adam = (updates(config(name=name, **settings), params, gradient)[0] for name in ("muon", "adamw"))
    for update in (muon, adam):
        attention = update["layers"]["attention"]
        del attention["query"], attention["output"], update["layers"]["feed_forward"]
    close(muon, adam, rtol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_no_layer_feels_the_gradient_of_another(name):
    params, gradient = tree(0), tree(1)
    other = jax.tree.map(lambda x: x, gradient)
    other["layers"] = jax.tree.map(lambda x: x.at[0].mul(-7.0), gradient["layers"])
    ours, theirs = (updates(config(name=name), params, g, g)[-1]["layers"] for g in (gradient, other))
    close(*(jax.tree.map(lambda x: x[1:], update) for update in (ours, theirs)), rtol=1e-5, atol=1e-9)
    changed = jax.tree.map(lambda a, b: not np.allclose(a[0], b[0], atol=1e-6), ours, theirs)
    assert all(jax.tree.leaves(changed))


def test_adafactor_keeps_one_row_and_one_column_for_each_layers_matrix():
    params = tree(0)
    state = make_optimizer(config(name="adafactor", beta1=0.0), params).init(params)
    paths = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape
             for path, leaf in jax.tree_util.tree_leaves_with_path(state)}  # fmt: skip
    rows = {path: shape for path, shape in paths.items() if "v_row/layers/attention/query/kernel" in path}
    columns = {path: shape for path, shape in paths.items() if "v_col/layers/feed_forward/up/kernel" in path}
    assert list(rows.values()) == [(L, D)]
    assert list(columns.values()) == [(L, F)]


@pytest.mark.parametrize("name", NAMES)
def test_every_optimizer_finds_the_minimum_of_a_bowl(name):
    target, params = ({part: tree(seed, 0.3)[part] for part in ("embedding", "layers")} for seed in (3, 4))
    params["layers"], target["layers"] = ({"feed_forward": x["layers"]["feed_forward"]} for x in (params, target))
    rate = {"sgd": 0.05, "lion": 0.03}.get(name, 0.1)
    settings = override(config(name=name, learning_rate=rate, schedule="linear"), {"train.steps": 60})
    optimizer = make_optimizer(settings, params)

    def loss(params):
        return sum(jnp.sum(jnp.square(a - b)) for a, b in zip(*map(jax.tree.leaves, (params, target)), strict=True))

    @jax.jit
    def descend(params):
        def body(_, carry):
            params, state = carry
            update, state = optimizer.update(jax.grad(loss)(params), state, params)
            return jax.tree.map(jnp.add, params, update), state

        return jax.lax.fori_loop(0, 60, body, (params, optimizer.init(params)))

    end, state = descend(params)
    averaged = evaluation_params(settings, SimpleNamespace(params=end, opt_state=state, ema=None))
    assert loss(averaged) < 0.1 * loss(params)


CHANGES = {
    "learning_rate": 0.5, "schedule": "linear", "warmup_steps": 5, "beta1": 0.3, "beta2": 0.5, "epsilon": 0.1,
    "weight_decay": 0.5, "decay_mask": "all", "clip_norm": 0.1, "end_fraction": 0.7, "decay_fraction": 0.9,
}  # fmt: skip


@pytest.mark.parametrize(
    "field", [f.name for f in dataclasses.fields(Optimizer) if f.name not in ("name", "ema_decay", "state_dtype")]
)
def test_every_setting_changes_some_update(field):
    base = {"weight_decay": 0.1, "schedule": "wsd", "clip_norm": 1.0}
    params, *gradients = ({name: tree(seed)[name] for name in ("embedding", "final_norm")} for seed in range(4))
    short = {"train.steps": 3}
    before, after = (
        updates(override(config(**{**base, **change}), short), params, *gradients)
        for change in ({}, {field: CHANGES[field]})
    )
    assert not jax.tree.all(jax.tree.map(np.allclose, before, after))


def test_schedules_have_the_stated_shapes():
    def rates(shape: str, *steps: int, **settings) -> list[float]:
        made = {"schedule": shape, "warmup_steps": 10, "learning_rate": 2.0, "end_fraction": 0.1, **settings}
        function = schedule(override(config(**made), {"train.steps": 110}))
        return [float(function(step)) for step in steps]

    for shape in ("cosine", "linear", "wsd", "inverse_sqrt", "constant"):
        assert rates(shape, 0, 4, 9) == pytest.approx([0.2, 1.0, 2.0]), shape
    assert rates("cosine", 59, 109) == pytest.approx([1.1, 0.2])
    assert rates("cosine", 34) == pytest.approx([0.2 + 1.8 * (1 + np.cos(np.pi / 4)) / 2])
    assert rates("linear", 59, 84, 109) == pytest.approx([1.1, 0.65, 0.2])
    assert rates("wsd", 60, 87, 98, 109, decay_fraction=0.2) == pytest.approx([2.0, 2.0, 1.1, 0.2])
    assert rates("inverse_sqrt", 39, 89) == pytest.approx([1.0, 2 / 3])
    assert rates("constant", 109) == [2.0]
    assert rates("cosine", 59, 109, name="schedule_free") == [2.0, 2.0]
    assert rates("cosine", 0, 109, warmup_steps=0) == pytest.approx([2.0, 0.2], rel=1e-3)


def test_schedule_free_evaluates_with_the_average_of_its_fast_iterates():
    params = {"output": {"kernel": tree(0)["embedding"]["embedding"]}}
    settings = config(name="schedule_free", learning_rate=0.1, beta1=0.9, beta2=0.95, warmup_steps=4)
    optimizer, rate = make_optimizer(settings, params), schedule(settings)
    state, y = optimizer.init(params), params
    # Algorithm 1 of Defazio et al. 2024 with Adam's second moment, in float64.
    z = x = np.float64(params["output"]["kernel"])
    v, weights = 0.0, 0.0
    for step in range(6):
        gradient = jax.tree.map(lambda y: 2 * y + 1, y)
        update, state = optimizer.update(gradient, state, y)
        g = 2 * (0.1 * z + 0.9 * x) + 1
        v = 0.95 * v + 0.05 * g**2
        lr = float(rate(step))
        z = z - lr * g / (np.sqrt(v / (1 - 0.95 ** (step + 1))) + 1e-8)
        weights += lr**2
        x = x + lr**2 / weights * (z - x)
        y = jax.tree.map(jnp.add, y, update)
    np.testing.assert_allclose(y["output"]["kernel"], 0.1 * z + 0.9 * x, atol=1e-5)
    average = evaluation_params(settings, SimpleNamespace(params=y, opt_state=state, ema=None))
    np.testing.assert_allclose(average["output"]["kernel"], x, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_moments_of_bfloat16_parameters_are_float32(name):
    params = tree(0, dtype=jnp.bfloat16)
    settings = config(name=name)
    state = jax.eval_shape(make_optimizer(settings, params).init, params)
    assert {leaf.dtype for leaf in jax.tree.leaves(state)} <= {np.dtype(np.float32), np.dtype(np.int32)}
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(updates(settings, params, params)[0]))


def state_bytes(name, state_dtype):
    settings = config(name=name, state_dtype=state_dtype)
    state = jax.eval_shape(make_optimizer(settings, tree(0)).init, tree(0))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state) if leaf.dtype != jnp.int32)


@pytest.mark.parametrize("name", NAMES)
def test_a_bfloat16_state_takes_half_the_memory(name):
    parameters = sum(4 * leaf.size for leaf in jax.tree.leaves(tree(0)))
    exempt = parameters if name == "schedule_free" else 0  # Its second copy of the parameters.
    full, half = state_bytes(name, "float32"), state_bytes(name, "bfloat16")
    assert full >= parameters + exempt
    assert 2 * (half - exempt) == pytest.approx(full - exempt, abs=200)  # Muon has constants, Schedule-Free scalars.


@pytest.mark.parametrize("name", NAMES)
def test_a_bfloat16_state_is_the_rounded_state_of_float32_arithmetic(name):
    params, gradients = tree(0), tree(1)
    found = {}
    for state_dtype in ("float32", "bfloat16"):
        optimizer = make_optimizer(config(name=name, state_dtype=state_dtype), params)
        # Not compiled as a whole: two programs may fuse, and so round, differently.
        found[state_dtype] = optimizer.update(gradients, optimizer.init(params), params)
    jax.tree.map(np.testing.assert_array_equal, found["bfloat16"][0], found["float32"][0])  # The update of step 0.
    jax.tree.map(
        lambda half, full: np.testing.assert_array_equal(half, full.astype(half.dtype)),
        found["bfloat16"][1], found["float32"][1],
    )  # fmt: skip


def test_an_unknown_parameter_name_is_an_error():
    path = (jax.tree_util.DictKey("layers"), jax.tree_util.DictKey("weigth"))
    with pytest.raises(ValueError, match="layers/weigth: 'weigth' is no known kind"):
        parameter(path, 2)
