"""The beams' own tokens in one decode, and their attention over prefix and suffix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from xgr_kernels.kv_write import kv_write, plan_kv_write
from xgr_kernels.staged_attention import plan_staged_attention, staged_attention, whole_prefixes
from xgr_stream.cache import PagePool
from xgr_stream.model import Decoder
from xgr_stream.model.decoder import Attend


class Suffix:
    """Keys and values [layers, steps, rows, kv_heads, head_dim] in the dtype computed in, whatever the cache's: a beam
    of step s keeps its token at [:, s, row]."""

    def __init__(
        self, decoder: Decoder, pool: PagePool, inputs: Mapping[str, Tensor], *, steps: int, rows: int
    ) -> None:
        layers, _, kv_heads, _, head_dim = pool.k.shape
        self._decoder = decoder
        self._pool = pool
        self._pages, self._lengths = inputs["pages"], inputs["lengths"]
        self._pool_k, self._pool_v = pool.k.unbind(), pool.v.unbind()
        # Read by every step.
        self._whole = None
        if steps > 1:
            self._whole = whole_prefixes(pool.k, pool.v, self._pages, self._lengths, pool.scales)
        self._k = pool.k.new_empty(layers, steps, rows, kv_heads, head_dim, dtype=decoder.dtype)
        self._v = torch.empty_like(self._k)
        # Each layer's, where a token is a page: views, of which each takes the host time again.
        self._k_pages, self._v_pages = (
            x.view(layers, steps * rows, kv_heads, 1, head_dim).unbind() for x in (self._k, self._v)
        )

    def step(
        self, number: int, positions: Tensor, ancestors: Tensor, row_starts: Tensor, *, each_alone: bool = False
    ) -> Attend:
        """Attention of step `number`: row r attends to its request's prefix and to the tokens of its `ancestors`
        [rows, steps] up to its own, which is written on the way. `each_alone`: the prefix is read for each row."""
        rows, heads = positions.shape[0], self._decoder.config.num_heads
        kv_heads, head_dim = self._k.shape[3:]
        k_pages: Sequence[Tensor] = self._pool_k
        v_pages: Sequence[Tensor] = self._pool_v
        pages: Tensor | None = self._pages
        lengths, kv_scales = self._lengths, self._pool.scales
        if each_alone:
            owner = torch.searchsorted(
                row_starts[1:].contiguous(), torch.arange(rows, device=row_starts.device), right=True
            )
            owner = owner.clamp_(max=len(lengths) - 1)
            pages, lengths = self._pages[owner], lengths[owner]
            row_starts = torch.arange(rows + 1, dtype=torch.int32, device=row_starts.device)
        elif self._whole is not None:
            (k_pages, v_pages), pages, kv_scales = self._whole, None, (None,) * len(kv_scales)
        slots = torch.arange(number * self._k.shape[2], number * self._k.shape[2] + rows, device=positions.device)
        write_plan = plan_kv_write(positions, slots, self._decoder.cos_sin)
        suffix_k, suffix_v = self._k[:, : number + 1].unbind(), self._v[:, : number + 1].unbind()
        ancestors = ancestors[:, : number + 1]
        plan = plan_staged_attention(
            row_starts,
            lengths,
            rows=rows,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            page_size=self._pool.page_size,
            dtype=self._k.dtype,
            page_dtype=self._pool.k.dtype,
        )

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor, /, **scaling: Tensor) -> Tensor:
            q = kv_write(
                q,
                k,
                v,
                positions=positions,
                slots=slots,
                cos_sin=self._decoder.cos_sin,
                k_pages=self._k_pages[layer],
                v_pages=self._v_pages[layer],
                q_norm=self._decoder.q_norm(layer),
                k_norm=self._decoder.k_norm(layer),
                eps=self._decoder.rms_eps,
                plan=write_plan,
                **scaling,
            )
            return staged_attention(
                q,
                k_pages[layer],
                v_pages[layer],
                pages,
                lengths,
                row_starts,
                suffix_k[layer],
                suffix_v[layer],
                ancestors,
                scale=head_dim**-0.5,
                kv_scales=kv_scales[layer],
                out_scales=self._decoder.attended_scales(layer),
                plan=plan,
            )

        return attend
