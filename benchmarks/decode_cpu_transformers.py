"""The other side of `benchmarks.decode_cpu`: `transformers`, greedy, with its default cache.

Started by that program with a JSON object of settings; needs PyTorch and transformers, and nothing of ours but
`benchmarks.sides`.
"""

# pyright: reportMissingImports=false

from __future__ import annotations

import json
import sys
import time
from typing import Any

import torch
import transformers

from benchmarks.sides import serve


class Writer:
    """A Llama of a shape with random weights, and prompts."""

    def __init__(self, settings: dict[str, Any]) -> None:
        config = transformers.LlamaConfig(
            vocab_size=settings["vocabulary"], hidden_size=settings["width"], intermediate_size=settings["hidden"],
            num_hidden_layers=settings["layers"], num_attention_heads=settings["heads"],
            num_key_value_heads=settings["kv_heads"], max_position_embeddings=2048, tie_word_embeddings=True,
        )  # fmt: skip
        self.network = transformers.LlamaForCausalLM(config).to(getattr(torch, settings["dtype"])).eval()
        self.tokens_BT = torch.randint(3, settings["vocabulary"], (settings["batch"], settings["prompt"]))
        self.write(settings["few"])

    @torch.inference_mode()
    def write(self, tokens: float) -> dict[str, float]:
        """Seconds of continuing every prompt by so many tokens, and of all processors together."""
        began, busy = time.perf_counter(), time.process_time()
        written_BT = self.network.generate(
            self.tokens_BT, attention_mask=torch.ones_like(self.tokens_BT), do_sample=False, pad_token_id=0,
            min_new_tokens=int(tokens), max_new_tokens=int(tokens),
        )  # fmt: skip
        assert written_BT.shape[1] == self.tokens_BT.shape[1] + tokens
        return {"seconds": time.perf_counter() - began, "cpu": time.process_time() - busy}


def main() -> None:
    """Serve lines until there are none."""
    writer = Writer(json.loads(sys.argv[1]))
    version = f"{transformers.__version__}, torch {torch.__version__}"
    serve({"version": version, "threads": torch.get_num_threads()}, write=writer.write)


if __name__ == "__main__":
    main()
