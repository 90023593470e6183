"""Attention over pages by paged_hopper.cu: what paged.py's attend_kernel does, for Hopper's matrix units."""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path

import torch
from torch import Tensor

from xgr_kernels import cuda_cpp
from xgr_kernels.attention_plan import Plan

ROWS, KEYS, DIM = 128, 128, 128
"""Of a block's tile, of a tile of keys, and of a head."""
HALF = 64
"""Half a tile of keys, which lies in one page."""
THREADS = 3 * 128
SHARED_BYTES = 2 * (ROWS * DIM + 2 * 3 * KEYS * DIM) + 8 * (4 * 3 + 1)
"""Queries, three tiles of keys and of values, and the barriers."""


class Call(ctypes.Structure):
    """The kernel's one argument, as paged_hopper.cu has it."""

    _fields_ = (
        *((name, cuda_cpp.TensorMap) for name in ("k_pages", "v_pages")),
        *((name, ctypes.c_void_p) for name in ("out", "partial", "log_totals", "items", "q", "page_table", "lengths")),
        *((name, ctypes.c_void_p) for name in ("suffix_k", "suffix_v", "ancestors", "out_scales")),
        *((name, ctypes.c_int) for name in ("work", "kv_heads", "steps", "table_stride", "q_stride", "head_stride")),
        *((name, ctypes.c_int) for name in ("step_stride", "suffix_stride", "ancestors_stride", "settled")),
        ("scale", ctypes.c_float),
        ("unused", ctypes.c_ubyte * 56),  # a tensor map's alignment
    )


def attend(
    out: Tensor, plan: Plan, q: Tensor, k_pages: Tensor, v_pages: Tensor, page_table: Tensor, lengths: Tensor,
    suffix_k: Tensor, suffix_v: Tensor, ancestors: Tensor, out_scales: Tensor | None, sizes: tuple[int, ...],
    *, scale: float, causal: bool, dependent: bool,
) -> None:  # fmt: skip
    """`sizes`: steps, then the strides of page_table, q (two), suffix_k (two) and ancestors."""
    kv_heads, page_size = k_pages.shape[1:3]
    work = plan.items.shape[0] * kv_heads
    tensors = (out, plan.partial, plan.log_totals, plan.items, q, page_table, lengths, suffix_k, suffix_v, ancestors)
    call = Call(
        *(cuda_cpp.swizzled_rows(pages.view(-1, DIM), (HALF, DIM // 2)) for pages in (k_pages, v_pages)),
        *(tensor.data_ptr() for tensor in tensors), None if out_scales is None else out_scales.data_ptr(),
        work, kv_heads, *sizes, plan.settled, scale,
    )  # fmt: skip
    definitions = (
        f"DTYPE={_NAMES[q.dtype]}", f"GROUP={q.shape[1] // kv_heads}", f"PAGE_SIZE={page_size}",
        f"CAUSAL={causal:d}", f"OUT_FP8={out_scales is not None:d}",
        f"CALL_BYTES={ctypes.sizeof(Call)}",
    )  # fmt: skip
    kernel = _kernel(q.device, definitions)
    kernel.launch(min(work, kernel.multiprocessors), call, dependent=dependent)


def readable(tensor: Tensor) -> Tensor:
    """The tensor, copied unless each of its rows can be read by 16 bytes at a time."""
    aligned = tensor.data_ptr() % 16 == 0 and all(stride % 8 == 0 for stride in tensor.stride()[:-1])
    return tensor if aligned and tensor.stride(-1) == 1 else tensor.clone(memory_format=torch.contiguous_format)


_NAMES = {torch.bfloat16: "bf16", torch.float16: "f16"}


@functools.cache
def _kernel(device: torch.device, definitions: tuple[str, ...]) -> cuda_cpp.Kernel:
    return cuda_cpp.Kernel(Path(__file__).with_suffix(".cu"), "attend", THREADS, SHARED_BYTES, definitions, device)
