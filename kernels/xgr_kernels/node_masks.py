"""Which nodes of a trie have a legal item below them, for several sets of items at once: what `mask_flip` keeps right
and `mask_exclude` looks at."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from xgr_kernels.checks import check_shape


class NodeMasks(NamedTuple):
    """A trie of `levels` levels, whose nodes of one level are numbered so that children, and items, of a node are a
    range. An item is legal for a mask if it is live and the mask allows it; a node, if such an item is below it."""

    live: Tensor
    """[rows] bool"""
    allowed: Tensor
    """[masks, rows] bool"""
    items: Tensor
    """[items] int32: rows, in the order of their leaves."""
    item_starts: Tensor
    """[leaves + 1] int32: the items of leaf l are items[item_starts[l] : item_starts[l + 1]]."""
    child_starts: tuple[Tensor, ...]
    """Per level [parents + 1] int32: children of node p of the level above are the level's nodes
    child_starts[p] : child_starts[p + 1]."""
    masks: tuple[Tensor, ...]
    """Per level [masks, nodes] bool: legal nodes. The last level's are the leaves."""

    @property
    def levels(self) -> int:
        return len(self.masks)

    def check(self) -> None:
        """Raise ValueError unless these fit each other."""
        check_shape("live", self.live, (None,))
        check_shape("allowed", self.allowed, (None, self.live.shape[0]))
        check_shape("items", self.items, (None,))
        check_shape("item_starts", self.item_starts, (None,))
        if not self.masks or len(self.child_starts) != len(self.masks):
            raise ValueError(
                f"child_starts must be as many as masks, at least 1, not {len(self.child_starts)} and {len(self.masks)}"
            )
        for level, (starts, mask) in enumerate(zip(self.child_starts, self.masks, strict=True)):
            check_shape(f"child_starts of level {level}", starts, (None,))
            check_shape(f"masks of level {level}", mask, (self.allowed.shape[0], None))
            if mask.stride(1) != 1:
                raise ValueError(f"masks of level {level} must be contiguous in each row")
        for name, tensors, dtype in (
            ("live, allowed and masks", (self.live, self.allowed, *self.masks), torch.bool),
            ("items, item_starts and child_starts", (self.items, self.item_starts, *self.child_starts), torch.int32),
        ):
            found = {tensor.dtype for tensor in tensors}
            if found != {dtype}:
                raise ValueError(f"{name} must be {dtype}, not {sorted(map(str, found))}")
