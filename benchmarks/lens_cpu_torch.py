"""The other sides of `benchmarks.lens_cpu`: `transformers` with eager attention, and TransformerLens around it.

Started by that program with a JSON object of settings; needs PyTorch and transformers, and nothing of ours but
`benchmarks.sides`.
"""

# pyright: reportMissingImports=false

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch
import transformers

from benchmarks.sides import serve


class Looker:
    """A Llama of a shape with random weights, and a text."""

    def __init__(self, settings: dict[str, Any]) -> None:
        config = transformers.LlamaConfig(
            vocab_size=settings["vocabulary"], hidden_size=settings["width"], intermediate_size=settings["hidden"],
            num_hidden_layers=settings["layers"], num_attention_heads=settings["heads"],
            num_key_value_heads=settings["kv_heads"], max_position_embeddings=2048, tie_word_embeddings=True,
            attn_implementation="eager",
        )  # fmt: skip
        network = transformers.LlamaForCausalLM(config).eval()
        tokens_1T = torch.randint(3, settings["vocabulary"], (1, settings["length"]))
        self.runs: dict[str, Callable[[], Any]] = {
            "forward": lambda: network(tokens_1T, use_cache=False),
            "record": lambda: network(tokens_1T, use_cache=False, output_attentions=True),
        }
        if settings["lens"]:
            bridge = bridged(network)
            patterns = lambda name: name.endswith("hook_pattern")  # noqa: E731
            self.runs = {
                "forward": lambda: bridge(tokens_1T),
                "record": lambda: bridge.run_with_cache(tokens_1T, names_filter=patterns),
            }

    def run(self, name: str) -> Callable[[float], dict[str, float]]:
        """A function that measures one of the runs."""

        @torch.inference_mode()
        def measure(_: float) -> dict[str, float]:
            began, processor = time.perf_counter(), time.process_time()
            self.runs[name]()
            return {"seconds": time.perf_counter() - began, "processor": time.process_time() - processor}

        return measure


def bridged(network: Any) -> Any:
    """TransformerLens's form of a network; it wants a tokenizer too, of which nothing is used."""
    from tokenizers import Tokenizer, models
    from transformer_lens.model_bridge import TransformerBridge

    words = Tokenizer(models.WordLevel({"0": 0, "1": 1, "2": 2}, unk_token="0"))
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="1", eos_token="2", pad_token="0", unk_token="0"
    )
    with tempfile.TemporaryDirectory() as folder:
        network.config.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return TransformerBridge.boot_transformers(folder, hf_model=network, device="cpu")


def main() -> None:
    """Serve lines until there are none."""
    looker = Looker(json.loads(sys.argv[1]))
    version = f"{transformers.__version__}, torch {torch.__version__}"
    serve({"version": version, "threads": torch.get_num_threads()}, **{name: looker.run(name) for name in looker.runs})


if __name__ == "__main__":
    main()
