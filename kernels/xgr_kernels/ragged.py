"""Ragged batches as dense ones, for the references: rows padded per group, pages gathered, sizes put into classes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from xgr_kernels.fp8 import dequantise
from xgr_kernels.scales import in_float32


def size_classes(*sizes: Sequence[int]) -> list[list[int]]:
    """Split a batch so that padding a part to its largest member costs at most twice its own size, per dimension.

    sizes: each [batch], nonnegative. Returns the members of each class (equal bit lengths of all sizes).
    """
    classes: dict[tuple[int, ...], list[int]] = {}
    for member, own in enumerate(zip(*sizes, strict=True)):
        classes.setdefault(tuple(map(int.bit_length, own)), []).append(member)
    return list(classes.values())


def counts_of(starts: Sequence[int]) -> list[int]:
    """How many elements each group has, group i owning starts[i] : starts[i + 1]."""
    return [end - begin for begin, end in pairwise(starts)]


def owners(starts: Tensor) -> Tensor:
    """Which group each element belongs to, group i owning starts[i] : starts[i + 1]. [elements] int64"""
    if starts.shape[0] == 2:
        return torch.zeros(int(starts[-1]), dtype=torch.int64, device=starts.device)
    return torch.repeat_interleave(starts.diff())


def padded_index(starts: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Where the elements of each group lie: index [groups, most] and which of them are real [groups, most].

    starts, counts: [groups]. Padding points at element 0.
    """
    most = int(counts.max()) if counts.numel() else 0
    offsets = torch.arange(most, device=starts.device)
    real = offsets < counts[:, None]
    return (starts.long()[:, None] + offsets).masked_fill_(~real, 0), real


def keys_in_groups(group: Tensor, values: Tensor) -> Tensor:
    """One int64 for each group and int32 value, ascending as the groups, then as the values."""
    return group.long() * (1 << 31) + values


def contains(sorted_keys: Tensor, keys: Tensor) -> Tensor:
    """Which of `keys` [...] are among `sorted_keys` [n], of which there is one at least, both int64."""
    place = torch.searchsorted(sorted_keys, keys).clamp_(max=len(sorted_keys) - 1)
    return sorted_keys[place] == keys


def gather_pages(
    k_pages: Tensor, v_pages: Tensor, kv_scales: Tensor | None, page_table: Tensor, lengths: Sequence[int]
) -> list[Tensor]:
    """The keys and the values of the first `lengths` [batch] tokens of each table's pages, one copy each, zero behind
    them.

    k_pages, v_pages: [pages, kv_heads, page_size, dim]; kv_scales: of FP8 pages [2, kv_heads], which the result has
    been multiplied by; page_table: [batch, max_pages]. Returns of each [batch, kv_heads, longest, dim] in float32.
    """
    longest = max(lengths)
    scales = (None, None) if kv_scales is None else kv_scales.unbind()
    return [own[:, :, :longest] for own in join_pages((k_pages, v_pages), scales, page_table, lengths)]


def join_pages(
    pages: Sequence[Tensor], scales: Sequence[Tensor | None], page_table: Tensor, lengths: Sequence[int]
) -> list[Tensor]:
    """The same of any pages, each with its scales [kv_heads] or [batch, kv_heads] or None, contiguous, with what else
    the longest one's last page holds."""
    kv_heads, page_size, dim = pages[0].shape[1:]
    shortest, longest = min(lengths), max(lengths)
    used = -(-longest // page_size)
    table = page_table[:, None, :used].long().clamp(min=0)  # a table's unused tail may hold anything negative
    index = (table * kv_heads + torch.arange(kv_heads, device=table.device)[:, None]).flatten()
    beyond = unread(lengths, table.device)[:, None, :, None] if shortest < longest else None

    def join(own: Tensor, scale: Tensor | None) -> Tensor:
        # One row per (page, head): index_select is 3.5 times as fast as indexing here.
        rows = own.view(-1, page_size * dim)
        if scale is None:
            tokens = in_float32(rows.index_select(0, index))
        else:  # as bytes: torch copies FP8 in few ways
            tokens = dequantise(rows.view(torch.uint8).index_select(0, index))
        tokens = tokens.view(table.shape[0], kv_heads, used * page_size, dim)
        if scale is not None:
            tokens.mul_(scale[..., None, None])
        if beyond is not None:  # unwritten memory may hold NaN, and 0 · NaN is NaN
            tokens[:, :, :longest].masked_fill_(beyond, 0)
        return tokens

    return [join(own, scale) for own, scale in zip(pages, scales, strict=True)]


def unread(lengths: Sequence[int], device: torch.device) -> Tensor:
    """Which places lie behind each member's length. [batch, longest] bool"""
    return torch.arange(max(lengths), device=device) >= torch.tensor(lengths, device=device)[:, None]
