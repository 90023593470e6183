"""The layers of a decoder, computed in the ways that are fast for few rows, for many, and in FP8."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

import torch
import torch.nn.functional as F
from torch import Tensor

from xgr_kernels.fp8 import power_of_two_scales
from xgr_kernels.gate_up_silu import gate_up_silu
from xgr_kernels.quantize_rows import quantize_rows
from xgr_kernels.rms_norm import rms_norm, rms_norm_fp8
from xgr_kernels.silu_mul import silu_mul, silu_mul_fp8
from xgr_stream.model.config import ModelConfig
from xgr_stream.model.weights import LayerWeights

MANY_ROWS = 768
"""From about so many rows on, SiLU in the product's epilogue may pay; below, folded norms may."""

Attend = Callable[..., Tensor]


class Style(StrEnum):
    """How a forward is computed; the same up to rounding."""

    PLAIN = "plain"
    """Norm, product, norm, product."""
    FUSED_GATE = "fused gate"
    """Plain, with SiLU·mul in the epilogue of the gate and up projections."""
    FOLDED = "folded"
    """Without norm kernels: their weights are folded into the projections, whose products are scaled by the kernels
    that read them, and residuals are added by the products."""
    FP8 = "fp8"
    """Products of FP8 weights and FP8 activations."""
    FP8_FUSED_GATE = "fp8 with fused gate"
    """The same, with SiLU·mul in the epilogue of the gate and up projections."""


@dataclass(frozen=True, slots=True)
class Fp8Layer:
    """One layer's projections in FP8 e4m3, [out, in] each, and what each output column is multiplied by, [out]."""

    qkv: Tensor
    qkv_scale: Tensor
    attended_scales: Tensor
    """[kv_heads]: what the attention's results are divided by to be in FP8, powers of two. The output projection's
    weights are multiplied by them."""
    output: Tensor
    output_scale: Tensor
    gate_up: Tensor
    gate_up_scale: Tensor
    down: Tensor
    down_scale: Tensor


class Layers:
    """All layers of a decoder on one device."""

    def __init__(
        self, config: ModelConfig, layers: Sequence[LayerWeights], norm: Tensor, value_bounds: Tensor | None
    ) -> None:
        """`norm` [hidden]: the weight of the norm behind the last layer. `value_bounds` [layers, kv_heads]: with these
        the projections are in FP8; they are the most that an element of a head's values can be, so of its attention's
        results too."""
        fp8 = value_bounds is not None
        self._config = config
        self._norm = norm
        biased = config.qkv_bias or config.output_bias or config.mlp_bias
        self._folded = norm.is_cuda and norm.dtype != torch.float32 and not biased and not fp8
        self._layers = tuple(_fold(layer) for layer in layers) if self._folded else tuple(layers)
        self._fp8: tuple[Fp8Layer, ...] = ()
        if value_bounds is not None:
            scales = power_of_two_scales(value_bounds)
            self._fp8 = tuple(_quantized(*each, config.head_dim) for each in zip(layers, scales, strict=True))
            self._layers = tuple(_without_products(layer) for layer in layers)

    def attended_scales(self, layer: int) -> Tensor | None:
        return self._fp8[layer].attended_scales if self._fp8 else None

    def styles(self, rows: int) -> tuple[Style, ...]:
        """Those that may be the fastest for so many rows."""
        if self._fp8:
            return (Style.FP8, Style.FP8_FUSED_GATE) if rows >= MANY_ROWS else (Style.FP8,)
        if not self._folded:
            return (Style.PLAIN,)
        return (Style.PLAIN, Style.FUSED_GATE) if rows >= MANY_ROWS else (Style.PLAIN, Style.FOLDED)

    def __call__(self, hidden: Tensor, attend: Attend, wanted: Tensor | None, style: Style | None) -> Tensor:
        match style or self.styles(hidden.shape[0])[0]:
            case Style.FP8 | Style.FP8_FUSED_GATE as fp8:
                return self._in_fp8(hidden, attend, wanted, fp8 is Style.FP8_FUSED_GATE)
            case Style.FOLDED:
                return self._with_folded_norms(hidden, attend, wanted)
            case plain:
                return self._plain(hidden, attend, wanted, plain is Style.FUSED_GATE)

    def _plain(self, hidden: Tensor, attend: Attend, wanted: Tensor | None, fused_gate: bool) -> Tensor:
        eps = self._config.rms_eps
        normed = rms_norm(hidden, self._layers[0].input_norm, eps)
        for i, layer, next_norm, last in self._walk():
            attended = attend(i, *self._split(F.linear(normed, layer.qkv, layer.qkv_bias)))
            if last and wanted is not None:
                hidden = hidden[wanted]
            attended = F.linear(attended.flatten(1), layer.output, layer.output_bias)
            normed, hidden = rms_norm(attended, layer.post_norm, eps, hidden)
            if fused_gate:
                gated = gate_up_silu(normed, layer.gate_up)
            else:
                gated = silu_mul(F.linear(normed, layer.gate_up, layer.gate_up_bias))
            normed, hidden = rms_norm(F.linear(gated, layer.down, layer.down_bias), next_norm, eps, hidden)
        return normed

    def _with_folded_norms(self, hidden: Tensor, attend: Attend, wanted: Tensor | None) -> Tensor:
        eps = self._config.rms_eps
        for i, layer, _, last in self._walk():
            attended = attend(i, *self._split(F.linear(hidden, layer.qkv)), hidden=hidden)
            if last and wanted is not None:
                hidden = hidden[wanted]
            # In place: with a result of its own, torch first copies the hidden states there.
            hidden = hidden.addmm_(attended.flatten(1), layer.output.t())
            gated = silu_mul(F.linear(hidden, layer.gate_up), hidden=hidden, eps=eps)
            hidden = hidden.addmm_(gated, layer.down.t())
        return rms_norm(hidden, self._norm, eps)

    def _in_fp8(self, hidden: Tensor, attend: Attend, wanted: Tensor | None, fused_gate: bool) -> Tensor:
        eps = self._config.rms_eps
        one = torch.ones((), dtype=torch.float32, device=hidden.device)

        def product(x: Tensor, weight: Tensor) -> Tensor:
            # Unit scales: below a thousand rows torch's row-wise product is slower (256 rows: 1.43 ms against 1.02), so
            # the kernels that follow multiply by the rows' and the columns' scales.
            return torch._scaled_mm(x, weight.t(), one, one, out_dtype=hidden.dtype, use_fast_accum=True)

        normed, scale = rms_norm_fp8(hidden, self._layers[0].input_norm, eps)
        for i, layer, next_norm, last in self._walk():
            own = self._fp8[i]
            qkv = self._split(product(normed, own.qkv))
            attended = attend(i, *qkv, row_scale=scale, column_scale=own.qkv_scale)
            if last and wanted is not None:
                hidden = hidden[wanted]
            output = product(attended.flatten(1), own.output)
            normed, scale, hidden = rms_norm_fp8(output, layer.post_norm, eps, hidden, column_scale=own.output_scale)
            by = own.gate_up_scale
            if fused_gate:
                in_full = gate_up_silu(normed, own.gate_up, row_scale=scale, column_scale=by, dtype=hidden.dtype)
                gated, scale = quantize_rows(in_full)
            else:
                gated, scale = silu_mul_fp8(product(normed, own.gate_up), row_scale=scale, column_scale=by)
            down = product(gated, own.down)
            scales = {"row_scale": scale, "column_scale": own.down_scale}
            if last:
                return rms_norm(down, next_norm, eps, hidden, **scales)[0]
            normed, scale, hidden = rms_norm_fp8(down, next_norm, eps, hidden, **scales)
        return hidden  # of a decoder without layers

    def _walk(self) -> Iterator[tuple[int, LayerWeights, Tensor, bool]]:
        """Each layer's number, its weights, the weight of the norm behind it, and whether it is the last."""
        norms = [*(layer.input_norm for layer in self._layers[1:]), self._norm]
        for i, (layer, next_norm) in enumerate(zip(self._layers, norms, strict=True)):
            yield i, layer, next_norm, i == len(self._layers) - 1

    def _split(self, qkv: Tensor) -> Sequence[Tensor]:
        """[n, (heads + 2 kv_heads) · head_dim] → q, k and v, [n, heads or kv_heads, head_dim]."""
        heads, kv_heads = self._config.num_heads, self._config.num_kv_heads
        parts = qkv.view(qkv.shape[0], heads + 2 * kv_heads, self._config.head_dim)
        return parts.tensor_split((heads, heads + kv_heads), dim=1)


def _fold(layer: LayerWeights) -> LayerWeights:
    """The same layer with the weights of its norms in the projections behind them."""
    ones = torch.ones_like(layer.input_norm)
    return replace(
        layer,
        qkv=(layer.qkv.float() * layer.input_norm.float()).to(layer.qkv.dtype),
        gate_up=(layer.gate_up.float() * layer.post_norm.float()).to(layer.gate_up.dtype),
        input_norm=ones,
        post_norm=ones,
    )


def _quantized(layer: LayerWeights, attended_scales: Tensor, head_dim: int) -> Fp8Layer:
    def column_wise(weight: Tensor) -> tuple[Tensor, Tensor]:
        fp8, scale = quantize_rows(weight)
        return fp8, scale.flatten()

    heads = layer.output.unflatten(1, (len(attended_scales), -1, head_dim))
    output = (heads * attended_scales.to(heads.dtype)[:, None, None]).flatten(1)
    return Fp8Layer(
        *column_wise(layer.qkv), attended_scales, *column_wise(output), *column_wise(layer.gate_up),
        *column_wise(layer.down),
    )  # fmt: skip


def _without_products(layer: LayerWeights) -> LayerWeights:
    """The layer's norms alone."""
    nothing = layer.input_norm.new_empty(0)
    return replace(layer, qkv=nothing, output=nothing, gate_up=nothing, down=nothing)
