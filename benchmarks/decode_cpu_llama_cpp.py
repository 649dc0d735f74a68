"""A side of `benchmarks.decode_cpu`: llama.cpp's server within the process, from `xllamacpp`'s compiled wheel.

Started by that program with a JSON object of settings; needs xllamacpp and gguf, and nothing of ours but
`benchmarks.sides`.
"""

# pyright: reportMissingImports=false

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import xllamacpp
from gguf import GGMLQuantizationType, GGUFWriter, quants

from benchmarks.sides import serve


def write_llama(path: Path, settings: dict[str, Any]) -> None:
    """A file of a Llama of a shape with random weights, and of as many words as its vocabulary has."""
    random, writer = np.random.default_rng(0), GGUFWriter(path, "llama")
    kind = {"float32": GGMLQuantizationType.F32, "bfloat16": GGMLQuantizationType.BF16}[settings["dtype"]]
    D, F, N, K = (settings[name] for name in ("width", "hidden", "heads", "kv_heads"))
    writer.add_block_count(settings["layers"])
    writer.add_context_length(2048)
    writer.add_embedding_length(D)
    writer.add_feed_forward_length(F)
    writer.add_head_count(N)
    writer.add_head_count_kv(K)
    writer.add_rope_dimension_count(D // N)
    writer.add_rope_freq_base(100_000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([f"<{number}>" for number in range(settings["vocabulary"])])
    writer.add_token_types([1] * settings["vocabulary"])
    writer.add_token_merges(["< 0"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)

    def add(name: str, *shape: int) -> None:
        if len(shape) == 1:
            return writer.add_tensor(f"{name}.weight", np.ones(shape, np.float32))
        weights = quants.quantize(0.02 * random.standard_normal(shape, np.float32), kind)
        return writer.add_tensor(f"{name}.weight", weights, raw_dtype=kind)

    add("token_embd", settings["vocabulary"], D)  # No `output`: it is tied.
    add("output_norm", D)
    for layer in range(settings["layers"]):
        shapes = {
            "attn_norm": (D,), "attn_q": (D, D), "attn_k": (K * D // N, D), "attn_v": (K * D // N, D),
            "attn_output": (D, D), "ffn_norm": (D,), "ffn_gate": (F, D), "ffn_up": (F, D), "ffn_down": (D, F),
        }  # fmt: skip
        for name, shape in shapes.items():
            add(f"blk.{layer}.{name}", *shape)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class Writer:
    """A server with a place for every prompt, which are continued at once."""

    def __init__(self, settings: dict[str, Any]) -> None:
        random, params = np.random.default_rng(0), xllamacpp.CommonParams()
        batch, length = settings["batch"], settings["prompt"] + settings["many"]
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "llama.gguf"
            write_llama(path, settings)
            params.model.path = str(path)
            params.n_parallel, params.n_ctx = batch, batch * (length + 16)
            params.cpuparams.n_threads = params.cpuparams_batch.n_threads = os.cpu_count() or 1
            params.warmup, params.verbosity, params.cache_prompt, params.cache_ram_mib = True, -1, False, 0
            self.server = xllamacpp.Server(params)
        shape = batch, settings["prompt"]
        self.prompts = random.integers(3, settings["vocabulary"], size=shape).tolist()
        self.write(settings["few"])

    def write(self, tokens: float) -> dict[str, float]:
        """Seconds of continuing every prompt by so many tokens, and of all processors together."""

        def of_prompt(prompt: list[int]) -> int:
            request = {"prompt": prompt, "n_predict": int(tokens), "temperature": 0, "ignore_eos": True}
            answer = self.server.handle_completions({**request, "max_tokens": int(tokens), "cache_prompt": False})
            return answer["usage"]["completion_tokens"]

        began, busy = time.perf_counter(), time.process_time()
        with ThreadPoolExecutor(len(self.prompts)) as threads:
            written = list(threads.map(of_prompt, self.prompts))
        assert written == [tokens] * len(self.prompts), written
        return {"seconds": time.perf_counter() - began, "cpu": time.process_time() - busy}


def main() -> None:
    """Serve lines until there are none."""
    settings = json.loads(sys.argv[1])
    # The library writes its log where our answers go: keep a copy of that for us, and let the log go nowhere.
    ours, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    sys.stdout = os.fdopen(ours, "w")
    writer = Writer(settings)
    serve({"version": xllamacpp.__version__, "threads": os.cpu_count()}, write=writer.write)
    os._exit(0)  # Its threads do not end by themselves.


if __name__ == "__main__":
    main()
