"""New tokens of many users → keys and values in their pages, and their last hidden states."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from xgr_kernels.append_attention import append_attention, plan_append_attention
from xgr_kernels.fp8 import FP8
from xgr_kernels.kv_write import kv_write, plan_kv_write
from xgr_stream.cache import Draft, PrefixCache
from xgr_stream.engine.context import TokenArray
from xgr_stream.engine.graph_cache import GraphCache
from xgr_stream.engine.graphs import Graphs
from xgr_stream.engine.lanes import Lane, Mark
from xgr_stream.engine.shapes import AppendShape
from xgr_stream.engine.staging import Int32Array, Staging
from xgr_stream.engine.switches import Switches
from xgr_stream.model import Model
from xgr_stream.model.decoder import Attend
from xgr_stream.model.layers import Style

GRAPH_TOKENS = 2048
"""Forwards of up to so many tokens are captured. Launched one by one, the kernels of 1,000 tokens took 20 ms of the
host's time instead of 5 of the card's."""
LARGE_SHAPES = 8
"""Of forwards that are not, kept at the same time."""


class Append(NamedTuple):
    """Tokens to compute for one user, behind `start` tokens whose keys and values are in the draft's pages."""

    draft: Draft
    start: int
    tokens: TokenArray


class _Piece(NamedTuple):
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
    """Runs appends on one lane, in forwards of at most `max_batch_tokens` tokens, each over several users."""

    def __init__(
        self,
        model: Model,
        cache: PrefixCache,
        lane: Lane,
        switches: Switches,
        graphs: GraphCache,
        *,
        max_batch_tokens: int,
        page_columns: int,
    ) -> None:
        """`page_columns`: pages of the longest prefix to expect; a longer one has its graphs captured anew."""
        self._decoder = model.decoder
        self._config = model.config
        self._cache = cache
        self._lane = lane
        self._max_batch_tokens = max_batch_tokens
        self._device = cache.hidden.device
        self._cuda = self._device.type == "cuda"
        self._graphs = Graphs(lane, graphs) if self._cuda and switches.graphs else None
        self._staging: dict[AppendShape, Staging] = {}
        self._page_columns = page_columns
        self.begun: Mark | None = None
        """Where the first forward begins that came since this was None."""

    @property
    def lane(self) -> Lane:
        return self._lane

    def run(self, appends: Sequence[Append]) -> None:
        """Write the keys and values of all tokens into the drafts' pages, and each draft's last hidden state; on CUDA
        this is under way when the call returns."""
        for pieces in _forwards(appends, self._max_batch_tokens):
            self._forward(pieces)

    def chunks(self, append: Append, chunk_tokens: int) -> Iterator[int]:
        """`run` of one append, in forwards of at most so many tokens, one for each step: its tokens."""
        for pieces in _forwards([append], min(chunk_tokens, self._max_batch_tokens)):
            self._forward(pieces)
            yield sum(piece.last - piece.first for piece in pieces)

    def _forward(self, pieces: Sequence[_Piece]) -> None:
        shape = self._shape(pieces)
        staging = self._staging_for(shape)

        def step(style: Style) -> None:
            self._compute(staging.tensors, style)

        styles = self._decoder.styles(shape.tokens)
        with self._lane.current():
            staging.send(lambda arrays: self._write(pieces, arrays))
            if self.begun is None:
                self.begun = self._lane.mark()
            if self._graphs is None or shape.tokens > GRAPH_TOKENS:
                step(styles[0])
            else:
                self._graphs.run(shape, step, styles)
        staging.read_by(self._lane.mark())

    def _shape(self, pieces: Sequence[_Piece]) -> AppendShape:
        tokens = sum([piece.last - piece.first for piece in pieces])
        columns = self._cache.pool.pages_for(max([piece.kv_tokens for piece in pieces]))
        if not self._cuda:
            return AppendShape(len(pieces), tokens, sum([piece.ends for piece in pieces]), columns)
        self._page_columns = max(self._page_columns, columns)
        return AppendShape.bucket(len(pieces), tokens, self._page_columns)

    def _staging_for(self, shape: AppendShape) -> Staging:
        staging = self._staging.get(shape)
        if staging is None:
            arrays = {
                "tokens": (shape.tokens,),
                "positions": (shape.tokens,),
                "slots": (shape.tokens,),
                "query_starts": (shape.users + 1,),
                "kv_lengths": (shape.users,),
                "wanted": (shape.wanted,),
                "wanted_starts": (shape.users + 1,),
                "hidden_slots": (shape.wanted,),
                "pages": (shape.users, shape.page_columns),
            }
            staging = Staging(arrays, self._device)
            if self._cuda:
                self._make_room_for(shape)
                self._staging[shape] = staging
        return staging

    def _make_room_for(self, shape: AppendShape) -> None:
        """Of shapes that no graph has, which are many, few are kept: each has pinned memory."""
        if shape.tokens > GRAPH_TOKENS:
            large = [kept for kept in self._staging if kept.tokens > GRAPH_TOKENS]
            if len(large) == LARGE_SHAPES:
                self._lane.mark().wait()  # it may still be read
                del self._staging[large[0]]

    def _write(self, pieces: Sequence[_Piece], arrays: Mapping[str, Int32Array]) -> None:
        """Fill a forward's host arrays. What a shape has beyond the pieces' is padding: tokens that are not written,
        users without tokens, hidden states that go to the slot that nobody reads."""
        # Piece by piece, number by number: the few tokens of one user, which a request may be waiting for, take half of
        # what they would take in operations on arrays of all.
        pool = self._cache.pool
        slots, query_starts, kv_lengths = arrays["slots"], arrays["query_starts"], arrays["kv_lengths"]
        wanted, wanted_starts, hidden_slots = arrays["wanted"], arrays["wanted_starts"], arrays["hidden_slots"]
        end = ends = 0
        for i, piece in enumerate(pieces):
            append, first, last = piece.append, piece.first, piece.last
            begin, end = end, end + last - first
            position, kv_length, pages = append.start + first, append.start + last, append.draft.pages
            num_pages = pool.pages_for(kv_length)
            arrays["pages"][i, :num_pages] = pages[:num_pages]
            arrays["tokens"][begin:end] = append.tokens[first:last]
            arrays["positions"][begin:end] = np.arange(position, kv_length)
            while begin < end:
                place, within = divmod(position, pool.page_size)
                slot, run = int(pages[place]) * pool.page_size + within, min(pool.page_size - within, end - begin)
                slots[begin : begin + run] = np.arange(slot, slot + run)
                begin, position = begin + run, position + run
            if piece.ends:  # of one that goes on in the next forward, keys and values are all that is needed
                wanted[ends], hidden_slots[ends] = end - 1, append.draft.hidden_slot
                ends += 1
            query_starts[i + 1], kv_lengths[i], wanted_starts[i + 1] = end, kv_length, ends
        query_starts[len(pieces) + 1 :], wanted_starts[len(pieces) + 1 :] = end, ends
        slots[end:], hidden_slots[ends:] = -1, self._cache.unread_slot

    def _compute(self, inputs: Mapping[str, Tensor], style: Style) -> None:
        wanted = inputs["wanted"].long()
        attend = self._attention(inputs, wanted)
        hidden = self._decoder.forward(inputs["tokens"].long(), attend, wanted, style)
        self._cache.hidden.index_copy_(0, inputs["hidden_slots"].long(), hidden)

    def _attention(self, inputs: Mapping[str, Tensor], wanted: Tensor) -> Attend:
        """Each user's new tokens over their prefix and each other; in the last layer the `wanted` tokens alone."""
        pool, config, decoder = self._cache.pool, self._config, self._decoder
        positions, slots = inputs["positions"].long(), inputs["slots"].long()
        pages, kv_lengths = inputs["pages"], inputs["kv_lengths"]
        query_starts, wanted_starts = inputs["query_starts"], inputs["wanted_starts"]
        sizes: dict[str, Any] = {
            "heads": config.num_heads,
            "kv_heads": config.num_kv_heads,
            "head_dim": config.head_dim,
            "page_size": pool.page_size,
            "dtype": decoder.dtype,
            "page_dtype": pool.k.dtype,
        }
        plan = plan_append_attention(query_starts, kv_lengths, tokens=len(positions), **sizes)
        write_plan = plan_kv_write(positions, slots, decoder.cos_sin)
        last_plan = plan_append_attention(wanted_starts, kv_lengths, tokens=len(wanted), **sizes)

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor, /, **scaling: Tensor) -> Tensor:
            self._lane.await_layer(layer)
            k_pages, v_pages, kv_scales = pool.k[layer], pool.v[layer], pool.scales[layer]
            q = kv_write(
                q,
                k,
                v,
                positions=positions,
                slots=slots,
                cos_sin=decoder.cos_sin,
                k_pages=k_pages,
                v_pages=v_pages,
                q_norm=decoder.q_norm(layer),
                k_norm=decoder.k_norm(layer),
                eps=decoder.rms_eps,
                kv_scales=kv_scales,
                plan=write_plan,
                **scaling,
            )
            last = layer == config.num_layers - 1
            out_scales = decoder.attended_scales(layer)
            if last:
                q = q[wanted]
                if not len(q):
                    return q if out_scales is None else q.to(FP8)
            return append_attention(
                q,
                k_pages,
                v_pages,
                pages,
                wanted_starts if last else query_starts,
                kv_lengths,
                scale=config.head_dim**-0.5,
                kv_scales=kv_scales,
                out_scales=out_scales,
                plan=last_plan if last else plan,
            )

        return attend


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
