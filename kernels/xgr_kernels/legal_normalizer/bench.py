"""Times legal_normalizer, logits in: one level of 8 requests x 256 beams over several catalogs, with a delta beside
them or without.

python -m xgr_kernels.legal_normalizer.bench
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from xgr_kernels.beam_select.bench import CODES, arguments, exclude, trie
from xgr_kernels.legal_normalizer.kernel import legal_normalizer
from xgr_kernels.legal_normalizer.reference import legal_normalizer as reference
from xgr_kernels.mask_exclude import NO_NODE
from xgr_kernels.timing import graph_ms, report, require

PAIRS = 513
CALLS = 10


def of_level(call: dict[str, object], *, shared: int = 0) -> dict[str, object]:
    """The same level; `shared`: so many of the nodes that beams stand at are in a second trie too, with eight children
    each."""
    names = (
        "logits", "nodes", "row_starts", "child_starts", "child_codes", "node_masks", "mask_index", "emptied_starts",
        "emptied_nodes",
    )  # fmt: skip
    own = {name: call[name] for name in names}
    first = own["nodes"].unique()[:shared]
    parents, device = len(own["child_starts"]) - 1, "cuda"
    second = parents + torch.arange(shared, dtype=torch.int32, device=device)
    codes = torch.rand(shared, CODES, device=device).argsort(1)[:, :8].sort(1).values.int().ravel()
    ends = own["child_starts"][-1] + 8 * torch.arange(1, shared + 1, device=device)
    others = torch.tensor([[NO_NODE], [-1]], dtype=torch.int32, device=device).repeat(1, PAIRS)
    others[:, : 2 * shared] = torch.stack((torch.cat((first, second)), torch.cat((second, first))))
    masks = torch.ones(len(own["node_masks"]), 8 * shared, dtype=torch.bool, device=device)
    return own | {
        "child_starts": torch.cat((own["child_starts"], ends.int())),
        "child_codes": torch.cat((own["child_codes"], codes)),
        "node_masks": torch.cat((own["node_masks"], masks), 1),
        "others": others,
    }


def cases() -> Iterator[tuple[str, dict[str, object]]]:
    for children in ("all", "183", "one", "zipf"):
        level = arguments(trie(children), 1.0)
        yield f"{children} children", of_level(level)
        yield f"{children} children, 200 of the nodes in a delta", of_level(level, shared=200)
        yield f"{children} children, 10,000 excluded by each request", of_level(exclude(level))


def check() -> None:
    for case, call in cases():
        got, want = legal_normalizer(**call), reference(**call)
        wrong = torch.where(got == want, 0.0, (got - want).abs())  # both may be -inf
        require(f"legal_normalizer ({case})", float(wrong.max()), 1e-4)


def run() -> Iterator[tuple[str, float, float]]:
    """(case, median ms, spread) of one level."""
    for case, call in cases():
        median, spread = graph_ms(lambda call=call: [legal_normalizer(**call) for _ in range(CALLS)])
        yield case, median / CALLS, spread / CALLS


if __name__ == "__main__":
    report("legal_normalizer", check, run)
