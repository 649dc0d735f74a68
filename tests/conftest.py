"""For all tests: eight simulated devices, and no silent mixing of dtypes or ranks."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from compiled_fast import COMPILED_FAST

os.environ["JAX_PLATFORMS"] = "cpu"
XLA_FLAGS = f"--xla_force_host_platform_device_count=8 {COMPILED_FAST}"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {XLA_FLAGS}"

import jax  # noqa: E402

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_collection_modifyitems(items: list) -> None:
    """Long ones first, so that no process is left with one of them when the others have ended."""
    items.sort(key=lambda item: item.get_closest_marker("end_to_end") is None)


MAPPINGS = Path("/proc/self/maps")
MOST_MAPPINGS = 20_000


@pytest.fixture(autouse=True, scope="module")
def _forget_programs() -> Iterator[None]:
    """Let go of compiled programs before they are too many.

    Linux allows a process 65,530 mappings; each compiled program takes several, and where none is left, XLA ends
    with a segmentation fault.
    """
    yield
    if MAPPINGS.exists() and MAPPINGS.read_bytes().count(b"\n") > MOST_MAPPINGS:
        jax.clear_caches()
