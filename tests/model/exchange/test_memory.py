"""Weights go to their devices tensor by tensor: what the host holds meanwhile is bounded by the largest one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from folders import LLAMA, llama_tensors, write_folder

ROOT = Path(__file__).parents[3]
SIZES = {
    "vocab_size": 24_000, "hidden_size": 512, "num_hidden_layers": 6, "num_attention_heads": 8, "head_dim": 64,
    "intermediate_size": 2048,
}  # fmt: skip
# The kernel's count of the memory that is neither files' nor shared; sampled, since its own peak counts files' too.
PROGRAM = """
import re, sys, threading, time
import jax
from model import exchange

def memory():
    return int(re.search(r"RssAnon:\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024

exchange.read(sys.argv[1])  # What is imported and compiled stays; it is no part of what grows with the tensors.
before, peak, done = memory(), [0], threading.Event()

def watch():
    while not done.is_set():
        peak[0] = max(peak[0], memory())
        time.sleep(0.001)

thread = threading.Thread(target=watch)
thread.start()
imported = exchange.read(sys.argv[1])
done.set()
thread.join()
print(peak[0] - before, sum(leaf.nbytes for leaf in jax.tree.leaves(imported.params)))
"""


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="reads Linux's /proc")
def test_the_host_holds_the_largest_tensor_and_little_more(tmp_path):
    config = LLAMA | SIZES
    tensors = llama_tensors(config)
    folder = write_folder(tmp_path / "large", config, tensors)
    largest = max(value.nbytes for value in tensors.values())
    whole = sum(value.nbytes for value in tensors.values())
    assert whole > 170 * 2**20
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM, folder], cwd=ROOT, capture_output=True, text=True, check=True,
        # What is freed goes back to the system at once, so that the count is of what is held.
        env={"JAX_PLATFORMS": "cpu", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"},
    )  # fmt: skip
    peak, kept = map(int, ran.stdout.split())
    assert kept == whole
    assert kept <= peak  # Else nothing was measured.
    assert peak - kept <= 1.3 * largest, f"{(peak - kept) / largest:.2f} x the largest tensor"
