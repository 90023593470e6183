"""Attention over pages by paged_hopper.cu: what paged.py's attend_kernel does, for Hopper's matrix units."""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path

import torch
from torch import Tensor

from xgr_kernels import cuda_cpp

ROWS, KEYS = 128, 128
"""Of a block's tile; a tile of keys lies in two halves of pages."""
DIM = 128
HALF = 64
THREADS = 3 * 128
SHARED_BYTES = 2 * (ROWS * DIM + 2 * 3 * KEYS * DIM) + 8 * (4 * 3 + 1)
"""Queries, three tiles of keys and of values, and the barriers."""


def attend(
    out: Tensor, partial: Tensor, log_totals: Tensor, items: Tensor, q: Tensor, k_pages: Tensor, v_pages: Tensor,
    page_table: Tensor, lengths: Tensor, suffix_k: Tensor, suffix_v: Tensor, ancestors: Tensor,
    *sizes: int, scale: float, causal: bool, dependent: bool, settled: bool,
) -> None:  # fmt: skip
    """`sizes`: steps, then the strides of page_table, q (two), suffix_k (two) and ancestors."""
    kv_heads, page_size = k_pages.shape[1:3]
    arguments = (
        *map(cuda_cpp.address, (out, partial, log_totals, items, q)), _pages(k_pages), _pages(v_pages),
        *map(cuda_cpp.address, (page_table, lengths, suffix_k, suffix_v, ancestors)),
        *map(ctypes.c_int, (kv_heads, *sizes)), ctypes.c_float(scale), ctypes.c_int(settled),
    )  # fmt: skip
    group = q.shape[1] // kv_heads
    kernel = _kernel(q.device, q.dtype, group, page_size, causal)
    kernel.launch(items.shape[0] * kv_heads, arguments, dependent=dependent)


def readable(tensor: Tensor) -> Tensor:
    """The tensor, copied unless each of its rows can be read by 16 bytes at a time."""
    aligned = tensor.data_ptr() % 16 == 0 and all(stride % 8 == 0 for stride in tensor.stride()[:-1])
    return tensor if aligned and tensor.stride(-1) == 1 else tensor.clone(memory_format=torch.contiguous_format)


def _pages(pages: Tensor) -> cuda_cpp.Argument:
    return cuda_cpp.swizzled_rows(pages.view(-1, DIM), (HALF, DIM // 2))


@functools.cache
def _kernel(device: torch.device, dtype: torch.dtype, group: int, page_size: int, causal: bool) -> cuda_cpp.Kernel:
    definitions = (
        f"DTYPE={ {torch.bfloat16: 'bf16', torch.float16: 'f16'}[dtype] }", f"GROUP={group}", f"PAGE_SIZE={page_size}",
        f"CAUSAL={int(causal)}",
    )  # fmt: skip
    source = Path(__file__).with_suffix(".cu")
    with torch.cuda.device(device):
        return cuda_cpp.Kernel(source, "attend", THREADS, SHARED_BYTES, definitions)
