"""How places are told: RoPE and its scalings, sinusoids, ALiBi, against their papers' formulas."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import random_params, random_tokens, tiny

from configs.convert import override
from configs.schema import ConfigError
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


def test_yarn_follows_the_papers_ramp():
    config = rope_config(
        head_width=64, rope_scaling="yarn", rope_scaling_factor=8.0, rope_original_length=2048, rope_slow=1.0,
        rope_fast=32.0,
    )  # fmt: skip
    plain = 10_000.0 ** (-np.arange(32) / 32)
    scaled = positions.rope_frequencies(config)
    turns = 2048 * plain / (2 * math.pi)
    kept, stretched = turns > 32 * 1.4, turns < 1 / 1.4
    assert 5 < kept.sum() < 20
    assert stretched.sum() > 5
    np.testing.assert_allclose(scaled[kept], plain[kept])
    np.testing.assert_allclose(scaled[stretched], plain[stretched] / 8)
    # Between them, the share that is stretched grows evenly from pair to pair.
    share = (plain - scaled) / (plain - plain / 8)
    ramp = share[(share > 0) & (share < 1)]
    assert len(ramp) > 3
    np.testing.assert_allclose(np.diff(ramp), np.diff(ramp)[0])


def test_yarn_multiplies_rotated_vectors_by_its_temperature():
    settings = {"rope_scaling": "yarn", "rope_scaling_factor": 8.0, "rope_original_length": 64}
    rotation = positions.rope_rotation(rope_config(**settings), jnp.array([[5]]))
    np.testing.assert_allclose(np.hypot(*rotation), 0.1 * math.log(8) + 1, rtol=1e-6)
    rotation = positions.rope_rotation(rope_config(**settings, rope_attention_factor=1.5), jnp.array([[5]]))
    np.testing.assert_allclose(np.hypot(*rotation), 1.5, rtol=1e-6)


LONGROPE = {
    "rope_scaling": "longrope", "rope_scaling_factor": 4.0, "rope_original_length": 16, "rope_factors": "1,2,3,4",
    "rope_long_factors": "5,6,7,8", "rope_attention_factor": 1.0,
}  # fmt: skip


def test_longrope_takes_the_factors_of_the_rows_own_length():
    config = rope_config(**LONGROPE)
    cos, _ = positions.rope_rotation(config, jnp.array([[3, 15], [3, 16]]))
    plain = 10_000.0 ** (-np.arange(4) / 4)
    np.testing.assert_allclose(cos[0, 0, 0], np.cos(3 * plain / [1, 2, 3, 4]), atol=1e-6)
    np.testing.assert_allclose(cos[1, 0, 0], np.cos(3 * plain / [5, 6, 7, 8]), atol=1e-6)


def test_longrope_does_not_count_padding_as_text():
    positions_BT, real_BT = jnp.array([[3, 99]]), jnp.array([[True, False]])
    cos, _ = positions.rope_rotation(rope_config(**LONGROPE), positions_BT, real_BT=real_BT)
    np.testing.assert_allclose(cos[0, 0, 0], np.cos(3 * 10_000.0 ** (-np.arange(4) / 4) / [1, 2, 3, 4]), atol=1e-6)


def test_longrope_own_temperature():
    config = rope_config(**{**LONGROPE, "rope_attention_factor": 0.0})
    assert positions.rope_attention_factor(config) == pytest.approx(math.sqrt(1 + math.log(4) / math.log(16)))


def test_layers_with_a_window_have_their_own_base_and_no_scaling():
    config = rope_config(rope_base=9e5, rope_local_base=70.0, rope_scaling="linear", rope_scaling_factor=8.0)
    np.testing.assert_allclose(positions.rope_frequencies(config, local=True), 70.0 ** (-np.arange(4) / 4))
    local = positions.rope_rotation(config, jnp.array([[5]]), local=True)
    plain = positions.rope_rotation(rope_config(rope_base=70.0), jnp.array([[5]]))
    np.testing.assert_allclose(local, plain)


def test_a_share_of_the_head_is_rotated_and_the_rest_kept():
    config = rope_config(rope_fraction=0.5)
    x_BTNH = jnp.asarray(np.random.default_rng(0).normal(size=(1, 3, 2, 8)), jnp.float32)
    rotation = positions.rope_rotation(config, jnp.array([[0, 4, 9]]))
    turned = positions.rotate(x_BTNH, rotation)
    np.testing.assert_array_equal(turned[..., 4:], x_BTNH[..., 4:])
    whole = positions.rope_rotation(rope_config(head_width=4), jnp.array([[0, 4, 9]]))
    np.testing.assert_allclose(turned[..., :4], positions.rotate(x_BTNH[..., :4], whole), atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rope_fraction": 0.4}, "is 3 numbers"),
        ({"rope_scaling": "longrope", "rope_factors": "1,2"}, "has 2 numbers"),
        ({"rope_scaling": "longrope", "rope_factors": "a,b,c,d"}, "must be numbers"),
        ({"rope_scaling": "llama3", "rope_slow": 4.0}, "must be above --model.rope_slow"),
    ],
)
def test_rope_settings_that_cannot_be_are_named(settings, message):
    with pytest.raises(ConfigError, match=message):
        positions.rope_rotation(rope_config(**settings), jnp.array([[0]]))


def test_relative_buckets_are_single_distances_then_ever_wider_ranges():
    distance = jnp.arange(-40, 41, dtype=jnp.int32)
    one_way = np.asarray(positions.relative_buckets(distance, False, 8, 20))
    assert (one_way[:41] == 0).all()  # What lies ahead, and the token itself.
    assert list(one_way[41:45]) == [1, 2, 3, 4]
    # From 4 on, bucket 4 + floor(4 log(d/4) / log(5)), at most 7.
    expected = [min(7, 4 + math.floor(4 * math.log(d / 4) / math.log(5) + 1e-9)) for d in range(4, 41)]
    assert list(one_way[44:]) == expected
    both_ways = np.asarray(positions.relative_buckets(distance, True, 8, 20))
    assert list(both_ways[38:43]) == [6, 5, 0, 1, 2]
    np.testing.assert_array_equal(both_ways[:40][::-1], both_ways[41:] + 4)
    assert both_ways.max() == 7
