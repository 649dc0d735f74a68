"""How places are told: RoPE and its scalings, sinusoids, ALiBi, against their papers' formulas."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import random_params, random_tokens, tiny

from configs.convert import override
from model import build, positions


def rope_config(**settings):
    return override(tiny(head_width=8), {f"model.{name}": value for name, value in settings.items()})


def test_rope_makes_a_dot_product_depend_on_distance_only():
    config = rope_config()
    random = np.random.default_rng(0)
    query_BTNH, key_BTNH = (jnp.asarray(random.normal(size=(1, 1, 1, 8)), jnp.float32) for _ in range(2))

    def score(query_at, key_at):
        turned = [
            positions.rotate(x, positions.rope_rotation(config, jnp.array([[at]])))
            for x, at in ((query_BTNH, query_at), (key_BTNH, key_at))
        ]
        return float(jnp.sum(turned[0] * turned[1]))

    assert score(7, 3) == pytest.approx(score(104, 100), abs=1e-4)
    assert score(5, 5) == pytest.approx(float(jnp.sum(query_BTNH * key_BTNH)), abs=1e-5)
    assert abs(score(7, 3) - score(7, 4)) > 0.01


def test_rope_turns_pairs_as_complex_numbers():
    random = np.random.default_rng(0)
    x_BTNH = random.normal(size=(2, 5, 3, 8))
    positions_BT = random.integers(0, 50, (2, 5))
    frequency = 10_000.0 ** (-np.arange(4) / 4)
    turned = (x_BTNH[..., :4] + 1j * x_BTNH[..., 4:]) * np.exp(1j * positions_BT[:, :, None, None] * frequency)
    rotation = positions.rope_rotation(rope_config(), jnp.asarray(positions_BT, jnp.int32))
    found = positions.rotate(jnp.asarray(x_BTNH, jnp.float32), rotation)
    np.testing.assert_allclose(found, np.concatenate([turned.real, turned.imag], -1), atol=1e-5)


def test_rope_base_sets_the_wavelengths():
    frequency = positions.rope_frequencies(rope_config(rope_base=500.0))
    np.testing.assert_allclose(frequency, [1, 500**-0.25, 500**-0.5, 500**-0.75])


def test_linear_scaling_divides_every_position():
    config = rope_config(rope_scaling="linear", rope_scaling_factor=4.0)
    stretched = positions.rope_rotation(config, jnp.array([[40]]))
    plain = positions.rope_rotation(rope_config(), jnp.array([[10]]))
    np.testing.assert_allclose(stretched, plain, atol=1e-6)


def test_ntk_scaling_keeps_the_fastest_wave_and_stretches_the_slowest_by_the_factor():
    plain = positions.rope_frequencies(rope_config())
    scaled = positions.rope_frequencies(rope_config(rope_scaling="ntk", rope_scaling_factor=4.0))
    assert scaled[0] == plain[0] == 1
    assert scaled[-1] == pytest.approx(plain[-1] / 4)
    # A geometric series again, so that two values fix all others.
    np.testing.assert_allclose(scaled[1:] / scaled[:-1], (plain[-1] / 4) ** (1 / 3))


def test_llama3_scaling_follows_the_published_code():
    # Llama 3.1's values: base 500,000, factor 8, trained for 8192 positions; head width 128.
    config = rope_config(
        head_width=128, rope_base=500_000.0, rope_scaling="llama3", rope_scaling_factor=8.0, rope_original_length=8192
    )
    expected = []
    for i in range(64):
        frequency = 1 / 500_000 ** (2 * i / 128)
        wavelength = 2 * math.pi / frequency
        if wavelength < 8192 / 4:
            expected.append(frequency)
        elif wavelength > 8192 / 1:
            expected.append(frequency / 8)
        else:
            smooth = (8192 / wavelength - 1) / (4 - 1)
            expected.append((1 - smooth) * frequency / 8 + smooth * frequency)
    assert len({round(e * 500_000 ** (2 * i / 128), 6) for i, e in enumerate(expected)}) > 3  # All three cases.
    np.testing.assert_allclose(positions.rope_frequencies(config), expected, rtol=1e-9)


def test_sinusoids_are_those_of_the_paper():
    found = positions.sinusoids(jnp.array([[0, 1, 7, 100]]), 6)
    for t, position in enumerate((0, 1, 7, 100)):
        for i in range(3):
            angle = position / 10_000 ** (2 * i / 6)
            assert found[0, t, i] == pytest.approx(math.sin(angle), abs=1e-5)
            assert found[0, t, i + 3] == pytest.approx(math.cos(angle), abs=1e-5)


def test_sinusoids_fill_an_odd_width():
    assert positions.sinusoids(jnp.array([[0, 1]]), 5).shape == (1, 2, 5)


def test_alibi_slopes_are_those_of_the_paper():
    eight = [1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32, 1 / 64, 1 / 128, 1 / 256]
    np.testing.assert_allclose(positions.alibi_slopes(8), eight)
    # The authors' code: the slopes of the nearest power of two, then every other one of the next.
    sixteen = [2 ** (-0.5 * (k + 1)) for k in range(16)]
    np.testing.assert_allclose(positions.alibi_slopes(12), eight + sixteen[0::2][:4])
    np.testing.assert_allclose(positions.alibi_slopes(1), [1 / 256])


@pytest.mark.parametrize(
    ("position", "moves"),
    [("rope", False), ("alibi", False), ("none", False), ("learned", True), ("sinusoidal", True)],
)
def test_only_absolute_positions_change_the_logits_when_all_tokens_move(position, moves):
    module = build(tiny(position=position, max_length=200))
    params, tokens_BT = random_params(module), random_tokens(2, 8)
    forward = jax.jit(lambda positions_BT: module.apply({"params": params}, tokens_BT, positions_BT))
    here_BT = np.tile(np.arange(8), (2, 1))
    change = np.abs(forward(here_BT) - forward(here_BT + 100)).max()
    assert (change > 0.01) == moves
    assert change > 0.01 or change < 2e-3  # float32 angles of 100 radians are exact to 1e-5.
    stretched = np.abs(forward(here_BT) - forward(2 * here_BT)).max()
    assert (stretched > 0.01) == (position != "none")
