"""beam_select in Triton: five kernels, no host synchronisation, no limit on ties or skew.

A row's children are cut into SEGMENTS runs of equal length, so that few children make short runs.

1. `rows.py`, one program a row: its log-normalizer, and the best legal child of each segment.
2. `threshold.py`, one program a request: τ, which between width and 5/4 · width of its segments' bests reach, by
   bisection over their bits; the list of those segments. All candidates worth keeping lie in them, so their buffer
   can't overflow, however the scores lie: where equal bests are too many, the smaller nodes' segments are taken.
3. `survivors.py`, one program for a few listed segments: append what reaches τ to the request's survivors.
4. One program a request, where one beam's children crowd the survivors: the same bisection over them.
5. A survivor's place is the number of survivors before it: its order does not depend on how they were appended.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from xgr_kernels.beam_select.rows import best_of_segments
from xgr_kernels.beam_select.survivors import keep_survivors, narrow_survivors, place_survivors
from xgr_kernels.beam_select.threshold import ALIGNED, find_segments, list_length
from xgr_kernels.dependent_launch import dependent_launch

SEGMENTS_A_BEAM = 32
"""Segments for each beam out: τ then lies hardly below the best that is possible, and one program can hold them."""
CROWD = 1024
"""Survivors that are ranked as they are, in 3 to 6 µs; narrowing more of them down first takes 11 to 17."""
RANKED = 16
"""Survivors whose places one program finds: 3.2 µs a level, 4.4 with 64."""


def beam_select(
    logits: Tensor,
    scores: Tensor,
    nodes: Tensor,
    *,
    row_starts: Tensor,
    out_starts: Tensor,
    child_starts: Tensor,
    child_codes: Tensor,
    node_masks: Tensor,
    mask_index: Tensor,
    emptied_starts: Tensor,
    emptied_nodes: Tensor,
    log_normalizer: Tensor | None,
    num_out: int | None = None,
    early_stop: bool = True,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    (rows, codes), requests, device = logits.shape, len(mask_index), logits.device
    num_out = int(out_starts[-1]) if num_out is None else num_out
    logits = logits if logits.stride(1) == 1 else logits.contiguous()
    segments = _segments(rows, num_out, codes)
    longest = triton.cdiv(codes, segments)
    tile = _tile(longest, 1, 256)
    together = max(1, min(SEGMENTS_A_BEAM, 256 // tile))
    align = max(together, ALIGNED)
    listed = list_length(num_out, requests, align)
    held = min(32768, max(8192, triton.next_power_of_2(triton.cdiv(rows, max(1, requests)) * segments)))

    def int32(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.int32, device=device)

    out_scores = torch.empty(num_out, dtype=torch.float32, device=device)
    out_parents, out_nodes = int32(num_out), int32(num_out)
    beams_scanned, children_kept, few = int32(requests), int32(requests), int32(requests)
    segment_bits, row_info = int32(rows, segments), int32(rows, 4)
    norms = torch.empty(rows, dtype=torch.float32, device=device)
    thresholds, segment_list = int32(requests, 2), int32(listed)
    kept_keys = torch.empty(listed * longest, dtype=torch.int64, device=device)
    kept_rows, few_rows = int32(listed * longest), int32(listed)
    few_keys = torch.empty(listed, dtype=torch.int64, device=device)
    masks = node_masks.view(torch.uint8)
    pdl = dependent_launch(logits)
    common = {"PDL": pdl, "launch_pdl": pdl}
    if rows:
        best_of_segments[(rows,)](
            segment_bits, row_info, norms, logits, scores, nodes, row_starts, child_starts, child_codes, masks,
            mask_index, emptied_starts, emptied_nodes, log_normalizer, requests, len(child_codes), logits.stride(0),
            CODES=codes, REQUESTS=triton.next_power_of_2(requests), SEGMENTS=segments,
            SHORT=max(1, min(8, 8192 // segments)), LONG=_tile(longest, segments, 2048),
            CODES_BLOCK=min(8192, triton.next_power_of_2(codes)), FEW=16,
            GIVEN=log_normalizer is not None,
            # Capped, four rows share a multiprocessor, though a few registers spill: 31 -> 25 µs.
            num_warps=8 if codes > 1024 else 4, maxnreg=64 if codes > 1024 and segments <= 64 else None, **common,
        )  # fmt: skip
    find_segments[(requests,)](
        thresholds, segment_list, children_kept, beams_scanned, out_scores, out_parents, out_nodes, segment_bits,
        row_info, row_starts, out_starts, requests, num_out, listed, len(child_codes),
        SEGMENTS=segments, BLOCK=held, ALIGN=align, EARLY_STOP=early_stop,
        num_warps=32 if held > 16384 else 16, **common,
    )  # fmt: skip
    if rows:
        slots = listed if early_stop else rows * segments
        keep_survivors[(triton.cdiv(slots, together),)](
            kept_keys, kept_rows, children_kept, thresholds, segment_list, segment_bits, row_info, norms, logits,
            scores, out_starts, child_codes, masks, mask_index, emptied_starts, emptied_nodes, slots, codes,
            len(child_codes), logits.stride(0), longest,
            SEGMENTS=segments, TOGETHER=together, TILE=tile, ALIGN=align, EARLY_STOP=early_stop,
            num_warps=2, **common,
        )  # fmt: skip
    narrow_survivors[(requests,)](
        few_keys, few_rows, few, kept_keys, kept_rows, children_kept, out_starts, longest,
        CROWD=CROWD, ALIGN=align, BLOCK=8192, num_warps=16, **common,
    )  # fmt: skip
    place_survivors[(requests, max(1, min(CROWD // RANKED, triton.cdiv(listed, RANKED))))](
        out_scores, out_parents, out_nodes, few_keys, few_rows, few, kept_keys, kept_rows, children_kept, out_starts,
        longest, CROWD=CROWD, ALIGN=align, BLOCK=RANKED, OTHERS=128, num_warps=4, **common,
    )  # fmt: skip
    return out_scores, out_parents, out_nodes, beams_scanned, children_kept


def _segments(rows: int, num_out: int, codes: int) -> int:
    """Into how many segments a row's children are cut."""
    wanted = triton.next_power_of_2(triton.cdiv(SEGMENTS_A_BEAM * num_out, max(1, rows)))
    return max(SEGMENTS_A_BEAM, min(8192, wanted, triton.next_power_of_2(codes)))


def _tile(longest: int, segments: int, elements: int) -> int:
    """How many children of each of so many segments a tile of at most `elements` takes."""
    return max(1, min(triton.next_power_of_2(longest), elements // segments))
