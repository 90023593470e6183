"""staged_attention against one beam and one head at a time, over the beam's whole sequence."""

from __future__ import annotations

import importlib
import random

import pytest
import torch

from tests.kernels.fp8_pages import quantised, random_scales
from xgr_kernels import plan_staged_attention, staged_attention, whole_prefixes


@pytest.mark.parametrize("seed", range(20))
def test_equals_one_head_at_a_time(run, seed: int) -> None:
    rng = random.Random(seed)
    requests, kv_heads, group = rng.randint(1, 4), rng.randint(1, 3), rng.choice([1, 2, 3, 7])
    dim, page_size, steps = rng.choice([16, 64, 128, 256]), rng.choice([1, 4, 16]), rng.randint(1, 4)
    prefix = [0 if seed % 5 == 0 else rng.choice([0, 1, 9, 80]) for _ in range(requests)]
    beams = [rng.choice([1, 2, 13]) for _ in range(requests)]
    check(run, prefix, beams, kv_heads, group, dim, page_size, steps)


@pytest.mark.parametrize(
    ("prefix", "beams", "kv_heads", "dim", "page_size"),
    [
        ([80, 0, 9], [2, 1, 13], 3, 16, 16),
        ([9], [13], 1, 64, 4),
        ([5, 5], [2, 2], 2, 24, 1),
        ([9, 80], [2, 1], 2, 8, 4),
    ],
)
def test_pages_in_fp8_are_read_as_what_they_stand_for(
    run, prefix: list[int], beams: list[int], kv_heads: int, dim: int, page_size: int
) -> None:
    check(run, prefix, beams, kv_heads, 2, dim, page_size, steps=2, fp8=True)


def check(
    run, prefix: list[int], beams: list[int], kv_heads: int, group: int, dim: int, page_size: int, steps: int,
    *, fp8: bool = False,
) -> None:  # fmt: skip
    max_pages = -(-max(prefix) // page_size) + 1
    order = torch.randperm(len(prefix) * max_pages).view(len(prefix), max_pages)
    k_pages, v_pages = (torch.full((order.numel(), kv_heads, page_size, dim), torch.nan) for _ in range(2))
    for request, length in enumerate(prefix):
        for token in range(length):
            k_pages[order[request, token // page_size], :, token % page_size] = torch.randn(kv_heads, dim)
            v_pages[order[request, token // page_size], :, token % page_size] = torch.randn(kv_heads, dim)
    page_table = order.int()
    page_table[:, -1] = -1
    rows = sum(beams)
    row_starts = torch.tensor([0, *beams]).cumsum(0).int()
    suffix_k, suffix_v = torch.randn(2, steps, rows, kv_heads, dim)
    ancestors = torch.randint(0, rows, (rows, steps)).int()
    ancestors[:, -1] = torch.arange(rows)
    q = torch.randn(rows, kv_heads * group, dim)
    lengths = torch.tensor(prefix).int()
    given, options = (k_pages, v_pages), {}
    if fp8:
        scales = random_scales(kv_heads)
        (stored_k, k_pages), (stored_v, v_pages) = quantised(k_pages, scales[0]), quantised(v_pages, scales[1])
        given, options = (stored_k, stored_v), {"kv_scales": scales}
    out = run(q, *given, page_table, lengths, row_starts, suffix_k, suffix_v, ancestors, scale=0.2, **options)
    step = torch.arange(steps)
    for request, length in enumerate(prefix):
        place = torch.arange(length)
        pages, offsets = order[request, place // page_size], place % page_size
        for row in range(row_starts[request], row_starts[request + 1]):
            for head in range(kv_heads * group):
                kv_head = head // group
                keys = torch.cat([k_pages[pages, kv_head, offsets], suffix_k[step, ancestors[row].long(), kv_head]])
                values = torch.cat([v_pages[pages, kv_head, offsets], suffix_v[step, ancestors[row].long(), kv_head]])
                weights = (keys.double() @ q[row, head].double() * 0.2).softmax(0)
                want = (weights @ values.double()).float()
                torch.testing.assert_close(out[row, head], want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("fp8", [False, True])
@pytest.mark.parametrize("beams", [(5, 5, 5), (1, 13, 5)])
def test_whole_prefixes_give_what_their_pages_give(beams: tuple[int, ...], fp8: bool) -> None:
    prefix, (kv_heads, page_size, dim) = (9, 12, 15), (2, 4, 16)
    layers = [torch.full((12, kv_heads, page_size, dim), torch.nan) for _ in range(4)]
    table = torch.randperm(12).view(3, 4).int()
    for pages in layers:
        for request, length in enumerate(prefix):
            for token in range(length):
                pages[table[request, token // page_size], :, token % page_size] = torch.randn(kv_heads, dim)
    lengths, starts = torch.tensor(prefix).int(), torch.tensor([0, *beams]).cumsum(0).int()
    rows = sum(beams)
    suffix_k, suffix_v = torch.randn(2, 2, rows, kv_heads, dim)
    ancestors, q = torch.randint(0, rows, (rows, 2)).int(), torch.randn(rows, kv_heads * 3, dim)
    scales = [random_scales(kv_heads) if fp8 else None for _ in range(2)]
    if fp8:
        layers = [quantised(pages, scales[i % 2][i // 2])[0] for i, pages in enumerate(layers)]
    keys, values = (
        torch.stack([x.view(torch.uint8) for x in own]).view(own[0].dtype) for own in (layers[:2], layers[2:])
    )
    gathered = whole_prefixes(keys, values, table, lengths, scales)
    assert gathered is not None
    own = (lengths, starts, suffix_k, suffix_v, ancestors)
    sizes = {"rows": rows, "heads": kv_heads * 3, "kv_heads": kv_heads, "head_dim": dim, "page_size": page_size}
    plan = plan_staged_attention(starts, lengths, **sizes, dtype=q.dtype)
    for k, v, kv_scales, whole_k, whole_v in zip(layers[:2], layers[2:], scales, *gathered, strict=True):
        want = staged_attention(q, k, v, table, *own, scale=0.2, kv_scales=kv_scales)
        got = staged_attention(q, whole_k, whole_v, None, *own, scale=0.2, plan=plan)
        torch.testing.assert_close(got, want)


def test_padding_behind_the_beams_changes_nothing() -> None:
    """As many rows as if both had five beams."""
    pages, table = torch.randn(2, 4, 2, 4, 8), torch.arange(4).view(2, 2).int()
    lengths, starts = torch.tensor([5, 7]).int(), torch.tensor([0, 4, 9]).int()
    q, (suffix_k, suffix_v) = torch.randn(10, 6, 8), torch.randn(2, 1, 10, 2, 8)
    ancestors = torch.arange(10)[:, None].int()
    padded = staged_attention(q, *pages, table, lengths, starts, suffix_k, suffix_v, ancestors, scale=0.3)
    want = staged_attention(
        q[:9], *pages, table, lengths, starts, suffix_k[:, :9], suffix_v[:, :9], ancestors[:9], scale=0.3
    )
    torch.testing.assert_close(padded[:9], want)


def test_prefixes_that_would_take_much_memory_stay_in_their_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    pages, table = torch.zeros(1, 4, 2, 4, 8), torch.arange(4).view(2, 2).int()
    alike, unlike, none = (torch.tensor(lengths).int() for lengths in ((5, 7), (1, 7), (0, 0)))
    assert whole_prefixes(pages, pages, table, alike, [None]) is not None
    assert whole_prefixes(pages, pages, table, unlike, [None]) is None  # most of it would be padding
    assert whole_prefixes(pages, pages, table, none, [None]) is None
    reference = importlib.import_module("xgr_kernels.staged_attention.reference")  # a function hides the package
    monkeypatch.setattr(reference, "MOST_KEPT_BYTES", 2 * 2 * 8 * 2 * 8 * 4 - 1)
    assert whole_prefixes(pages, pages, table, alike, [None]) is None


def test_bad_arguments_are_named() -> None:
    pages, q = torch.zeros(4, 2, 4, 8), torch.zeros(3, 2, 8)
    table, lengths, starts = torch.zeros(1, 1).int(), torch.zeros(1).int(), torch.tensor([0, 3]).int()
    suffix = torch.zeros(1, 3, 2, 8)
    for steps, message in (
        (0, "ancestors must have at least one step, not 0"),
        (2, r"suffix_k must have shape \[2, any, 2, 8\], not \[1, 3, 2, 8\]"),
    ):
        ancestors = torch.zeros(3, steps).int()
        with pytest.raises(ValueError, match=message):
            staged_attention(q, pages, pages, table, lengths, starts, suffix, suffix, ancestors, scale=1.0)
    ancestors, fp8 = torch.zeros(3, 1).int(), pages.to(torch.float8_e4m3fn)
    for scales, message in (
        (None, "kv_scales must be given for pages in FP8, not None"),
        (torch.ones(2, 3), r"kv_scales must have shape \[2, 2\], not \[2, 3\]"),
        (torch.ones(2, 2).double(), r"kv_scales must be contiguous float32, not torch\.float64"),
    ):
        with pytest.raises(ValueError, match=message):
            staged_attention(
                q, fp8, fp8, table, lengths, starts, suffix, suffix, ancestors, scale=1.0, kv_scales=scales
            )
