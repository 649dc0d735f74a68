"""How long a block of splash attention takes, read from the instructions that libtpu makes of its kernels.

The compiler gives no estimate for a Pallas kernel, but libtpu can write down the bundles of instructions that it packs
for the core: one bundle is one cycle. A splash kernel loops over pairs of blocks, one of queries and one of keys; in
every step it does some book-keeping, at the first and the last pair of a row it clears and writes out sums, and only
for a pair in which somebody sees somebody it multiplies. Stalls on memory are not in it.

libtpu reads its flags once, when it is loaded; so the kernels are compiled in a process of their own:
`python -m launch.plans.bundles v5e:2x2 128 512 512 512` prints what `cycles` returns, as JSON.
"""

from __future__ import annotations

import functools
import json
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

BLOCKS = 4  # In a row of the text that the kernels are compiled for; what a block takes does not depend on it.
_BUNDLE = re.compile(r"^\s*0x[0-9a-f]+\s+([A-Z]{2})?\s*:")


@dataclass(frozen=True)
class Cycles:
    """Of one kernel."""

    step: int  # For every pair of blocks.
    block: int  # More, where somebody sees somebody.
    row: int  # More, once for each row of blocks.


@dataclass(frozen=True)
class Blocks:
    """What the speed of a splash kernel depends on."""

    head_width: int
    query: int
    key: int
    compute: int  # Of the keys of a block, so many at a time.


@functools.cache
def cycles(chip: str, blocks: Blocks) -> dict[str, Cycles]:
    """Cycles of the kernels `fwd`, `dkv` and `dq` on a kind of chip; nothing where libtpu does not say."""
    if cached := _cached(chip, blocks):
        return cached
    shape = "2x2x1" if chip in ("v4", "v5p", "tpu7x") else "2x2"
    arguments = [f"{chip}:{shape}", *(str(value) for value in asdict(blocks).values())]
    with tempfile.TemporaryDirectory() as folder:
        flags = f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true"
        environment = {**os.environ, "LIBTPU_INIT_ARGS": f"{os.environ.get('LIBTPU_INIT_ARGS', '')} {flags}"}
        done = subprocess.run(
            [sys.executable, "-m", "launch.plans.bundles", *arguments],
            env=environment, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2],
        )  # fmt: skip
        found = {
            name: counted
            for name in ("fwd", "dkv", "dq")
            for path in Path(folder).glob(f"*splash_mha_{name}*-final_bundles.txt")
            if "schedule" not in path.name and (counted := count(path.read_text("utf-8", errors="replace")))
        }
    if done.returncode == 0 and found:
        _cache(chip, blocks, found)
    return found


def count(text: str) -> Cycles | None:
    """The bundles of a kernel's loop: those of every step, and those of the parts that are left out in some steps.

    A part is left out by a branch (`sbr.rel`) to a place marked `PF:`. The one with the matrix multiplications is the
    work on a pair of blocks; the others in the loop are done once in a row.
    """
    bundles, matmuls, branches, parts = 0, [0], [], []
    begun = False
    for line in text.splitlines():
        match = _BUNDLE.match(line)
        begun = begun or bool(match and match[1] == "LB")
        if not begun:
            continue
        bundles += bool(match)
        matmuls.append(matmuls[-1] + line.count("vmatmul"))
        if match and match[1] == "PF" and branches:
            start, matmuls_before = branches.pop()
            parts.append((start, bundles - start, matmuls[-1] - matmuls_before))
        if "sbr.rel" in line:
            branches.append((bundles, matmuls[-1]))
    leaves = [part for part in parts if not any(_holds(part, other) for other in parts)]
    if not leaves or not matmuls[-1]:
        return None
    block = max(leaves, key=lambda part: part[2])
    row = sum(size for _, size, multiplications in leaves if not multiplications)
    return Cycles(step=bundles - block[1] - row, block=block[1], row=row)


def _holds(part: tuple[int, int, int], other: tuple[int, int, int]) -> bool:
    return part != other and part[0] <= other[0] and other[0] + other[1] <= part[0] + part[1]


def _path(chip: str, blocks: Blocks) -> Path:
    import importlib.metadata

    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "seq2see" / "bundles"
    name = "-".join(str(value) for value in asdict(blocks).values())
    return cache / f"{importlib.metadata.version('libtpu')}-{chip}-{name}.json"


def _cached(chip: str, blocks: Blocks) -> dict[str, Cycles]:
    try:
        saved = json.loads(_path(chip, blocks).read_text())
        return {name: Cycles(**values) for name, values in saved.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _cache(chip: str, blocks: Blocks, found: dict[str, Cycles]) -> None:
    try:
        path = _path(chip, blocks)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({name: asdict(value) for name, value in found.items()}))
    except OSError:
        pass  # It only saves time.


def compile_kernels(topology: str, blocks: Blocks) -> None:
    """Compile splash attention and its gradient for one head on one device."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.experimental import topologies
    from jax.experimental.pallas.ops.tpu.splash_attention import (
        SegmentIds,
        splash_attention_kernel,
        splash_attention_mask,
    )

    device = topologies.get_topology_desc(topology, "tpu").devices[0]
    mesh = jax.sharding.Mesh(np.array([device]), ("one",))
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    length = BLOCKS * max(blocks.query, blocks.key)
    sizes = splash_attention_kernel.BlockSizes(
        block_q=blocks.query, block_kv=blocks.key, block_kv_compute=blocks.compute,
        block_q_dkv=blocks.query, block_kv_dkv=blocks.key, block_kv_dkv_compute=blocks.compute,
        block_q_dq=blocks.query, block_kv_dq=blocks.key,
    )  # fmt: skip

    def attention(query: Any, key: Any, value: Any, segments: Any, gradient: Any) -> Any:
        mask = splash_attention_mask.MultiHeadMask([splash_attention_mask.CausalMask((length, length))])
        kernel: Any = splash_attention_kernel.make_splash_mha(mask, block_sizes=sizes, head_shards=1, q_seq_shards=1)
        output, back = jax.vjp(lambda *arrays: kernel(*arrays, SegmentIds(segments, segments)), query, key, value)
        return output, back(gradient)

    heads = jax.ShapeDtypeStruct((1, length, blocks.head_width), jnp.bfloat16, sharding=everywhere)
    ids = jax.ShapeDtypeStruct((length,), jnp.int32, sharding=everywhere)
    with jax.set_mesh(mesh):
        jax.jit(attention).lower(heads, heads, heads, ids, heads).compile()


if __name__ == "__main__":
    from launch.plans.topology import ENVIRONMENT

    os.environ.update(ENVIRONMENT)
    compile_kernels(sys.argv[1], Blocks(*map(int, sys.argv[2:])))
