"""append_attention against one token and one head at a time."""

from __future__ import annotations

import random

import pytest
import torch

from tests.kernels.fp8_pages import quantised, random_scales
from xgr_kernels import append_attention


@pytest.mark.parametrize("seed", range(16))
def test_equals_one_head_at_a_time(run, seed: int) -> None:
    rng = random.Random(seed)
    users, kv_heads, group = rng.randint(1, 5), rng.randint(1, 3), rng.choice([1, 2, 3, 7])
    dim, page_size = rng.choice([16, 64, 128, 256]), rng.choice([1, 4, 16])
    new = [rng.choice([0, 1, 1, 3, 19]) for _ in range(users)]
    new[0] = new[0] or 1
    prefix = [0 if seed % 4 == 3 else rng.choice([0, 1, 5, 70]) for _ in range(users)]
    check(run, new, prefix, kv_heads, group, dim, page_size)


@pytest.mark.parametrize(
    ("new", "prefix", "kv_heads", "dim", "page_size"),
    [([3, 0, 1], [70, 5, 0], 3, 16, 16), ([19], [1], 1, 64, 4), ([5, 2], [0, 0], 2, 24, 1), ([1, 3], [9, 5], 2, 8, 4)],
)
def test_pages_in_fp8_are_read_as_what_they_stand_for(
    run, new: list[int], prefix: list[int], kv_heads: int, dim: int, page_size: int
) -> None:
    check(run, new, prefix, kv_heads, 2, dim, page_size, fp8=True)


def check(
    run, new: list[int], prefix: list[int], kv_heads: int, group: int, dim: int, page_size: int, *, fp8: bool = False
) -> None:
    lengths = [a + b for a, b in zip(new, prefix, strict=True)]
    max_pages = -(-max(lengths) // page_size) + 1
    order = torch.randperm(len(new) * max_pages).view(len(new), max_pages)
    k_pages, v_pages = (torch.full((order.numel(), kv_heads, page_size, dim), torch.nan) for _ in range(2))
    for user, length in enumerate(lengths):
        for token in range(length):
            k_pages[order[user, token // page_size], :, token % page_size] = torch.randn(kv_heads, dim)
            v_pages[order[user, token // page_size], :, token % page_size] = torch.randn(kv_heads, dim)
    page_table = order.int()
    page_table[:, -1] = -1
    query_starts = torch.tensor([0, *new]).cumsum(0).int()
    q = torch.randn(sum(new), kv_heads * group, dim)
    given, options = (k_pages, v_pages), {}
    if fp8:
        scales = random_scales(kv_heads)
        (stored_k, k_pages), (stored_v, v_pages) = quantised(k_pages, scales[0]), quantised(v_pages, scales[1])
        given, options = (stored_k, stored_v), {"kv_scales": scales}
    out = run(q, *given, page_table, query_starts, torch.tensor(lengths).int(), scale=0.2, **options)
    for user, count in enumerate(new):
        for token in range(count):
            seen = [divmod(t, page_size) for t in range(prefix[user] + token + 1)]
            for head in range(kv_heads * group):
                keys = torch.stack([k_pages[order[user, page], head // group, at] for page, at in seen])
                values = torch.stack([v_pages[order[user, page], head // group, at] for page, at in seen])
                row = int(query_starts[user]) + token
                weights = (keys.double() @ q[row, head].double() * 0.2).softmax(0)
                want = (weights @ values.double()).float()
                torch.testing.assert_close(out[row, head], want, rtol=1e-4, atol=1e-5)


def test_bad_arguments_are_named() -> None:
    pages = torch.zeros(4, 2, 4, 8)
    starts, lengths = torch.tensor([0, 1]).int(), torch.tensor([1]).int()
    with pytest.raises(ValueError, match="q must have a multiple of the 2 KV heads, not 3 heads"):
        append_attention(torch.zeros(1, 3, 8), pages, pages, torch.zeros(1, 1).int(), starts, lengths, scale=1.0)
    table, scales, odd = torch.zeros(1, 1).int(), torch.ones(2, 2), torch.zeros(4, 2, 6, 8)
    with pytest.raises(ValueError, match="k_pages must have a power of two as their page size, not 6"):
        append_attention(torch.zeros(1, 2, 8), odd, odd, table, starts, lengths, scale=1.0)
    with pytest.raises(ValueError, match=r"kv_scales must be None for pages of torch\.float32"):
        append_attention(torch.zeros(1, 2, 8), pages, pages, table, starts, lengths, scale=1.0, kv_scales=scales)
    with pytest.raises(ValueError, match=r"query_starts must have shape \[3\], not \[2\]"):
        append_attention(torch.zeros(1, 2, 8), pages, pages, torch.zeros(2, 1).int(), starts, lengths, scale=1.0)
