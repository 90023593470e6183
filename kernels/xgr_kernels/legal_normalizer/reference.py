"""legal_normalizer in plain torch: the legal children of both nodes in a list, each code once, then their sum."""

from __future__ import annotations

import torch
from torch import Tensor

from xgr_kernels.others import other_nodes
from xgr_kernels.ragged import contains, keys_in_groups, owners
from xgr_kernels.scales import in_float32


def legal_normalizer(
    logits: Tensor,
    nodes: Tensor,
    *,
    row_starts: Tensor,
    child_starts: Tensor,
    child_codes: Tensor,
    node_masks: Tensor,
    mask_index: Tensor,
    emptied_starts: Tensor,
    emptied_nodes: Tensor,
    others: Tensor,
) -> Tensor:
    real = int(row_starts[-1])
    request_of = owners(row_starts)
    emptied = keys_in_groups(owners(emptied_starts), emptied_nodes[: int(emptied_starts[-1])])

    def legal_codes(at: Tensor) -> Tensor:
        """row · codes + code of each legal child of these nodes [real], of which -1 is none; ascending."""
        parents = at.clamp(min=0)
        first = child_starts.index_select(0, parents).long()
        counts = (child_starts[1:].index_select(0, parents) - first) * (at >= 0)
        row = torch.repeat_interleave(counts)
        place = torch.arange(len(row), device=row.device) - (counts.cumsum(0) - counts)[row]
        node = first[row] + place
        request = request_of[row]
        legal = node_masks[mask_index.long()[request], node]
        if len(emptied):
            legal &= ~contains(emptied, keys_in_groups(request, node))
        return (row * logits.shape[1] + child_codes[node])[legal]

    own = nodes[:real]
    codes = torch.cat([legal_codes(own), legal_codes(other_nodes(others, own))]).unique()
    row = codes // logits.shape[1]
    values = in_float32(logits).take(codes)
    peak = values.new_full((len(nodes),), -torch.inf).scatter_reduce_(0, row, values, "amax")
    return peak + torch.zeros_like(peak).index_add_(0, row, (values - peak[row]).exp()).log()
