"""Rotary position embedding and its scaling, as one table of cosines and sines.

Everything is computed in float32 in the order in which transformers computes it: at position 40,000 a rounding of
the frequency is already a thousandth of a radian, and the weights were trained with that rounding.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from xgr_stream.errors import CheckpointError
from xgr_stream.model.fields import Fields

_REFUSED = ("dynamic", "longrope")


@dataclass(frozen=True, slots=True)
class DefaultRope:
    theta: float
    attention_factor: float = 1.0
    """Multiplies cosines and sines, and so the attention logits by its square."""

    def inverse_frequencies(self, head_dim: int) -> Tensor:
        """[head_dim / 2]: radians per position."""
        return 1.0 / _wavelengths(self.theta, head_dim)


@dataclass(frozen=True, slots=True)
class LinearRope:
    theta: float
    factor: float
    attention_factor: float = 1.0

    def inverse_frequencies(self, head_dim: int) -> Tensor:
        return 1.0 / _wavelengths(self.theta, head_dim) / self.factor


@dataclass(frozen=True, slots=True)
class Llama3Rope:
    """Long wavelengths stretched by `factor`, short ones kept, those between blended."""

    theta: float
    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_positions: int
    attention_factor: float = 1.0

    def inverse_frequencies(self, head_dim: int) -> Tensor:
        kept = 1.0 / _wavelengths(self.theta, head_dim)
        turns = self.original_positions / (2 * math.pi / kept)
        blend = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        blend = blend.clamp(0, 1)
        return (1 - blend) * kept / self.factor + blend * kept


@dataclass(frozen=True, slots=True)
class YarnRope:
    """Dimensions that turn fewer than `beta_slow` times in the original context stretched by `factor`, those that
    turn more than `beta_fast` times kept, a ramp over the dimensions between (arXiv 2309.00071)."""

    theta: float
    factor: float
    attention_factor: float
    original_positions: int
    beta_fast: float
    beta_slow: float
    truncate: bool

    def inverse_frequencies(self, head_dim: int) -> Tensor:
        low, high = self._dimension_of(self.beta_fast, head_dim), self._dimension_of(self.beta_slow, head_dim)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, head_dim - 1)
        width = high - low if high != low else 0.001
        kept = 1 - ((torch.arange(head_dim // 2, dtype=torch.float32) - low) / width).clamp(0, 1)
        wavelengths = _wavelengths(self.theta, head_dim)
        return 1.0 / (self.factor * wavelengths) * (1 - kept) + 1.0 / wavelengths * kept

    def _dimension_of(self, turns: float, head_dim: int) -> float:
        """The dimension that turns so many times in the original context."""
        return head_dim * math.log(self.original_positions / (turns * 2 * math.pi)) / (2 * math.log(self.theta))


Rope = DefaultRope | LinearRope | Llama3Rope | YarnRope


def cos_sin_table(rope: Rope, head_dim: int, positions: int) -> Tensor:
    """[positions, head_dim] float32: the cosines of each position in the first half, the sines in the second."""
    angles = torch.arange(positions, dtype=torch.float32)[:, None] * rope.inverse_frequencies(head_dim)
    return torch.cat([angles.cos(), angles.sin()], dim=-1) * rope.attention_factor


def parse_rope(config: Fields, max_positions: int) -> Rope:
    """RoPE of a config.json: `rope_parameters` (transformers 5) or `rope_scaling` and `rope_theta` (4.x)."""
    scaling = config.object("rope_scaling") if config.has("rope_scaling") else config.object("rope_parameters")
    theta = scaling.positive("rope_theta", config.positive("rope_theta", 10_000.0))
    for owner in (scaling, config):
        if owner.positive("partial_rotary_factor", 1.0) != 1.0:
            raise CheckpointError(f"{owner.path('partial_rotary_factor')} is not supported; all dimensions must rotate")
    # The oldest configs call it `type`.
    key = "type" if scaling.has("type") and not scaling.has("rope_type") else "rope_type"
    if scaling.has(key) and scaling.raw(key) in _REFUSED:
        raise CheckpointError(
            f"{scaling.path(key)} {scaling.raw(key)!r} is not supported: its frequencies depend on the length of the "
            "sequence, so cached keys would go stale"
        )
    kind = scaling.choice(key, ("default", "linear", "llama3", "yarn"), "default")
    outer = config.has("original_max_position_embeddings")
    original = (config if outer else scaling).integer("original_max_position_embeddings", max_positions, least=1)
    match kind:
        case "linear":
            return LinearRope(theta, scaling.positive("factor"))
        case "llama3":
            return _llama3(scaling, theta, original)
        case "yarn":
            return _yarn(scaling, theta, original, scaling.positive("factor", max_positions / original))
        case _:
            return DefaultRope(theta)


def _llama3(scaling: Fields, theta: float, original: int) -> Llama3Rope:
    low, high = scaling.positive("low_freq_factor"), scaling.positive("high_freq_factor")
    if high <= low:
        raise CheckpointError(f"{scaling.name}: high_freq_factor must be above low_freq_factor ({low}), not {high}")
    return Llama3Rope(theta, scaling.positive("factor"), low, high, original)


def _yarn(scaling: Fields, theta: float, original: int, factor: float) -> YarnRope:
    if theta <= 1:
        raise CheckpointError(f"{scaling.name}: rope_theta must be above 1 for yarn, not {theta}")
    if scaling.has("attention_factor"):
        attention_factor = scaling.positive("attention_factor")
    elif scaling.has("mscale") and scaling.has("mscale_all_dim"):
        weight, weight_all = scaling.positive("mscale"), scaling.positive("mscale_all_dim")
        attention_factor = _mscale(factor, weight) / _mscale(factor, weight_all)
    else:
        attention_factor = _mscale(factor, 1.0)
    return YarnRope(
        theta,
        factor,
        attention_factor,
        original,
        beta_fast=scaling.positive("beta_fast", 32.0),
        beta_slow=scaling.positive("beta_slow", 1.0),
        truncate=scaling.boolean("truncate", True),
    )


def _mscale(factor: float, weight: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0


def _wavelengths(theta: float, head_dim: int) -> Tensor:
    """[head_dim / 2] float32: positions per radian."""
    return theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
