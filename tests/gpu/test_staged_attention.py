"""staged_attention in the precisions it serves in, against the float32 reference on the same inputs; as a graph too.

tests/kernels holds it to a loop oracle in float32, on the GPU too where there is one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.gpu.agreement import agree, widened
from tests.gpu.attention_inputs import FP8_SHAPES, ROUNDED_TO_FP8, SHAPES, in_fp8, pages
from xgr_kernels import plan_staged_attention, staged_attention
from xgr_kernels.staged_attention.reference import staged_attention as reference
from xgr_stream.collector import collector_resting

pytestmark = pytest.mark.gpu


def arguments(
    lengths: list[int], beams: list[int], kv_heads: int, group: int, dim: int, dtype: torch.dtype
) -> tuple[Tensor, ...]:
    """As the engine calls it: q a slice of the fused product, the ancestors of a wider table."""
    rows = sum(beams)
    starts = torch.tensor([0, *beams], device="cuda").cumsum(0).int()
    q = torch.randn(rows, kv_heads * (group + 2), dim, dtype=dtype, device="cuda")[:, : kv_heads * group]
    suffix = torch.randn(2, 3, rows + 5, kv_heads, dim, dtype=dtype, device="cuda")
    ancestors = torch.randint(0, rows, (rows, 5), device="cuda").int()[:, :3]
    return (
        q, *pages(lengths, kv_heads, dim, dtype), torch.tensor(lengths, device="cuda").int(), starts, *suffix, ancestors
    )  # fmt: skip


@SHAPES
def test_equals_the_reference(dtype: torch.dtype, kv_heads: int, group: int, dim: int) -> None:
    for lengths, beams in (([1000], [256]), ([0, 77, 1300], [50, 1, 129]), ([640] * 7 + [2050], [256] * 8)):
        given = arguments(lengths, beams, kv_heads, group, dim, dtype)
        agree(staged_attention(*given, scale=0.1), reference(*widened(given), scale=0.1))


@FP8_SHAPES
def test_pages_in_fp8(dtype: torch.dtype, kv_heads: int, group: int, dim: int) -> None:
    for lengths, beams in (([1000], [256]), ([0, 77, 1300], [50, 1, 129]), ([640] * 7 + [2050], [256] * 8)):
        q, keys, values, *where = arguments(lengths, beams, kv_heads, group, dim, dtype)
        scales = torch.rand(2, kv_heads, device="cuda") * 0.1 + 0.02
        fp8 = in_fp8(keys, scales[0]), in_fp8(values, scales[1])
        got = staged_attention(q, *fp8, *where, scale=0.1, kv_scales=scales)
        wide = widened(tuple(where))
        agree(got, reference(q.float(), *fp8, *wide, scale=0.1, kv_scales=scales))


def test_a_plan_of_other_pages_is_refused() -> None:
    """Many beams of 128: the pipelined kernel, which reads no FP8."""
    q, keys, values, table, lengths, starts, *own = arguments([2000] * 8, [256] * 8, 8, 2, 128, torch.bfloat16)
    scales = torch.ones(2, 8, device="cuda")
    sizes = {"rows": 2048, "heads": 16, "kv_heads": 8, "head_dim": 128, "page_size": 64, "dtype": torch.bfloat16}
    plan = plan_staged_attention(starts, lengths, **sizes)
    assert plan is not None
    if not plan.tiling.pipelined:
        pytest.skip("no Hopper")
    fp8 = in_fp8(keys, scales[0]), in_fp8(values, scales[1])
    with pytest.raises(ValueError, match=r"plan must be made for pages of torch\.float8_e4m3fn"):
        staged_attention(q, *fp8, table, lengths, starts, *own, scale=0.1, kv_scales=scales, plan=plan)


@pytest.mark.parametrize("requests", [1, 8])
def test_a_graph_serves_other_lengths_and_row_counts(requests: int) -> None:
    rows, most = 256 * requests, 2112
    shape = {"heads": 16, "kv_heads": 8, "head_dim": 128, "page_size": 64, "dtype": torch.bfloat16}
    held = arguments([most] * requests, [256] * requests, 8, 2, 128, torch.bfloat16)
    q, k_pages, v_pages, table, lengths, starts, *suffix = held

    def forward() -> list[Tensor]:
        plan = plan_staged_attention(starts, lengths, rows=rows, **shape)
        layers = ((k_pages, v_pages), (v_pages, k_pages))
        return [staged_attention(q, *layer, table, lengths, starts, *suffix, scale=0.1, plan=plan) for layer in layers]

    forward()
    graph = torch.cuda.CUDAGraph()
    with collector_resting(), torch.cuda.graph(graph):
        outs = forward()
    cases: list[tuple[list[int], list[int]]] = [([most], [256]), ([1], [3]), ([0], [200]), ([1999], [129])]
    if requests > 1:
        cases = [([most] * 8, [256] * 8), ([2000, 63, 0, 700], [1, 700, 2, 300]), ([65], [2048]), ([9, 2000], [40, 40])]
    k_pages.nan_to_num_()
    v_pages.nan_to_num_()
    for case_lengths, beams in cases:
        padding = requests - len(beams)
        lengths.copy_(torch.tensor(case_lengths + [0] * padding))
        starts.copy_(torch.tensor([0, *beams] + [0] * padding).cumsum(0))
        for out in outs:
            out.fill_(torch.nan)
        graph.replay()
        used = sum(beams)
        wide = widened((q[:used], k_pages, v_pages))
        own = (*widened(tuple(suffix[:2])), suffix[2][:used])
        for out, layer in zip(outs, (wide[1:], wide[:0:-1]), strict=True):
            agree(out[:used], reference(wide[0], *layer, table, lengths, starts, *own, scale=0.1))


@SHAPES
def test_results_in_fp8(dtype: torch.dtype, kv_heads: int, group: int, dim: int) -> None:
    scales = 2.0 ** torch.arange(-6, kv_heads - 6, device="cuda").float()
    for lengths, beams in (([1000], [256]), ([0, 77, 1300], [50, 1, 129]), ([640] * 7 + [2050], [256] * 8)):
        given = arguments(lengths, beams, kv_heads, group, dim, dtype)
        got = staged_attention(*given, scale=0.1, out_scales=scales)
        want = reference(*widened(given), scale=0.1, out_scales=scales)
        assert got.dtype == want.dtype == torch.float8_e4m3fn
        agree(got, want, ROUNDED_TO_FP8)
