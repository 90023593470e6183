"""The training loop: AdamW, warm-up and cosine, an average of the late weights."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from examples.movielens.data import MovieLens
from examples.movielens.decoder import Decoder, Shape
from examples.movielens.windows import batches, epoch_windows


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that decides the result of a training, the seed included."""

    name: str
    shape: Shape
    epochs: int
    dropout: float
    smoothing: float = 0.1
    learning_rate: float = 2e-3
    warmup_steps: int = 60
    weight_decay: float = 0.1
    batch_events: int = 800
    """Events in a batch, padding included."""
    window_events: int = 200
    """Events in context, in training and (through xgr.json) when the model is served."""
    average: float = 0.99
    """Decay of the running average of the weights, which is what is kept; it starts after 30 % of the steps."""
    seed: int = 0


def fit(data: MovieLens, sids: np.ndarray, recipe: Recipe) -> Decoder:
    """Train a decoder on every user's training events. `sids` [items, levels]. The same seed and number of threads
    give the same weights on the same machine."""
    torch.manual_seed(recipe.seed)
    random = np.random.default_rng(recipe.seed)
    tokens = torch.from_numpy(_item_tokens(sids, recipe.shape))
    decoder = Decoder(recipe.shape, recipe.dropout).train()
    optimizer = _optimizer(decoder, recipe)
    epochs = [
        batches(epoch_windows(data, recipe.window_events, random), recipe.batch_events, random)
        for _ in range(recipe.epochs)
    ]
    total = sum(map(len, epochs))
    average = _Average(decoder, recipe.average, first_step=int(0.3 * total))
    progress = tqdm(total=total, desc=f"training ({recipe.name})", unit="step", dynamic_ncols=True, mininterval=0.5)
    for number, epoch in enumerate(epochs, start=1):
        losses = []
        for batch in epoch:
            _set_learning_rate(optimizer, recipe, progress.n, total)
            losses.append(_step(decoder, optimizer, tokens[batch].flatten(1), recipe.smoothing))
            average.update(progress.n)
            progress.update()
        progress.set_postfix_str(f"epoch {number}/{recipe.epochs}, loss {np.mean(losses):.3f}")
    progress.close()
    average.copy_to(decoder)
    return decoder.eval()


def _item_tokens(sids: np.ndarray, shape: Shape) -> np.ndarray:
    """[items + 1, levels] int64: each item's tokens; the last row, which index -1 reaches, is padding."""
    tokens = sids.astype(np.int64) + np.arange(shape.levels) * shape.codes
    return np.concatenate([tokens, np.full((1, shape.levels), -1)])


def _optimizer(decoder: Decoder, recipe: Recipe) -> torch.optim.Optimizer:
    matrices = [parameter for parameter in decoder.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in decoder.parameters() if parameter.ndim == 1]
    groups = [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.98), fused=True)


def _set_learning_rate(optimizer: torch.optim.Optimizer, recipe: Recipe, step: int, total: int) -> None:
    rise = min(1.0, (step + 1) / recipe.warmup_steps)
    fall = max(0.02, 0.5 * (1 + math.cos(math.pi * step / total)))
    for group in optimizer.param_groups:
        group["lr"] = recipe.learning_rate * rise * fall


def _step(decoder: Decoder, optimizer: torch.optim.Optimizer, tokens: Tensor, smoothing: float) -> float:
    """One step on tokens [windows, events * levels]; returns the loss."""
    loss = decoder.sid_loss(tokens, smoothing)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
    optimizer.step()
    return loss.item()


class _Average:
    """A running average of the weights."""

    def __init__(self, decoder: Decoder, decay: float, first_step: int) -> None:
        self._live = [parameter.detach() for parameter in decoder.parameters()]
        self._mean = [parameter.clone() for parameter in self._live]
        self._decay, self._first_step = decay, first_step

    def update(self, step: int) -> None:
        weight = 1 - self._decay if step > self._first_step else 1.0
        torch._foreach_lerp_(self._mean, self._live, weight)

    def copy_to(self, decoder: Decoder) -> None:
        for live, mean in zip(self._live, self._mean, strict=True):
            live.copy_(mean)
