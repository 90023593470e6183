"""append_attention in the precisions it serves in, against the float32 reference on the same inputs; as a graph too.

tests/kernels holds it to a loop oracle in float32, on the GPU too where there is one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.gpu.agreement import agree, widened
from tests.gpu.attention_inputs import FP8_SHAPES, ROUNDED_TO_FP8, SHAPES, in_fp8, pages
from xgr_kernels import append_attention, plan_append_attention
from xgr_kernels.append_attention.reference import append_attention as reference
from xgr_stream.collector import collector_resting

pytestmark = pytest.mark.gpu


def arguments(
    new: list[int], prefix: list[int], kv_heads: int, group: int, dim: int, dtype: torch.dtype
) -> tuple[Tensor, ...]:
    """As the engine calls it: q a slice of the fused product."""
    lengths = [a + b for a, b in zip(new, prefix, strict=True)]
    starts = torch.tensor([0, *new], device="cuda").cumsum(0).int()
    q = torch.randn(sum(new), kv_heads * (group + 2), dim, dtype=dtype, device="cuda")[:, : kv_heads * group]
    return q, *pages(lengths, kv_heads, dim, dtype), starts, torch.tensor(lengths, device="cuda").int()


@SHAPES
def test_equals_the_reference(dtype: torch.dtype, kv_heads: int, group: int, dim: int) -> None:
    for new, prefix in (([3] * 64, [200] * 64), ([3], [997]), ([700], [0]), ([1, 0, 65, 300], [0, 40, 999, 64])):
        given = arguments(new, prefix, kv_heads, group, dim, dtype)
        agree(append_attention(*given, scale=0.1), reference(*widened(given), scale=0.1))


@FP8_SHAPES
def test_pages_in_fp8(dtype: torch.dtype, kv_heads: int, group: int, dim: int) -> None:
    for new, prefix in (([3] * 64, [200] * 64), ([3], [997]), ([700], [0]), ([1, 0, 65, 300], [0, 40, 999, 64])):
        q, keys, values, *where = arguments(new, prefix, kv_heads, group, dim, dtype)
        scales = torch.rand(2, kv_heads, device="cuda") * 0.1 + 0.02
        fp8 = in_fp8(keys, scales[0]), in_fp8(values, scales[1])
        got = append_attention(q, *fp8, *where, scale=0.1, kv_scales=scales)
        agree(got, reference(q.float(), *fp8, *where, scale=0.1, kv_scales=scales))


def test_a_chunk_of_a_long_prefill() -> None:
    given = arguments([2048], [1000], 8, 2, 128, torch.bfloat16)
    agree(append_attention(*given, scale=0.1), reference(*widened(given), scale=0.1))


@pytest.mark.parametrize(("users", "tokens"), [(1, 16), (64, 256), (8, 2048)])
def test_a_graph_serves_other_lengths_and_token_counts(users: int, tokens: int) -> None:
    most = 2112 if users == 8 else 1280
    shape = {"heads": 16, "kv_heads": 8, "head_dim": 128, "page_size": 64, "dtype": torch.bfloat16}
    held = arguments([tokens // users] * users, [most - tokens // users] * users, 8, 2, 128, torch.bfloat16)
    q, k_pages, v_pages, table, starts, lengths = held

    def forward() -> Tensor:
        plan = plan_append_attention(starts, lengths, tokens=tokens, **shape)
        return append_attention(q, k_pages, v_pages, table, starts, lengths, scale=0.1, plan=plan)

    forward()
    graph = torch.cuda.CUDAGraph()
    with collector_resting(), torch.cuda.graph(graph):
        out = forward()
    cases: list[tuple[list[int], list[int]]] = [([16], [0]), ([3], [1200]), ([1], [63])]
    if users == 64:
        cases = [([4] * 64, [996] * 64), ([200, 3, 0, 1, 50], [70, 1277, 90, 0, 1000]), ([1] * 9, list(range(9)))]
    if users == 8:
        cases = [([256] * 8, [1856] * 8), ([2048], [0]), ([1500, 0, 1, 500], [64, 7, 2100, 1000])]
    k_pages.nan_to_num_()
    v_pages.nan_to_num_()
    for new, prefix in cases:
        padding = users - len(new)
        lengths.copy_(torch.tensor([a + b for a, b in zip(new, prefix, strict=True)] + [0] * padding))
        starts.copy_(torch.tensor([0, *new] + [0] * padding).cumsum(0))
        out.fill_(torch.nan)
        graph.replay()
        used = sum(new)
        wide = widened((q[:used], k_pages, v_pages))
        agree(out[:used], reference(*wide, table, starts, lengths, scale=0.1))


@SHAPES
def test_results_in_fp8(dtype: torch.dtype, kv_heads: int, group: int, dim: int) -> None:
    scales = 2.0 ** torch.arange(-6, kv_heads - 6, device="cuda").float()
    for new, prefix in (([300], [0]), ([3, 1, 200, 64], [500, 0, 77, 1000]), ([1] * 40, [130] * 40)):
        given = arguments(new, prefix, kv_heads, group, dim, dtype)
        got = append_attention(*given, scale=0.1, out_scales=scales)
        want = reference(*widened(given), scale=0.1, out_scales=scales)
        assert got.dtype == want.dtype == torch.float8_e4m3fn
        agree(got, want, ROUNDED_TO_FP8)
