"""The mesh, what lies where on it, and that nothing of this changes what is computed."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from jax.sharding import PartitionSpec
from tiny import random_params, random_tokens, tiny

from configs import schema
from configs.convert import override
from configs.schema import ConfigError
from model import build, sharding

# Between them, every parameter that there is.
EVERYTHING = [
    tiny(position="learned", norm="layer", biases=True, qk_norm="head", attention_sinks=True, tied_embeddings=False),
    tiny(norm_position="both", gated=False),
    tiny(norm_position="post", attention="mqa", layers="unroll", final_norm="on", lora_rank=2, lora_targets="all"),
    tiny(num_experts=4, biases=True, attention="latent", num_kv_heads=0, query_latent_width=4),
    tiny(attention="delta", position="none", num_kv_heads=0, biases=True),
    tiny(network="lstm_encoder_decoder", alignment="bahdanau", biases=True),
    tiny(network="lstm_encoder_decoder", alignment="luong", biases=True),
    tiny(network="encoder_decoder", position="relative", output_bias=True, biases=True, lora_rank=2),
]


def mesh(data=1, fsdp=1, tensor=1, devices=None):
    return sharding.make_mesh(schema.Mesh(data=data, fsdp=fsdp, tensor=tensor), devices)


def test_minus_one_takes_the_devices_that_are_left():
    assert mesh(-1, 2, 2).devices.shape == (2, 1, 2, 1, 1, 2)
    assert mesh(2, -1, 1).devices.shape == (2, 1, 4, 1, 1, 1)
    assert mesh(1, 1, -1).devices.shape == (1, 1, 1, 1, 1, 8)
    assert mesh(-1, 4, 2).devices.shape == (1, 1, 4, 1, 1, 2)
    assert mesh(-1, devices=jax.devices()[:3]).devices.shape == (3, 1, 1, 1, 1, 1)
    assert mesh(8).axis_names == ("data", "stage", "fsdp", "expert", "sequence", "tensor")


@pytest.mark.parametrize("sizes", [(-1, -1, 1), (0, 1, 1), (-1, 0, 1), (-1, 3, 1), (2, 2, 1), (16, 1, 1), (-1, 16, 1)])
def test_a_mesh_that_does_not_fit_is_refused_with_its_flags_and_the_number_of_devices(sizes):
    with pytest.raises(ConfigError) as error:
        mesh(*sizes)
    data, fsdp, tensor = sizes
    asked = {"data": data, "stage": 1, "fsdp": fsdp, "expert": 1, "sequence": 1, "tensor": tensor}
    assert ", ".join(f"--mesh.{axis}={size}" for axis, size in asked.items()) in str(error.value)
    assert "at most one may be -1" in str(error.value) or "there are 8" in str(error.value)


def test_unknown_logical_axis_is_an_error_and_not_silently_replicated():
    with pytest.raises(KeyError, match="bach"):
        sharding.partition("bach", "length")
    with pytest.raises(KeyError, match="layers/attention/qwery/kernel has no logical axes"):
        sharding.parameter_axes("layers/attention/qwery/kernel")


def test_two_logical_axes_on_one_mesh_axis_are_an_error():
    with pytest.raises(ValueError, match=r"heads.*hidden.*collide.*tensor"):
        sharding.partition("heads", "hidden")


@pytest.mark.parametrize("config", EVERYTHING)
def test_every_parameter_has_a_logical_name_for_each_of_its_axes(config):
    shapes = flatten_dict(sharding.parameter_shapes(build(config)), sep="/")
    for path, shape in shapes.items():
        axes = sharding.parameter_axes(path)
        assert len(axes) == len(shape.shape), path
        assert (axes[0] == "layers") == ("layers/" in path), path
        sharding.partition(*axes)


def test_no_rule_is_left_over():
    paths = [path for config in EVERYTHING for path in flatten_dict(sharding.parameter_shapes(build(config)), sep="/")]
    assert all(any(path.endswith(suffix) for path in paths) for suffix in sharding.PARAMETERS)


def test_parameters_lie_as_the_rules_say():
    shardings = sharding.param_shardings(build(EVERYTHING[0]), mesh(2, 2, 2))
    spec = {path: leaf.spec for path, leaf in flatten_dict(shardings, sep="/").items()}
    expected = {
        "embedding/embedding": ("tensor", "fsdp"),
        "layers/attention/query/kernel": ("stage", "fsdp", "tensor", None),
        "layers/attention/output/kernel": ("stage", "tensor", None, "fsdp"),
        "layers/attention/output/bias": ("stage", None),
        "layers/attention/query_norm/scale": ("stage", None),
        "layers/feed_forward/down/kernel": ("stage", "tensor", "fsdp"),
        "output/kernel": ("fsdp", "tensor"),
        "final_norm/scale": (None,),
    }
    for path, axes in expected.items():
        assert spec[path] == PartitionSpec(*(axis and (axis,) for axis in axes)), path
    assert sharding.batch_sharding(mesh(2, 2, 2)).spec == PartitionSpec(("data", "fsdp", "expert", "stage"))


@pytest.mark.parametrize(
    ("settings", "sizes", "numbers"),
    [
        ({"train.batch_size": 12}, (8, 1, 1), ("--train.batch_size=12", "12", "8", "16")),
        ({"train.batch_size": 16, "train.microbatches": 4}, (4, 2, 1), ("--train.microbatches=4", "rows (4)", "8")),
        ({"train.batch_size": 8, "model.num_heads": 4}, (1, 1, 8), ("--model.num_heads=4", "8", "tensor")),
        ({"train.batch_size": 8, "model.num_kv_heads": 2}, (2, 1, 4), ("--model.num_kv_heads", "2", "4", "tensor")),
        ({"train.batch_size": 8, "model.width": 20}, (1, 8, 1), ("--model.width=20", "fsdp", "16", "24")),
        ({"train.batch_size": 8, "model.feed_forward_width": 25}, (4, 1, 2), ("--model.feed_forward_width", "26")),
    ],
)
def test_what_cannot_be_shared_evenly_is_refused_with_the_nearest_that_can(settings, sizes, numbers):
    config = override(tiny(), settings)
    with pytest.raises(ConfigError) as error:
        sharding.check_divisible(config, mesh(*sizes))
    for number in numbers:
        assert number in str(error.value)
    sharding.check_divisible(override(tiny(), {"train.batch_size": 8}), mesh(2, 2, 2))


@pytest.fixture(scope="module")
def on_one_device():
    module = build(EVERYTHING[0])
    params, tokens_BT = random_params(module), random_tokens(8, 6)
    return module, params, tokens_BT, jax.jit(module.apply)({"params": params}, tokens_BT)


@pytest.mark.parametrize("sizes", [(8, 1, 1), (1, 8, 1), (2, 2, 2)])
def test_eight_devices_compute_what_one_computes(on_one_device, sizes):
    module, params, tokens_BT, expected = on_one_device
    on = mesh(*sizes)
    params = jax.device_put(params, sharding.param_shardings(module, on))
    tokens_BT = jax.device_put(tokens_BT, sharding.batch_sharding(on))
    assert len(params["layers"]["attention"]["query"]["kernel"].sharding.device_set) == 8
    with jax.set_mesh(on):
        logits_BTV = jax.jit(module.apply)({"params": params}, tokens_BT)
    np.testing.assert_allclose(logits_BTV, expected, atol=1e-5 * jnp.abs(expected).max())
    # The logits stay where they were computed: each device has its own rows, and its own words.
    rows, words = 8 // (sizes[0] * sizes[1]), 32 // sizes[2]
    assert {shard.data.shape for shard in logits_BTV.addressable_shards} == {(rows, 6, words)}


def test_devices_that_share_heads_share_the_tokens_that_layers_keep_for_the_backward_pass():
    module = build(tiny(num_layers=3, num_kv_heads=4, remat="full"))
    on, tokens_BT = mesh(1, 2, 4), random_tokens(2, 8)

    def loss(params):
        return jnp.sum(module.apply({"params": params}, tokens_BT, head=False))

    with jax.set_mesh(on):
        compiled = jax.jit(jax.grad(loss), in_shardings=(sharding.param_shardings(module, on),))
        hlo = compiled.lower(sharding.parameter_shapes(module)).compile().as_text()
    assert "f32[3,1,2,16]" in hlo  # Layers, a device's rows, its quarter of 8 tokens, width.
    assert "f32[3,1,8,16]" not in hlo


def test_a_vocabulary_that_the_mesh_does_not_divide_lies_whole_on_each_device():
    """A tokenizer has the size it has: bytes and their end are 257."""
    module = build(override(EVERYTHING[0], {"tokenizer.vocab_size": 33}))
    params, tokens_BT = random_params(module), random_tokens(8, 6)
    expected = jax.jit(module.apply)({"params": params}, tokens_BT)
    on = mesh(2, 2, 2)
    shardings = sharding.param_shardings(module, on)
    assert "tensor" not in str(shardings["embedding"]["embedding"].spec)
    assert "tensor" in str(shardings["layers"]["attention"]["query"]["kernel"].spec)
    with jax.set_mesh(on):
        logits_BTV = jax.jit(module.apply)({"params": jax.device_put(params, shardings)}, tokens_BT)
    np.testing.assert_allclose(logits_BTV, expected, atol=1e-5 * jnp.abs(expected).max())


def test_errors_name_the_nearest_choices_that_work():
    with pytest.raises(ConfigError, match=r"makes 3 devices, but there are 8: .* all axes but one 2 or 4"):
        mesh(-1, 3, 1)
    with pytest.raises(ConfigError, match=r"--model.num_heads=4 \(4\) .* the nearest that can is 8\."):
        sharding.check_divisible(override(tiny(), {"train.batch_size": 8}), mesh(1, 1, 8))
    long = override(tiny(), {"train.batch_size": 8, "data.length": 60})
    with pytest.raises(ConfigError, match=r"--data.length=60 \(60\) .* sequence: the nearest that can are 56 and 64\."):
        sharding.check_divisible(long, sharding.make_mesh(schema.Mesh(data=1, sequence=8)))


def test_a_network_that_writes_may_be_shared_whatever_its_batch_was():
    sharding.check_writes(override(tiny(), {"train.batch_size": 1, "data.length": 3}), mesh(4, 1, 2))
    with pytest.raises(ConfigError, match=r"--model.num_heads=4 \(4\) .* the nearest that can is 8\."):
        sharding.check_writes(tiny(), mesh(1, 1, 8))
    with pytest.raises(ConfigError, match=r"--mesh.stage=2: .* use --mesh.tensor or --mesh.fsdp\."):
        sharding.check_writes(tiny(), sharding.make_mesh(schema.Mesh(data=4, stage=2)))


def test_a_pipeline_that_cannot_be_is_refused_with_what_can():
    stages = sharding.make_mesh(schema.Mesh(data=1, stage=4, fsdp=2))
    config = override(tiny(num_layers=8), {"train.batch_size": 16, "train.microbatches": 4, "mesh.stage": 4})
    sharding.check_divisible(config, stages)
    for settings, message in (
        ({"train.microbatches": 2}, r"--train.microbatches=2 parts .* --mesh.stage=4 .* make it at least 4; .* 16%"),
        ({"model.num_layers": 6}, r"--model.num_layers=6 .* = 4 equal groups: the nearest that do are 4 and 8 layers"),
        ({"train.rounds": 4}, r"--model.num_layers=8 .* --train.rounds=4 = 16 equal groups: .* are 16 layers"),
        ({"model.network": "lstm"}, r"--mesh.stage=4 .* --model.network=lstm .* --mesh.stage=1"),
        ({"train.batch_size": 4}, r"--train.batch_size=4 / --train.microbatches=4: rows \(1\) .* is 2\."),
    ):
        with pytest.raises(ConfigError, match=message):
            sharding.check_divisible(override(config, settings), stages)


class Device:
    """Of a slice that is not here."""

    def __init__(self, number: int, slice_index: int, place: int, platform: str) -> None:
        self.id, self.slice_index, self.platform = number, slice_index, platform
        self.process_index, self.client, self.device_kind = slice_index, None, "TPU v5 lite"
        self.coords, self.core_on_chip = (place % 4, place // 4, 0), 0


def slices_of(count: int, each: int, platform: str = "tpu") -> list[Device]:
    """Devices of several slices, in an order that says nothing."""
    return [Device(number, number % count, number // count, platform) for number in range(count * each)]


def test_slices_are_the_outermost_part_of_data():
    on = mesh(-1, 2, 2, slices_of(2, 8))
    assert on.devices.shape == (4, 1, 2, 1, 1, 2)
    assert [{device.slice_index for device in part.flat} for part in on.devices] == [{0}, {0}, {1}, {1}]
    assert len({device.id for device in on.devices.flat}) == 16
    assert on.axis_types == (jax.sharding.AxisType.Auto,) * 6


def test_slices_that_data_leaves_share_the_stages():
    """The outermost of each, so that most stages have the next one in their own slice."""

    def slices(data: int, stage: int, count: int) -> list[list[set[int]]]:
        shares = schema.Mesh(data=data, stage=stage, fsdp=16 // data // stage)
        on = sharding.make_mesh(shares, slices_of(count, 16 // count))
        assert len({device.id for device in on.devices.flat}) == 16
        return [[{device.slice_index for device in part.flat} for part in stages] for stages in on.devices]

    assert slices(1, 4, 2) == [[{0}, {0}, {1}, {1}]]
    assert slices(2, 4, 4) == [[{0}, {0}, {1}, {1}], [{2}, {2}, {3}, {3}]]
    assert slices(4, 2, 2) == [[{0}, {0}], [{0}, {0}], [{1}, {1}], [{1}, {1}]]  # Gradients cross once a step.


def test_axes_other_than_data_and_stage_do_not_leave_a_slice():
    message = r"--mesh\.data=1 x --mesh\.stage=1 does not go across 2 slices of 8 devices: make .* a multiple of 2"
    with pytest.raises(ConfigError, match=message):
        mesh(1, -1, 2, slices_of(2, 8))
    # GPUs of several hosts count as slices, and may share anything; heads stay within a host where they can.
    on = mesh(1, -1, 8, slices_of(2, 8, "gpu"))
    assert [{device.slice_index for device in part.flat} for part in on.devices[0, 0]] == [{0}, {1}]
