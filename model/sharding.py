"""Which device holds what: logical names on every axis, mapped to the axes of one mesh, checked.

JAX replicates silently where a name is unknown; here that is an error.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from configs import schema
from configs.derived import (
    encoder_layers,
    feed_forward_width,
    is_recurrent,
    latent_width,
    num_kv_heads,
    source_length,
    translates,
)
from configs.schema import Config, ConfigError
from model.source import Source

AXES = ("data", "stage", "fsdp", "expert", "sequence", "tensor")

# What each logical axis is spread over.
RULES: dict[str, tuple[str, ...]] = {
    "rows": ("data", "fsdp", "expert", "stage"),  # Of a batch outside of the layers.
    "batch": ("data", "fsdp", "expert"),  # Of a batch within a layer.
    "length": ("sequence",),  # Of an activation: tokens of a row.
    # The same between layers: devices that share the heads of a layer share its tokens there, rather than each keeping
    # all of them (Korthikanti et al. 2022, "Reducing Activation Recomputation in Large Transformer Models", 4.2.2).
    "residual": ("sequence", "tensor"),
    "layers": ("stage",),
    "embed": ("fsdp",),  # Width of a parameter.
    "width": (),  # Width of an activation.
    "heads": ("tensor",),
    "head": (),
    "hidden": ("tensor",),
    "experts": ("expert",),
    "rank": (),  # Of a low-rank adaptation.
    "vocabulary": ("tensor",),
    "positions": (),
}

# What an axis is spread over where its rule does not divide it: a given tokenizer has the size it has, a text that is
# being written has one token at a time, and prompts are read one by one. With any other axis that is an error.
INSTEAD: dict[str, tuple[str, ...] | None] = {
    "vocabulary": None, "residual": RULES["length"], "rows": None, "batch": None,
}  # fmt: skip

# The logical axes of each parameter, by the end of its path; a leading layer axis is added under `layers`.
PARAMETERS: dict[str, tuple[str, ...]] = {
    "embedding/embedding": ("vocabulary", "embed"),
    "position/embedding": ("positions", "embed"),
    "query/kernel": ("embed", "heads", "head"),
    "key/kernel": ("embed", "heads", "head"),
    "value/kernel": ("embed", "heads", "head"),
    "attention/output/kernel": ("heads", "head", "embed"),
    "cross_attention/output/kernel": ("heads", "head", "embed"),
    "query/bias": ("heads", "head"),
    "key/bias": ("heads", "head"),
    "value/bias": ("heads", "head"),
    "attention/output/bias": ("width",),
    "cross_attention/output/bias": ("width",),
    "query_latent/kernel": ("embed", "width"),
    "query_latent/bias": ("width",),
    "latent/kernel": ("embed", "width"),
    "latent/bias": ("width",),
    "key_rotated/kernel": ("embed", "head"),
    "key_rotated/bias": ("head",),
    "output_gate/kernel": ("embed", "heads", "head"),
    "output_gate/bias": ("heads", "head"),
    "convolution/taps": ("width", "width", "heads", "head"),
    "beta/kernel": ("embed", "heads"),
    "beta/bias": ("heads",),
    "decay/kernel": ("embed", "heads"),
    "decay/bias": ("heads",),
    "decay/rate": ("heads",),
    "router/kernel": ("embed", "width"),
    "router/bias": ("width",),
    "experts/up/kernel": ("experts", "embed", "hidden"),
    "experts/gate/kernel": ("experts", "embed", "hidden"),
    "experts/up/bias": ("experts", "hidden"),
    "experts/gate/bias": ("experts", "hidden"),
    "experts/down/kernel": ("experts", "hidden", "embed"),
    "experts/down/bias": ("experts", "width"),
    "sinks": ("heads",),
    "query_norm/scale": ("head",),
    "key_norm/scale": ("head",),
    "up/kernel": ("embed", "hidden"),
    "gate/kernel": ("embed", "hidden"),
    "up/bias": ("hidden",),
    "gate/bias": ("hidden",),
    "down/kernel": ("hidden", "embed"),
    "down/bias": ("width",),
    **{f"{which}{gate}/kernel": ("embed", "hidden") for which in "ih" for gate in "ifgo"},  # LSTM, Flax's names.
    **{f"h{gate}/bias": ("hidden",) for gate in "ifgo"},
    "alignment/source/kernel": ("embed", "hidden"),
    "alignment/source/bias": ("hidden",),
    "alignment/state/kernel": ("embed", "hidden"),
    "alignment/state/bias": ("hidden",),
    "alignment/score/kernel": ("embed", "width"),
    "alignment/combine/kernel": ("embed", "hidden"),
    "alignment/combine/bias": ("hidden",),
    "output/kernel": ("embed", "vocabulary"),
    "output_bias/bias": ("vocabulary",),
    "relative/embedding": ("positions", "heads"),
    "norm/scale": ("width",),
    "norm/bias": ("width",),
}


def make_mesh(config: schema.Mesh, devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh of all (or the given) devices; an axis of -1 takes what the others leave.

    Of several slices, each is a part of the axis `data`, and where that has too few parts, of `stage`: so nothing but
    gradients and what goes from stage to stage crosses the network between them.

    Raises:
      ConfigError: more than one -1, a zero, a product that is not the number of devices, or slices that divide neither
        `data` nor `data` x `stage`.
    """
    devices = sorted(devices if devices is not None else jax.devices(), key=_slice)
    sizes = [getattr(config, axis) for axis in AXES]
    asked = ", ".join(f"--mesh.{axis}={size}" for axis, size in zip(AXES, sizes, strict=True))
    if sizes.count(-1) > 1 or 0 in sizes:
        raise ConfigError(f"{asked}: each axis is at least 1, and at most one may be -1.")
    known = math.prod(size for size in sizes if size != -1)
    if len(devices) % known or (-1 not in sizes and known != len(devices)):
        fitting = [size for size in range(1, len(devices) + 1) if len(devices) % size == 0]
        nearest = [*[size for size in fitting if size <= known][-1:], *[size for size in fitting if size > known][:1]]
        raise ConfigError(
            f"{asked} makes {known} devices, but there are {len(devices)}: make the product of all axes but one "
            f"{' or '.join(map(str, nearest))}, and set that one to -1."
        )
    sizes = [len(devices) // known if size == -1 else size for size in sizes]
    slices = [list(part) for _, part in itertools.groupby(devices, _slice)]
    count, axis_types = len(slices), (AxisType.Auto,) * len(AXES)
    of_data = math.gcd(sizes[0], count)
    of_stage = count // of_data
    if of_stage > 1 and (of_data < sizes[0] or sizes[1] % of_stage):
        if devices[0].platform == "tpu":
            raise ConfigError(
                f"--mesh.data={sizes[0]} x --mesh.stage={sizes[1]} does not go across {count} slices of "
                f"{len(devices) // count} devices: make --mesh.data a multiple of {count}, or --mesh.stage with "
                f"--mesh.data=1, so that the other axes stay within a slice."
            )
        # Hosts of GPUs count as slices, but may share anything.
        return Mesh(np.array(devices).reshape(sizes), AXES, axis_types=axis_types)
    inner = (sizes[0] // of_data, sizes[1] // of_stage, *sizes[2:])
    # JAX lays each mesh on the links of its slice.
    parts = np.stack([jax.make_mesh(inner, AXES, devices=part).devices for part in slices])
    return Mesh(parts.reshape(of_data, of_stage, *inner).swapaxes(1, 2).reshape(sizes), AXES, axis_types=axis_types)


def _slice(device: Any) -> int:
    return getattr(device, "slice_index", 0)


Shared = tuple[str, int, tuple[str, ...]]  # A setting, its number, and the mesh axes that have to divide it.


def check_divisible(config: Config, mesh: Mesh) -> None:
    """Refuse a batch, heads or widths that the mesh cannot share evenly.

    Raises:
      ConfigError: names both numbers.
    """
    train, stages = config.train, mesh.shape["stage"]
    if stages > 1:
        _check_pipeline(config, stages)
    rows = [
        (f"--train.batch_size={train.batch_size} / --train.microbatches={train.microbatches}: rows",
         train.batch_size // train.microbatches, RULES["batch"]),
        (f"--train.batch_size={train.batch_size}", train.batch_size, RULES["rows"]),
    ]  # fmt: skip
    lengths = [(f"--data.{name}={length}", length, RULES["length"]) for name, length in _lengths(config)]
    _check_shared([*rows, *_sizes(config), *lengths], mesh)


def check_writes(config: Config, mesh: Mesh) -> None:
    """Refuse a mesh that cannot share a network evenly while it writes.

    Raises:
      ConfigError: names both numbers, or an axis that is for training only.
    """
    if (stages := mesh.shape["stage"]) > 1:
        raise ConfigError(
            f"--mesh.stage={stages}: stages pass parts of a batch on in training; to share the weights while text is "
            f"written, use --mesh.tensor or --mesh.fsdp."
        )
    _check_shared(_sizes(config), mesh)


def _sizes(config: Config) -> list[Shared]:
    """The network's sizes that devices share."""
    sizes = _recurrent_widths(config) if is_recurrent(config) else _widths(config)
    return [(f"--model.width={config.model.width}", config.model.width, ("fsdp",)), *sizes]


def _check_shared(shared: list[Shared], mesh: Mesh) -> None:
    for what, number, axes in shared:
        ways = math.prod(mesh.shape[axis] for axis in axes)
        if number % ways:
            below, above = number // ways * ways, (number // ways + 1) * ways
            nearest = f"are {below} and {above}" if below else f"is {above}"
            raise ConfigError(
                f"{what} ({number}) cannot be shared evenly by the {ways} devices of the mesh axis "
                f"{' x '.join(axes)}: the nearest that can {nearest}."
            )


def _check_pipeline(config: Config, stages: int) -> None:
    """Refuse layers that do not fall into as many groups as stages ask for, and parts that leave stages without work.

    Raises:
      ConfigError: names the numbers, and the nearest that work.
    """
    model, train = config.model, config.train
    if is_recurrent(config):
        raise ConfigError(
            f"--mesh.stage={stages} needs layers that are alike, and --model.network={model.network} has LSTMs: "
            f"set --mesh.stage=1."
        )
    if train.microbatches < stages:
        raise ConfigError(
            f"--train.microbatches={train.microbatches} parts of a batch leave some of the --mesh.stage={stages} "
            f"stages without work: make it at least {stages}; with 4 x {stages} parts, devices wait for "
            f"{(stages - 1) / (4 * stages + stages - 1):.0%} of the time."
        )
    depths = {"num_layers": model.num_layers}
    if model.network == "encoder_decoder":
        depths["encoder_layers"] = encoder_layers(config)
    groups = stages * train.rounds
    for name, depth in depths.items():
        if depth % groups:
            below, above = max(groups, depth // groups * groups), (depth // groups + 1) * groups
            raise ConfigError(
                f"--model.{name}={depth} layers do not fall into --mesh.stage={stages} x --train.rounds={train.rounds} "
                f"= {groups} equal groups: the nearest that do are "
                f"{' and '.join(map(str, sorted({below, above})))} layers."
            )


def _lengths(config: Config) -> list[tuple[str, int]]:
    """The rows that devices share, by setting."""
    sources = [("source_length", source_length(config.data))] if translates(config) else []
    return [("length", config.data.length), *sources]


def _widths(config: Config) -> list[Shared]:
    """What the mesh shares of a Transformer."""
    model, heads, hidden = config.model, num_kv_heads(config), feed_forward_width(config)
    shared: list[Shared] = [
        (f"--model.num_heads={model.num_heads}", model.num_heads, ("tensor",)),
        (f"--model.num_kv_heads: {heads}", heads, ("tensor",)),
        (f"--model.feed_forward_width: {hidden}", hidden, ("tensor",)),
        (f"--model.num_experts={model.num_experts}", model.num_experts, ("expert",)),
    ]
    if model.attention == "latent":
        narrow = model.query_latent_width
        shared.append((f"--model.latent_width: {latent_width(config)}", latent_width(config), ("fsdp",)))
        shared.append((f"--model.query_latent_width={narrow}", narrow, ("fsdp",)))
    return shared


def _recurrent_widths(config: Config) -> list[Shared]:
    """What the mesh shares of an LSTM; each direction of an encoder has half the width."""
    width, halves = config.model.width, 2 if translates(config) else 1
    return [(f"--model.width={width} / {halves}", width // halves, (axis,)) for axis in ("fsdp", "tensor")]


def partition(*names: str) -> PartitionSpec:
    """The mesh axes that the logical axes are spread over.

    Raises:
      KeyError: an unknown name.
      ValueError: two of the names are spread over the same mesh axis.
    """
    axes = [RULES[name] for name in names]
    used = [axis for group in axes for axis in group]
    if len(set(used)) < len(used):
        raise ValueError(f"The logical axes {names} collide: they are spread over the mesh axes {used}.")
    return PartitionSpec(*(group or None for group in axes))


def ways(*names: str) -> int:
    """How many devices of the mesh that is set share the logical axes together; 1 outside of a mesh."""
    size = jax.sharding.get_abstract_mesh().shape
    return math.prod(size.get(axis, 1) for name in names for axis in RULES[name])


def divides(shape: tuple[int, ...], *names: str) -> bool:
    """Whether the mesh that is set shares an array of this shape evenly."""
    return all(length % ways(name) == 0 for length, name in zip(shape, names, strict=True))


def platform() -> str:
    """What is compiled for: cpu, gpu or tpu; with a mesh of devices that are not here, theirs."""
    device = getattr(jax.sharding.get_abstract_mesh(), "abstract_device", None)
    return device.platform if device is not None else jax.default_backend()


def constrain(x: jax.Array, *names: str) -> jax.Array:
    """Tell the compiler how an activation lies on the mesh; outside of a mesh, nothing."""
    spec, mesh = partition(*names), jax.sharding.get_abstract_mesh()
    return x if mesh.empty else jax.lax.with_sharding_constraint(x, _fitting(spec, names, x.shape, mesh.shape))


def constrain_parameters(params: Any, whole: bool = False) -> Any:
    """Tell the compiler how parameters (or their gradients) lie on the mesh; outside of a mesh, nothing.

    With `whole`, the axis that `fsdp` shares is brought together, as it must be to multiply with it.
    """

    def lie(path: str, x: jax.Array) -> jax.Array:
        return constrain(x, *("width" if whole and name == "embed" else name for name in parameter_axes(path)))

    flat: dict[str, Any] = flatten_dict(params, sep="/")
    return unflatten_dict({path: lie(path, x) for path, x in flat.items()}, sep="/")


def interleaved(x_B: jax.Array, parts: int) -> jax.Array:
    """[B,...] as [M,B/M,...]: part m is the rows m, m + M, m + 2M, ..., so that devices have rows in all parts."""
    return x_B.reshape(-1, parts, *x_B.shape[1:]).swapaxes(0, 1)


def _fitting(
    spec: PartitionSpec, names: tuple[str, ...], shape: tuple[int, ...], size: Mapping[str, int]
) -> PartitionSpec:
    """`spec` without what need not be shared where that does not divide an axis: see INSTEAD."""

    def fits(name: str, length: int) -> bool:
        return length % math.prod(size[axis] for axis in RULES[name]) == 0

    return PartitionSpec(
        *(group if name not in INSTEAD or fits(name, length) else INSTEAD[name]
          for name, length, group in zip(names, shape, spec, strict=True))
    )  # fmt: skip


def parameter_axes(path: str) -> tuple[str, ...]:
    """Logical axes of the parameter at `path` (`layers/attention/query/kernel`).

    Raises:
      KeyError: a parameter that stands in no rule.
    """
    module, _, name = path.rpartition("/")
    if name in ("lora_in", "lora_out"):  # They split their kernel's axes between them.
        axes = parameter_axes(f"{module}/kernel")
        inputs = len(axes) - 1 if module.endswith("attention/output") else 2  # The layers' axis among them.
        return (*axes[:inputs], "rank") if name == "lora_in" else (axes[0], "rank", *axes[inputs:])
    for suffix, names in PARAMETERS.items():
        # A norm's name ends with `norm` and its own suffix is no whole path part.
        if path == suffix or path.endswith("/" + suffix) or (suffix.startswith("norm/") and path.endswith(suffix)):
            return ("layers", *names) if "layers" in path.split("/") else names
    raise KeyError(f"The parameter {path} has no logical axes: add it to PARAMETERS in model/sharding.py.")


def parameter_shapes(module: Any) -> Any:
    """Shapes and dtypes of all parameters, without computing any."""
    return jax.eval_shape(lambda key: init_params(module, key), jax.random.key(0))


def init_params(module: Any, key: jax.Array) -> Any:
    """Parameters drawn at random; a function of `key`."""
    tokens_BT = jnp.zeros((1, 2), jnp.int32)
    source = Source.of(tokens_BT) if translates(module.config) else None
    return module.init(key, tokens_BT, source=source)["params"]


def param_shardings(module: Any, mesh: Mesh) -> Any:
    """Where each parameter lies: a tree like the parameters, of `NamedSharding`."""
    flat: dict[str, Any] = flatten_dict(parameter_shapes(module), sep="/")

    def place(path: str, shape: tuple[int, ...]) -> NamedSharding:
        names = parameter_axes(path)
        return NamedSharding(mesh, _fitting(partition(*names), names, shape, mesh.shape))

    return unflatten_dict({path: place(path, leaf.shape) for path, leaf in flat.items()}, sep="/")


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows over all axes that share the batch, for arrays [B, ...]."""
    return NamedSharding(mesh, partition("rows"))
