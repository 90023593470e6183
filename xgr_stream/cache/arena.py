"""Host memory for copies of users' prefixes."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from contextlib import suppress

import torch

from xgr_stream.cache.budget import within_budget
from xgr_stream.cache.extents import Extents, Run
from xgr_stream.cache.pool import PagePool
from xgr_stream.errors import ConfigError


class HostArena:
    """Pages of host memory, pinned if the pool is on a CUDA device: allocated once, as large as it will ever be.

    `pages`: [layers, num_pages, 2, kv_heads, page_size, head_dim], keys and values; so a run of pages is one piece of
    memory a layer. `hidden`: [num_pages, hidden]; a copy's hidden state is in the row of its first page.
    """

    def __init__(self, pool: PagePool, hidden: torch.Tensor, num_pages: int) -> None:
        """For copies out of this pool and rows of `hidden`."""
        layers, _, kv_heads, page_size, head_dim = pool.k.shape
        with within_budget("host_bytes", num_pages * self.bytes_per_page(pool, hidden)):
            self.pages = torch.empty((layers, num_pages, 2, kv_heads, page_size, head_dim), dtype=pool.k.dtype)
            self.hidden = torch.empty((num_pages, hidden.shape[1]), dtype=hidden.dtype)
        self.free = Extents("pages of host memory", num_pages)
        self._page_bytes = self.pages.view(torch.uint8).numpy().reshape(layers, num_pages, -1)
        self._hidden_bytes = self.hidden.view(torch.uint8).numpy()
        if pool.k.is_cuda:
            for tensor in (self.pages, self.hidden):
                _pin(tensor, self)

    @staticmethod
    def bytes_per_page(pool: PagePool, hidden: torch.Tensor) -> int:
        """Of such an arena, a hidden state included."""
        return pool.bytes_per_page + hidden.shape[1] * hidden.dtype.itemsize

    @property
    def num_pages(self) -> int:
        return self.free.size

    @property
    def page_size(self) -> int:
        """Tokens per page."""
        return self.pages.shape[4]

    @property
    def page_bytes(self) -> int:
        return (self.pages.nbytes + self.hidden.nbytes) // max(1, self.num_pages)

    def views(self, runs: Sequence[Run]) -> list[memoryview]:
        """All bytes of a copy in these runs, in an order that depends on nothing else: a view of each piece."""
        pieces = [self._page_bytes[layer, first:stop] for layer in range(len(self.pages)) for first, stop in runs]
        return [piece.reshape(-1).data for piece in (self._hidden_bytes[runs[0][0]], *pieces)]


def _pin(tensor: torch.Tensor, owner: HostArena) -> None:
    """Pin memory where it is, for as long as its owner lives: torch's pinned allocator would round 100 GB up to 128."""
    if not tensor.nbytes:
        return
    runtime = torch.cuda.cudart()
    address = tensor.data_ptr()
    failure = int(runtime.cudaHostRegister(address, tensor.nbytes, 0))
    if failure:
        with suppress(RuntimeError):  # CUDA reports a failure once more, to whoever launches next: not another engine
            torch.zeros(1, device="cuda")
        raise ConfigError(
            f"cache.host_bytes must be memory that can be pinned, not {tensor.nbytes} bytes (CUDA error {failure}): "
            "less of it, or a higher limit of locked memory"
        )
    weakref.finalize(owner, runtime.cudaHostUnregister, address)
