"""The pages that hold every user's keys and values."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from xgr_stream.cache.references import IntArray, ReferenceCounts
from xgr_stream.errors import EngineError


class PagePool:
    """Pages of `page_size` tokens, each with the keys and values of all layers, reference-counted.

    `k`, `v`: [layers, num_pages, kv_heads, page_size, head_dim]. The pool owns the memory; whoever allocated or
    retained a page may write to it until they release it.
    """

    scales: tuple[Tensor | None, ...]
    """Of each layer: what a head's keys (first row) and values (second row) in FP8 are to be multiplied by,
    [2, kv_heads] float32; None in any other dtype."""

    def __init__(
        self,
        *,
        layers: int,
        num_pages: int,
        page_size: int,
        kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
        scales: Tensor | None = None,
    ) -> None:
        """`scales` [layers, 2, kv_heads] float32: for pages in FP8 alone."""
        if (scales is not None) != (dtype == torch.float8_e4m3fn):
            raise EngineError(f"scales must be given for pages in FP8 alone, not {scales} for pages of {dtype}")
        shape = (layers, num_pages, kv_heads, page_size, head_dim)
        self.page_size = page_size
        self.k = _zeros(shape, dtype, device)
        self.v = _zeros(shape, dtype, device)
        self.scales = (None,) * layers if scales is None else scales.to(device).contiguous().unbind()
        self._pages = ReferenceCounts("pages", num_pages)

    @staticmethod
    def page_bytes(*, layers: int, page_size: int, kv_heads: int, head_dim: int, dtype: torch.dtype) -> int:
        """Bytes of one page: keys and values of all layers."""
        return 2 * layers * page_size * kv_heads * head_dim * dtype.itemsize

    @property
    def num_pages(self) -> int:
        return self._pages.size

    @property
    def num_free(self) -> int:
        return self._pages.num_free

    @property
    def bytes_per_page(self) -> int:
        layers, _, kv_heads, page_size, head_dim = self.k.shape
        return self.page_bytes(
            layers=layers, page_size=page_size, kv_heads=kv_heads, head_dim=head_dim, dtype=self.k.dtype
        )

    def pages_for(self, num_tokens: int) -> int:
        """Pages that hold `num_tokens` tokens."""
        return -(-num_tokens // self.page_size)

    def allocate(self, count: int) -> IntArray:
        """`count` free pages, held once by the caller; their content is whatever it was. Raises `OutOfMemory`."""
        return self._pages.allocate(count)

    def retain(self, pages: IntArray) -> None:
        self._pages.retain(pages)

    def release(self, pages: IntArray) -> None:
        self._pages.release(pages)

    def copy(self, source: int, target: int) -> None:
        """Make `target` hold what `source` holds. The caller must own `target` alone."""
        for pages in (self.k, self.v):
            words = as_words(pages)
            words[:, target] = words[:, source]

    def check_integrity(self, expected_holders: IntArray | None = None) -> None:
        """Raise `EngineError` unless free and held pages balance. `expected_holders` [num_pages], if known."""
        self._pages.check_integrity(expected_holders)


def as_words(pages: Tensor) -> Tensor:
    """The pages' memory as numbers that torch moves about in every way: FP8, of which it does not, two at a time as
    integers (a head's size is even)."""
    return pages.view(torch.int16) if pages.dtype == torch.float8_e4m3fn else pages


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros, because an unwritten slot is read (and weighted by zero), and NaN × 0 is NaN."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=torch.uint8 if dtype.itemsize == 1 else dtype, device=device).view(dtype)
    # NumPy's zeros are calloc's: the memory of pages that no user needs yet is not touched, so not taken.
    return torch.from_numpy(np.zeros(math.prod(shape) * dtype.itemsize, dtype=np.uint8)).view(dtype).view(shape)
