"""Several processes that train one network together: which rows each reads, and what they have to agree on.

Every process runs the same program on its own devices, and does everything that computes with others in the same order
as they do. Process 0 alone writes what is written once. What they tell each other beside the computation goes through
JAX's coordination service, which needs no device.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from model.sharding import batch_sharding

# A process waits for another as long as that lives; one that dies ends all (launch/processes.py).
PATIENCE_MS = 7 * 24 * 3600 * 1000
_calls = itertools.count()  # Every process counts the same calls.


def writes() -> bool:
    """Whether this process is the one that writes what is written once."""
    return jax.process_index() == 0


def rows_held(mesh: Mesh, batch_size: int) -> list[int]:
    """The rows of a batch that the devices of this process hold, in ascending order.

    Processes whose devices share rows (over the mesh axes `tensor` and `sequence`) hold the same.
    """
    places = batch_sharding(mesh).addressable_devices_indices_map((batch_size,)).values()
    return sorted({row for place in places if place for row in range(*place[0].indices(batch_size))})


def first_says(value: Any) -> Any:
    """What process 0 passes, at all processes; anything for JSON. All have to call it, at the same point."""
    key = f"seq2see/said/{next(_calls)}"
    if jax.process_count() == 1:
        return value
    if writes():
        _service().key_value_set(key, json.dumps(value))
        return value
    return json.loads(_service().blocking_key_value_get(key, PATIENCE_MS))


def all_say(value: Any) -> list[Any]:
    """What each process passes, in order, at process 0; nothing at the others. All have to call it, at the same point.

    `value` is anything for JSON.
    """
    folder = f"seq2see/collected/{next(_calls)}"
    if jax.process_count() == 1:
        return [value]
    if not writes():
        _service().key_value_set(f"{folder}/{jax.process_index()}", json.dumps(value))
        return []
    keys = [f"{folder}/{process}" for process in range(1, jax.process_count())]
    values = [value, *(json.loads(_service().blocking_key_value_get(key, PATIENCE_MS)) for key in keys)]
    _service().key_value_delete(f"{folder}/")
    return values


def publish(value: Any) -> None:
    """Leaves a value for `published`, in place of the one before; the others need not do anything for it."""
    if jax.process_count() > 1:
        _service().key_value_set(f"seq2see/published/{jax.process_index()}", json.dumps(value), allow_overwrite=True)


def published() -> dict[int, Any]:
    """The last value that each process has published, by its number; those that published nothing are left out."""
    if jax.process_count() == 1:
        return {}
    found = _service().key_value_dir_get("seq2see/published/")
    return {int(key.rpartition("/")[2]): json.loads(value) for key, value in found}


def wait_for_all() -> None:
    """Returns when every process has called it."""
    name = f"seq2see/wait/{next(_calls)}"
    if jax.process_count() > 1:
        _service().wait_at_barrier(name, PATIENCE_MS)


def joined(data_state: dict[str, Any]) -> dict[str, Any]:
    """The place in the data of all rows, from those of each process's own; whole at process 0, which writes it."""
    states = all_say(data_state) or [data_state]
    rows = {row: place for state in states for row, place in state["rows"].items()}
    return {"rows": {row: rows[row] for row in sorted(rows, key=int)}}


class Agreement:
    """Asks each process and gives the same answer at all: yes, once any has said it.

    The answer is that to the question before, so that nobody waits: it comes with the step that is being computed.
    """

    def __init__(self, ask: Callable[[], bool], mesh: Mesh) -> None:
        self._ask, self._devices = ask, mesh.size
        self._spread = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        self._any = jax.jit(jnp.any, out_shardings=NamedSharding(mesh, PartitionSpec()))
        self._before: jax.Array | None = None

    def __call__(self) -> bool:
        """Whether any process said yes before; all have to call it, at the same point."""
        if jax.process_count() == 1:
            return self._ask()
        said, before = np.full(1, self._ask()), self._before
        self._before = self._any(jax.make_array_from_callback((self._devices,), self._spread, lambda _: said))
        return before is not None and bool(before)


def _service() -> Any:
    """JAX's client of its coordination service, which it has no public name for; Orbax uses it in the same way."""
    from jax._src import distributed

    return distributed.global_state.client
