"""SASRec with a softmax over all items: the strong sequential baseline of the card.

W.-C. Kang and J. McAuley, "Self-Attentive Sequential Recommendation", ICDM 2018; the full softmax instead of sampled
negatives is what makes it strong (Klenitskiy and Vasilev, RecSys 2023).
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from examples.movielens.baselines import Scorer
from examples.movielens.data import MovieLens
from examples.movielens.windows import batches, epoch_windows

WINDOW = 50
HIDDEN = 64
EPOCHS = 60
DROPOUT = 0.4
LEARNING_RATE = 1e-3
BATCH_EVENTS = 1600


class SASRec(nn.Module):
    def __init__(self, num_items: int) -> None:
        super().__init__()
        self.items = nn.Embedding(num_items, HIDDEN)
        self.positions = nn.Embedding(WINDOW, HIDDEN)
        self.dropout = nn.Dropout(DROPOUT)
        layer = nn.TransformerEncoderLayer(
            HIDDEN, nhead=2, dim_feedforward=4 * HIDDEN, dropout=DROPOUT, batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, num_layers=2, norm=nn.LayerNorm(HIDDEN), enable_nested_tensor=False)
        for embedding in (self.items, self.positions):
            nn.init.normal_(embedding.weight, std=0.02)

    def forward(self, items: Tensor) -> Tensor:
        """items [batch, length] → a logit per item for each next event [batch, length, items]."""
        length = items.shape[1]
        hidden = self.dropout(self.items(items) + self.positions.weight[:length])
        future = nn.Transformer.generate_square_subsequent_mask(length)
        return self.layers(hidden, mask=future, is_causal=True) @ self.items.weight.T


def train_sasrec(data: MovieLens, seed: int) -> Scorer:
    torch.manual_seed(seed)
    random = np.random.default_rng(seed)
    model = SASRec(data.num_items).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.01, fused=True)
    for _ in tqdm(range(EPOCHS), desc="training (SASRec)", unit="epoch", dynamic_ncols=True):
        for batch in batches(epoch_windows(data, WINDOW, random), BATCH_EVENTS, random):
            items = torch.from_numpy(batch)
            logits = model(items[:, :-1].clamp(min=0))
            loss = F.cross_entropy(logits.flatten(0, 1), items[:, 1:].flatten(), ignore_index=-1)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
    model.eval()

    @torch.inference_mode()
    def score(history: np.ndarray) -> np.ndarray:
        return model(torch.from_numpy(history[None, -WINDOW:].copy()))[0, -1].numpy()

    return score
