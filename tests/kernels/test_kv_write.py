"""kv_write against one token and one head at a time."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

from tests.kernels.fp8_pages import FP8, random_scales
from xgr_kernels import kv_write, plan_kv_write


def expected(x: Tensor, cos_sin: Tensor, norm: Tensor | None, eps: float) -> Tensor:
    """One head of one token, [dim], normalised and rotated."""
    x = x.double()
    if norm is not None:
        x = x / (x.square().mean() + eps).sqrt() * norm
    half = len(x) // 2
    angle = cos_sin.double()
    turned = x.clone()
    for i in range(half):
        turned[i] = x[i] * angle[i] - x[i + half] * angle[i + half]
        turned[i + half] = x[i + half] * angle[i] + x[i] * angle[i + half]
    return turned


@pytest.mark.parametrize("seed", range(12))
def test_equals_one_head_at_a_time(run, seed: int) -> None:
    rng = random.Random(seed)
    tokens, kv_heads, group = rng.randint(1, 9), rng.randint(1, 3), rng.choice([1, 2, 3, 7])
    dim, page_size, pages = rng.choice([16, 40, 64, 128, 256]), rng.choice([1, 4, 16]), 12
    q, k, v = (torch.randn(tokens, heads, dim) for heads in (kv_heads * group, kv_heads, kv_heads))
    positions = torch.randint(0, 30, (tokens,))
    slots = torch.randperm(pages * page_size)[:tokens]
    slots[torch.rand(tokens) < 0.3] = -1
    angles = torch.rand(30, dim // 2) * 6
    cos_sin = torch.cat([angles.cos(), angles.sin()], 1)
    q_norm, k_norm = (torch.rand(dim) + 0.5, torch.rand(dim) + 0.5) if rng.random() < 0.7 else (None, None)
    k_pages, v_pages = torch.randn(pages, kv_heads, page_size, dim), torch.randn(pages, kv_heads, page_size, dim)
    k_expected, v_expected = k_pages.clone(), v_pages.clone()
    out = run(
        q,
        k,
        v,
        positions=positions,
        slots=slots,
        cos_sin=cos_sin,
        k_pages=k_pages,
        v_pages=v_pages,
        q_norm=q_norm,
        k_norm=k_norm,
        eps=1e-5,
    )
    for token in range(tokens):
        angle, slot = cos_sin[positions[token]], int(slots[token])
        for head in range(kv_heads * group):
            torch.testing.assert_close(out[token, head], expected(q[token, head], angle, q_norm, 1e-5).float())
        if slot < 0:
            continue
        page, offset = divmod(slot, page_size)
        for head in range(kv_heads):
            k_expected[page, head, offset] = expected(k[token, head], angle, k_norm, 1e-5)
            v_expected[page, head, offset] = v[token, head]
    torch.testing.assert_close(k_pages, k_expected)
    torch.testing.assert_close(v_pages, v_expected, rtol=0, atol=0)


def test_factors_come_first(device: str) -> None:
    """A product of FP8 factors, of hidden states that are not normalised yet, is scaled before anything else."""
    tokens, heads, kv_heads, dim = 5, 4, 2, 16
    joined = torch.randn(tokens, heads + 2 * kv_heads, dim, device=device)
    hidden = torch.randn(tokens, 24, device=device) * 4
    row_scale = torch.rand(tokens, 1, device=device)
    column_scale = torch.rand((heads + 2 * kv_heads) * dim, device=device)
    factor = row_scale * (hidden.square().mean(1, keepdim=True) + 1e-5).rsqrt()
    angles = torch.rand(30, dim // 2, device=device) * 6
    options = {
        "positions": torch.randint(0, 30, (tokens,), device=device),
        "slots": torch.randperm(8, device=device)[:tokens],
        "cos_sin": torch.cat([angles.cos(), angles.sin()], 1),
        "q_norm": torch.rand(dim, device=device) + 0.5,
        "k_norm": torch.rand(dim, device=device) + 0.5,
        "eps": 1e-5,
    }
    got, want = (torch.zeros(2, 2, kv_heads, 4, dim, device=device) for _ in range(2))
    scales = {"hidden": hidden, "row_scale": row_scale, "column_scale": column_scale}
    split = [heads, kv_heads, kv_heads]
    out = kv_write(*joined.split(split, 1), k_pages=got[0], v_pages=got[1], **options, **scales)
    scaled = joined * factor[:, :, None] * column_scale.view(1, -1, dim)
    wanted = kv_write(*scaled.split(split, 1), k_pages=want[0], v_pages=want[1], **options)
    torch.testing.assert_close(out, wanted)
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize(("kv_heads", "dim", "page_size"), [(3, 16, 4), (2, 24, 1), (1, 64, 16)])
def test_fp8_is_the_number_over_its_heads_scale(run, kv_heads: int, dim: int, page_size: int) -> None:
    """Numbers that FP8 has: bit for bit."""
    tokens, slots = 5, torch.tensor([3, 0, -1, 7, 12])
    scales = torch.exp2(torch.randint(-9, 3, (2, kv_heads)).float())
    k, v = (
        torch.randint(0, 127, (tokens, kv_heads, dim), dtype=torch.uint8).view(FP8).float() * own[:, None]
        for own in scales
    )
    k[0, 0, :2], v[3, 0, :2] = torch.tensor([1e4, -1e4]) * scales[0, 0], torch.tensor([-1e4, 1e4]) * scales[1, 0]
    pages = torch.zeros(2, 16 // page_size, kv_heads, page_size, dim).to(FP8)
    written = {"positions": torch.zeros(tokens, dtype=torch.int64), "slots": slots, "kv_scales": scales}
    turn = torch.cat([torch.ones(1, dim // 2), torch.zeros(1, dim // 2)], 1)  # by nothing
    norms = {"q_norm": None, "k_norm": None, "eps": 1e-6}
    run(torch.zeros(tokens, kv_heads, dim), k, v, cos_sin=turn, k_pages=pages[0], v_pages=pages[1], **written, **norms)
    for kept, given, own in zip(pages.float(), (k, v), scales, strict=True):
        by_slot = kept.transpose(1, 2).flatten(0, 1)  # [slots, kv_heads, dim]
        want = torch.zeros_like(by_slot)
        want[slots[slots >= 0]] = (given[slots >= 0] / own[:, None]).clamp(-448, 448)
        torch.testing.assert_close(by_slot, want, rtol=0, atol=0)


@pytest.mark.parametrize("page_size", [1, 4])
def test_fp8_is_the_nearest_of_any_number(device: str, page_size: int) -> None:
    tokens, heads, kv_heads, dim = 7, 4, 2, 16
    joined = torch.randn(tokens, heads + 2 * kv_heads, dim, device=device)
    angles = torch.rand(30, dim // 2, device=device) * 6
    options = {
        "positions": torch.randint(0, 30, (tokens,), device=device),
        "slots": torch.randperm(8, device=device)[:tokens],
        "cos_sin": torch.cat([angles.cos(), angles.sin()], 1),
        "k_norm": torch.rand(dim, device=device) + 0.5,
    }
    wide = torch.zeros(2, 8 // page_size, kv_heads, page_size, dim, device=device)
    narrow, scales = wide.to(FP8), random_scales(kv_heads).to(device)
    split = joined.split([heads, kv_heads, kv_heads], 1)
    want = kv_write(*split, k_pages=wide[0], v_pages=wide[1], **options)
    got = kv_write(*split, k_pages=narrow[0], v_pages=narrow[1], kv_scales=scales, **options)
    torch.testing.assert_close(got, want)
    factor = scales[:, None, :, None, None]
    # 3 bits of mantissa: half a step is a sixteenth; below 2^-6 steps are even.
    assert ((narrow.float() * factor - wide).abs() <= wide.abs() / 16 * 1.0001 + factor * 2.0**-10).all()


@pytest.mark.parametrize("page_size", [1, 4])
@pytest.mark.parametrize("slots", [(0, 3, 7), (5, -1, 2)])
def test_a_plan_changes_nothing(device: str, page_size: int, slots: tuple[int, ...]) -> None:
    heads, kv_heads, dim = 4, 2, 16
    joined = torch.randn(3, heads + 2 * kv_heads, dim, device=device)
    angles = torch.rand(30, dim // 2, device=device) * 6
    tokens = {
        "positions": torch.tensor([4, 0, 29], device=device),
        "slots": torch.tensor(slots, device=device),
        "cos_sin": torch.cat([angles.cos(), angles.sin()], 1),
    }
    got, want = (torch.zeros(2, 8 // page_size, kv_heads, page_size, dim, device=device) for _ in range(2))
    q, k, v = joined.split([heads, kv_heads, kv_heads], 1)
    planned = kv_write(q, k, v, k_pages=got[0], v_pages=got[1], plan=plan_kv_write(**tokens), **tokens)
    torch.testing.assert_close(planned, kv_write(q, k, v, k_pages=want[0], v_pages=want[1], **tokens))
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": torch.zeros(2, 8)}, r"q must have shape \[any, any, any\], not \[2, 8\]"),
        ({"slots": torch.zeros(3, dtype=torch.int64)}, r"slots must have shape \[2\], not \[3\]"),
        ({"positions": torch.zeros(2)}, "positions and slots must be int64"),
        ({"v_pages": torch.zeros(4, 2, 4, 8)}, r"v_pages must have shape \[4, 1, 4, 8\], not \[4, 2, 4, 8\]"),
        ({"k_norm": torch.zeros(7)}, r"k_norm must have shape \[8\], not \[7\]"),
    ],
)
def test_bad_arguments_are_named(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kv_write(**(two_tokens() | change))


@pytest.mark.parametrize("change", [{"slots": torch.tensor([1, 8])}, {"positions": torch.tensor([0, 5])}])
def test_nothing_is_written_where_no_page_is(change: dict) -> None:
    memory = torch.zeros(2, 6, 1, 4, 8)
    pages = {"k_pages": memory[0, :2], "v_pages": memory[1, :2]}
    with pytest.raises(IndexError, match=r"not 0 to [05] and up to [18]$|out of bounds|out of range"):
        kv_write(**(two_tokens() | pages | change))
    assert not memory[:, 2:].any()


def two_tokens() -> dict[str, Tensor]:
    return {
        "q": torch.ones(2, 2, 8),
        "k": torch.ones(2, 1, 8),
        "v": torch.ones(2, 1, 8),
        "positions": torch.zeros(2, dtype=torch.int64),
        "slots": torch.tensor([0, 1]),
        "cos_sin": torch.zeros(5, 8),
        "k_pages": torch.zeros(4, 1, 4, 8),
        "v_pages": torch.zeros(4, 1, 4, 8),
    }
