"""Times mask_flip: 20 million items of 3 x 8,192 codes, 16 masks of 1 % of them each.

python -m xgr_kernels.mask_flip.bench
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from xgr_kernels.mask_flip import mask_flip
from xgr_kernels.mask_flip.reference import mask_flip as reference
from xgr_kernels.node_masks import NodeMasks
from xgr_kernels.random_tries import paths, random_trie
from xgr_kernels.timing import graph_ms, launched_ms, report, require

ITEMS, CODES, LEVELS, MASKS, SHARE = 20_000_000, 8192, 3, 16, 0.01


def flips(tree: NodeMasks, count: int, present: int) -> Tensor:
    rows = torch.randint(0, len(tree.live), (count,), device=tree.live.device).int().sort().values
    return torch.cat((torch.stack((rows, torch.full_like(rows, present))), paths(tree, rows)))


def check() -> None:
    tree = random_trie(300_000, 256, levels=LEVELS, masks=5, share=SHARE, device="cuda")
    other = tree._replace(live=tree.live.clone(), masks=tuple(mask.clone() for mask in tree.masks))
    for present in (0, 1):
        for count in (1, 3, 9000):
            changed = flips(tree, count, present)
            mask_flip(tree, changed)
            reference(other, changed)
        wrong = sum(
            int((a != b).sum()) for a, b in zip((tree.live, *tree.masks), (other.live, *other.masks), strict=True)
        )
        require("mask_flip", wrong, 0)


def run() -> Iterator[tuple[str, float, float]]:
    tree = random_trie(ITEMS, CODES, levels=LEVELS, masks=MASKS, share=SHARE, device="cuda")
    for count in (1, 100, 10_000):
        for present, what in ((0, "go"), (1, "come")):
            changed = flips(tree, count, present)
            yield f"{count} items {what}", *graph_ms(lambda changed=changed: mask_flip(tree, changed))
            # Of few, most of what it takes from an idle device on is the host's launch: those are captured.
            yield f"{count} items {what}, launched", *launched_ms(lambda changed=changed: mask_flip(tree, changed))


if __name__ == "__main__":
    report("mask_flip", check, run)
