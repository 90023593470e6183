"""The errors of the wrappers: name the argument, what it was, and what it must be."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

Shape = tuple[int | None, ...]


def check_shape(name: str, tensor: Tensor, shape: Shape) -> None:
    """Raise ValueError unless `tensor` has this shape; None stands for any size."""
    if not _fits(tensor.shape, shape):
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise ValueError(f"{name} must have shape [{wanted}], not {list(tensor.shape)}")


@functools.lru_cache(maxsize=4096)  # a decode checks a hundred shapes, 3 µs each, and most of them again and again
def _fits(actual: torch.Size, shape: Shape) -> bool:
    return len(actual) == len(shape) and all(want in (None, size) for want, size in zip(shape, actual, strict=True))


def check_heads(heads: int, kv_heads: int) -> None:
    """Raise ValueError unless the query heads divide into groups of one KV head each."""
    if kv_heads < 1 or heads % kv_heads:
        raise ValueError(f"q must have a multiple of the {kv_heads} KV heads, not {heads} heads")


def check_pages(k_pages: Tensor, v_pages: Tensor, dim: int, *, any_size: bool = False) -> None:
    """Raise ValueError unless both are contiguous [pages, kv_heads, page_size, dim] of one dtype, page_size a power of
    two unless it may be of `any_size`."""
    check_shape("k_pages", k_pages, (None, None, None, dim))
    check_shape("v_pages", v_pages, tuple(k_pages.shape))
    if v_pages.dtype != k_pages.dtype:
        raise ValueError(f"v_pages must be {k_pages.dtype} like k_pages, not {v_pages.dtype}")
    if not (k_pages.is_contiguous() and v_pages.is_contiguous()):
        raise ValueError("k_pages and v_pages must be contiguous")
    page_size = k_pages.shape[2]
    if not any_size and (page_size < 1 or page_size & (page_size - 1)):
        raise ValueError(f"k_pages must have a power of two as their page size, not {page_size}")


def check_kv_scales(kv_scales: Tensor | None, pages: Tensor) -> None:
    """Raise ValueError unless FP8 pages, and no others, come with contiguous float32 scales [2, kv_heads]."""
    if kv_scales is None:
        if pages.dtype == torch.float8_e4m3fn:
            raise ValueError("kv_scales must be given for pages in FP8, not None")
        return
    if pages.dtype != torch.float8_e4m3fn:
        raise ValueError(f"kv_scales must be None for pages of {pages.dtype}, which hold keys and values as they are")
    check_shape("kv_scales", kv_scales, (2, pages.shape[1]))
    if kv_scales.dtype != torch.float32 or not kv_scales.is_contiguous():
        raise ValueError(f"kv_scales must be contiguous float32, not {kv_scales.dtype} of {kv_scales.stride()}")


def check_scales(row_scale: Tensor | None, column_scale: Tensor | None, rows: int, columns: int) -> None:
    """Raise ValueError unless each that is given is contiguous float32, row_scale [rows, 1], column_scale [columns]."""
    for name, scale, shape in (("row_scale", row_scale, (rows, 1)), ("column_scale", column_scale, (columns,))):
        if scale is None:
            continue
        check_shape(name, scale, shape)
        if scale.dtype != torch.float32:
            raise ValueError(f"{name} must be float32, not {scale.dtype}")
        if not scale.is_contiguous():
            raise ValueError(f"{name} must be contiguous")


def check_out_scales(out_scales: Tensor | None, kv_heads: int) -> None:
    """Raise ValueError unless `out_scales`, where given, are a number for each KV head."""
    if out_scales is None:
        return
    check_shape("out_scales", out_scales, (kv_heads,))
    if out_scales.dtype != torch.float32:
        raise ValueError(f"out_scales must be float32, not {out_scales.dtype}")
