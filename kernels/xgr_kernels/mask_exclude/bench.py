"""Times mask_exclude: 8 requests, 20 million items of 3 x 8,192 codes, a mask of all of them and one of 1 %.

python -m xgr_kernels.mask_exclude.bench
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from xgr_kernels.mask_exclude import mask_exclude
from xgr_kernels.mask_exclude.reference import mask_exclude as reference
from xgr_kernels.node_masks import NodeMasks
from xgr_kernels.random_tries import paths, random_trie
from xgr_kernels.timing import graph_ms, report, require

REQUESTS, ITEMS, CODES, LEVELS, SHARE = 8, 20_000_000, 8192, 3, 0.01


def arguments(tree: NodeMasks, each: int, *, mask: int, near: int) -> dict[str, object]:
    """`each` items excluded by every request, within `near` that follow each other."""
    device, items = "cuda", len(tree.live)
    rows = []
    for _ in range(REQUESTS):
        first = int(torch.randint(0, items - near + 1, (1,)))
        rows.append((first + torch.randperm(near, device=device)[:each]).sort().values.int())
    excluded = torch.cat(rows)
    return {
        "excluded": paths(tree, excluded)[-1].long() << 32 | excluded,
        "starts": (torch.arange(REQUESTS + 1, device=device) * each).int(),
        "mask_index": torch.full((REQUESTS,), mask, dtype=torch.int32, device=device),
        "num_nodes": torch.tensor([own.shape[1] for own in tree.masks], dtype=torch.int32, device=device),
        "emptied": [torch.zeros(len(excluded), dtype=torch.int32, device=device) for _ in range(LEVELS)],
    }


def check() -> None:
    tree = random_trie(300_000, 256, levels=LEVELS, masks=2, share=SHARE, device="cuda")
    for mask in (0, 1):
        for near in (3000, 300_000):
            call = arguments(tree, 2500, mask=mask, near=near)
            expected = call | {"emptied": [torch.zeros_like(own) for own in call["emptied"]]}  # type: ignore[attr-defined]
            mask_exclude(tree, **call)  # type: ignore[arg-type]
            reference(tree, **expected)  # type: ignore[arg-type]
            pairs = zip(call["emptied"], expected["emptied"], strict=True)  # type: ignore[call-overload]
            require("mask_exclude", sum(int((a != b).sum()) for a, b in pairs), 0)


def run() -> Iterator[tuple[str, float, float]]:
    tree = random_trie(ITEMS, CODES, levels=LEVELS, masks=2, share=SHARE, device="cuda")
    for mask, of in ((0, "all"), (1, "1 %")):
        for each in (100, 1000, 10_000):
            for near, where in ((ITEMS, "anywhere"), (2 * each, "near each other")):
                call = arguments(tree, each, mask=mask, near=near)
                times = graph_ms(lambda call=call: mask_exclude(tree, **call))
                yield f"{REQUESTS} x {each} excluded {where}, of {of}", *times


if __name__ == "__main__":
    report("mask_exclude", check, run)
