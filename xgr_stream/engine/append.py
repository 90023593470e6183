"""New tokens of many users → keys and values in their pages, and their last hidden states."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xgr_kernels.append_attention import append_attention
from xgr_kernels.kv_write import kv_write
from xgr_stream.cache import Draft, PrefixCache
from xgr_stream.engine.context import TokenArray
from xgr_stream.engine.tables import page_table, to_device
from xgr_stream.model import Model


@dataclass(frozen=True, slots=True, eq=False)
class Append:
    """Tokens to compute for one user, behind `start` tokens whose keys and values are in the draft's pages."""

    draft: Draft
    start: int
    tokens: TokenArray


@dataclass(frozen=True, slots=True, eq=False)
class _Piece:
    """Tokens `first` to `last - 1` of an append, in one forward."""

    append: Append
    first: int
    last: int

    @property
    def ends(self) -> bool:
        return self.last == len(self.append.tokens)

    @property
    def kv_tokens(self) -> int:
        return self.append.start + self.last


class Appender:
    """Runs appends in forwards of at most `max_batch_tokens` tokens, each over several users."""

    def __init__(self, model: Model, cache: PrefixCache, max_batch_tokens: int) -> None:
        self._decoder = model.decoder
        self._config = model.config
        self._cache = cache
        self._max_batch_tokens = max_batch_tokens

    def run(self, appends: Sequence[Append]) -> None:
        """Write the keys and values of all tokens into the drafts' pages, and each draft's last hidden state."""
        for pieces in _forwards(appends, self._max_batch_tokens):
            self._forward(pieces)

    def _forward(self, pieces: Sequence[_Piece]) -> None:
        pool = self._cache.pool
        device = pool.k.device
        lengths = np.array([piece.last - piece.first for piece in pieces])
        starts = np.array([piece.append.start + piece.first for piece in pieces])
        query_starts = np.concatenate(([0], np.cumsum(lengths)))
        owner = np.repeat(np.arange(len(pieces)), lengths)
        positions = np.arange(query_starts[-1]) + (starts - query_starts[:-1])[owner]
        pages = page_table([p.append.draft.pages[: pool.pages_for(p.kv_tokens)] for p in pieces])
        slots = pages[owner, positions // pool.page_size].astype(np.int64) * pool.page_size + positions % pool.page_size

        # Of a piece that goes on in the next forward, keys and values are all that is needed.
        ends = [i for i, piece in enumerate(pieces) if piece.ends]
        wanted = to_device(query_starts[1:][ends] - 1, device)
        attend = _PrefixAttention(
            self,
            positions=to_device(positions, device),
            slots=to_device(slots, device),
            queries=_Queries.of(query_starts, starts + lengths, pages, device),
            last_queries=_Queries.of(np.arange(len(ends) + 1), (starts + lengths)[ends], pages[ends], device),
            wanted=wanted,
        )
        tokens = to_device(np.concatenate([p.append.tokens[p.first : p.last] for p in pieces]), device)
        hidden = self._decoder.forward(tokens, attend.positions, attend, wanted)
        slots_out = np.array([pieces[i].append.draft.hidden_slot[0] for i in ends], dtype=np.int64)
        self._cache.hidden[to_device(slots_out, device)] = hidden


@dataclass(frozen=True, slots=True, eq=False)
class _Queries:
    """Which tokens attend to what."""

    starts: Tensor
    """[users + 1] int32"""
    kv_lengths: Tensor
    """[users] int32: tokens that the user's last query sees."""
    page_table: Tensor
    """[users, max_pages] int32"""

    @classmethod
    def of(
        cls, starts: NDArray[np.int64], kv_lengths: NDArray[np.int64], pages: NDArray[np.int32], device: torch.device
    ) -> _Queries:
        return cls(
            to_device(starts.astype(np.int32), device),
            to_device(kv_lengths.astype(np.int32), device),
            to_device(pages, device),
        )


class _PrefixAttention:
    """Attention of one append forward: each user's new tokens over their prefix and each other; in the last layer
    the `wanted` tokens alone."""

    def __init__(
        self,
        appender: Appender,
        *,
        positions: Tensor,
        slots: Tensor,
        queries: _Queries,
        last_queries: _Queries,
        wanted: Tensor,
    ) -> None:
        self._decoder = appender._decoder
        self._pool = appender._cache.pool
        self._last_layer = appender._config.num_layers - 1
        self._scale = appender._config.head_dim**-0.5
        self.positions = positions
        self._slots = slots
        self._queries = queries
        self._last_queries = last_queries
        self._wanted = wanted

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        k_pages, v_pages = self._pool.k[layer], self._pool.v[layer]
        q = kv_write(
            q,
            k,
            v,
            positions=self.positions,
            slots=self._slots,
            cos_sin=self._decoder.cos_sin,
            k_pages=k_pages,
            v_pages=v_pages,
            q_norm=self._decoder.q_norm(layer),
            k_norm=self._decoder.k_norm(layer),
            eps=self._decoder.rms_eps,
        )
        queries = self._queries
        if layer == self._last_layer:
            q, queries = q[self._wanted], self._last_queries
            if not len(q):
                return q
        return append_attention(
            q, k_pages, v_pages, queries.page_table, queries.starts, queries.kv_lengths, scale=self._scale
        )


def _forwards(appends: Sequence[Append], max_tokens: int) -> Iterator[list[_Piece]]:
    """Cut the appends, in order, into forwards of at most `max_tokens` tokens."""
    pieces: list[_Piece] = []
    room = max_tokens
    for append in appends:
        first = 0
        while first < len(append.tokens):
            last = min(len(append.tokens), first + room)
            pieces.append(_Piece(append, first, last))
            room -= last - first
            first = last
            if not room:
                yield pieces
                pieces, room = [], max_tokens
    if pieces:
        yield pieces
