"""The other side of `benchmarks.train_cpu`: nanoGPT's shapes in plain PyTorch modules, trained step by step.

Started by that program with a JSON object of settings; needs PyTorch, and nothing of ours but
`benchmarks.sides`.

Shapes: B batch, T length, D model width, N heads, H head width, V vocabulary.
"""

# pyright: reportMissingImports=false

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from benchmarks.sides import fastest, serve


class Block(nn.Module):
    """Pre-norm block of causal attention and a feed-forward layer four times as wide, without biases."""

    def __init__(self, width: int, heads: int, exact: bool, dropout: float) -> None:
        super().__init__()
        self.heads, self.exact = heads, exact
        self.attention_norm, self.feed_forward_norm = (nn.LayerNorm(width, bias=False) for _ in range(2))
        self.query_key_value = nn.Linear(width, 3 * width, bias=False)
        self.output = nn.Linear(width, width, bias=False)
        self.up, self.down = nn.Linear(width, 4 * width, bias=False), nn.Linear(4 * width, width, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        """Map the residual stream [B,T,D] to itself."""
        B, T, D = x_BTD.shape
        joined = self.query_key_value(self.attention_norm(x_BTD)).split(D, dim=2)
        query, key, value = (x.view(B, T, self.heads, D // self.heads).transpose(1, 2) for x in joined)
        read_BNTH = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x_BTD = x_BTD + self.dropout(self.output(read_BNTH.transpose(1, 2).reshape(B, T, D)))
        hidden = F.gelu(self.up(self.feed_forward_norm(x_BTD)), approximate="none" if self.exact else "tanh")
        return x_BTD + self.dropout(self.down(hidden))


class Decoder(nn.Module):
    """GPT-2: learned positions, blocks, a final norm, and the embedding as the output layer."""

    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__()
        width, vocabulary = settings["width"], settings["vocabulary"]
        self.tokens, self.positions = nn.Embedding(vocabulary, width), nn.Embedding(settings["length"], width)
        self.dropout = nn.Dropout(settings["dropout"])
        self.blocks = nn.ModuleList(
            Block(width, settings["heads"], settings["exact_gelu"], settings["dropout"])
            for _ in range(settings["layers"])
        )
        self.norm = nn.LayerNorm(width, bias=False)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                last = name.endswith(("output.weight", "down.weight"))
                nn.init.normal_(parameter, std=0.02 / ((2 * settings["layers"]) ** 0.5 if last else 1.0))

    def forward(self, tokens_BT: torch.Tensor, targets_BT: torch.Tensor) -> torch.Tensor:
        """The mean cross entropy."""
        places_T = torch.arange(tokens_BT.shape[1])
        x_BTD = self.dropout(self.tokens(tokens_BT) + self.positions(places_T))
        for block in self.blocks:
            x_BTD = block(x_BTD)
        logits_BTV = F.linear(self.norm(x_BTD), self.tokens.weight)
        return F.cross_entropy(logits_BTV.flatten(0, 1), targets_BT.flatten())


class Trainer:
    """AdamW with decay on the matrices, gradients clipped to norm 1; bfloat16 by autocast over float32 weights."""

    def __init__(self, settings: dict[str, Any]) -> None:
        torch.manual_seed(0)
        self.settings, self.module = settings, Decoder(settings)
        self.parameters = list(self.module.parameters())
        matrices, scales = ([p for p in self.parameters if (p.ndim == 2) is wanted] for wanted in (True, False))
        groups = [{"params": matrices, "weight_decay": 0.1}, {"params": scales, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95), fused=True)
        shape = (8, 2, settings["batch"], settings["length"])
        self.data = torch.randint(settings["vocabulary"], shape, generator=torch.Generator().manual_seed(0))
        self.forward = torch.compile(self.module) if settings["compile"] else self.module
        self.steps = 0

    def step(self) -> float:
        """One optimizer step; its loss."""
        tokens_BT, targets_BT = self.data[self.steps % len(self.data)]
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.settings["dtype"] == "bfloat16"):
            loss = self.forward(tokens_BT, targets_BT)
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.steps += 1
        return loss.item()

    def train(self, seconds: float) -> dict[str, float]:
        """As many steps as begin within so many seconds, after one that is not timed."""
        self.step()  # Memory that has lain idle may have been taken away.
        began, first = time.perf_counter(), self.steps
        loss = float("nan")
        while self.steps == first or time.perf_counter() - began < seconds:
            loss = self.step()
        return {"steps": self.steps - first, "seconds": time.perf_counter() - began, "loss": loss}


def peak(seconds: float) -> dict[str, float]:
    """FLOP/s of the fastest of several float32 matmuls."""

    def square(size: int) -> Callable[[], object]:
        a = torch.randn(size, size)
        return lambda: torch.mm(a, a)

    return {"flops_per_second": fastest(square, seconds)}


def main() -> None:
    """Serve lines until there are none."""
    settings = json.loads(sys.argv[1])
    trainer = Trainer(settings)
    trainer.step()  # Compiles, where that is asked, and takes memory.
    facts = {"version": torch.__version__, "threads": torch.get_num_threads()}
    serve(facts, train=trainer.train, peak=peak)


if __name__ == "__main__":
    main()
