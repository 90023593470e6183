"""The least that a request can take on a card: its matrix products and its attention, measured in the same run.

GEMM floor: the products of all forwards of a decode (queries, keys and values; output; gate and up; down; of every
layer, each with weights of its own) and the level's slices of the head, back to back in one CUDA graph. Attention
floor: per forward, the larger of the bytes of the prefixes' keys and values over the card's copy bandwidth (bytes read
and bytes written counted) and the operations, 4 x rows x heads x head size x context x layers, over the rate of a
matrix product of 8,192 x 8,192 x 8,192. A cold request adds the same of its prefill, causal, the last layer for the
last token alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from xgr_kernels.timing import graph_ms, launched_ms
from xgr_stream.model import ModelConfig

SIDE = 8192
"""Of the matrices whose product gives the rate; also the most rows of one product of a prefill."""
COPY_BYTES = 2 << 30
FP8 = torch.float8_e4m3fn
Work = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Cell:
    """One request batch."""

    context: int
    """Tokens of each request's prefix."""
    batch: int
    beam: int


@dataclass(frozen=True, slots=True)
class Floor:
    """Milliseconds of one request batch."""

    gemm_ms: float
    attention_ms: float
    prefill_gemm_ms: float
    prefill_attention_ms: float

    @property
    def warm_ms(self) -> float:
        return self.gemm_ms + self.attention_ms

    @property
    def cold_ms(self) -> float:
        return self.warm_ms + self.prefill_gemm_ms + self.prefill_attention_ms


class Floors:
    """Measures floors on one card, with random weights and activations of its own; keeps what it has measured."""

    def __init__(
        self,
        config: ModelConfig,
        codes: Sequence[int],
        nodes: Sequence[int],
        *,
        dtype: torch.dtype,
        device: torch.device,
        fp8: bool = False,
        fp8_pages: bool = False,
    ) -> None:
        """`codes`, `nodes` per level: what the head's slice scores, and the semantic IDs that the catalog has, which
        bound a level's beams. `fp8`: the layers' products are of FP8 factors; `fp8_pages`: prefixes are cached in
        FP8."""
        self._config = config
        self._codes = tuple(codes)
        self._nodes = tuple(nodes)
        self._dtype = dtype
        self._device = device
        self._fp8 = fp8
        self._page_dtype = FP8 if fp8_pages else dtype
        self._ms: dict[tuple[str, int, int], float] = {}

    @cached_property
    def copy_bytes_per_ms(self) -> float:
        """Of a copy on the device, bytes read and bytes written counted; the faster of the driver's copy and a kernel
        that reads and writes."""
        free, _ = torch.cuda.mem_get_info(self._device)
        source = torch.ones(min(COPY_BYTES, free // 4) // 4, device=self._device)
        target = torch.empty_like(source)
        ways = (lambda: target.copy_(source), lambda: torch.mul(source, 2.0, out=target))
        return 2 * source.nbytes / min(launched_ms(way)[0] for way in ways)

    @cached_property
    def operations_per_ms(self) -> float:
        """Of a large matrix product in the run's dtype; a multiplication and an addition are two."""
        a, b, out = (torch.randn(SIDE, SIDE, device=self._device).to(self._dtype) for _ in range(3))
        return float(2 * SIDE**3 / graph_ms(lambda: torch.mm(a, b, out=out))[0])

    def measure(self, cell: Cell, *, prefill: bool = True) -> Floor:
        """The floor of one batch; without `prefill` that of its warm decode alone."""
        widths = tuple(min(cell.beam, nodes) * cell.batch for nodes in self._nodes[:-1])
        tokens = cell.batch * cell.context
        return Floor(
            gemm_ms=self._decode_ms(cell.batch, widths),
            attention_ms=sum(self._attention_ms(cell, rows) for rows in widths),
            prefill_gemm_ms=self._prefill_ms(tokens, cell.batch) if prefill else 0.0,
            prefill_attention_ms=self._prefill_attention_ms(cell) if prefill else 0.0,
        )

    def release(self) -> None:
        """Let go of the weights; what was measured stays."""
        self.__dict__.pop("_products", None)
        torch.cuda.empty_cache()

    def _attention_ms(self, cell: Cell, rows: int) -> float:
        config = self._config
        token_bytes = 2 * config.num_layers * config.num_kv_heads * config.head_dim * self._page_dtype.itemsize
        operations = 4 * rows * config.num_heads * config.head_dim * cell.context * config.num_layers
        moved = cell.batch * cell.context * token_bytes
        return max(moved / self.copy_bytes_per_ms, operations / self.operations_per_ms)

    def _prefill_attention_ms(self, cell: Cell) -> float:
        """Causal, so half of all pairs; the last layer for the last token alone."""
        config = self._config
        pairs = (config.num_layers - 1) * cell.context**2 / 2 + cell.context
        return 4 * cell.batch * pairs * config.num_heads * config.head_dim / self.operations_per_ms

    @cached_property
    def _products(self) -> _Products:
        return _Products(self._config, self._codes, self._dtype, self._device, self._fp8)

    def _decode_ms(self, batch: int, widths: tuple[int, ...]) -> float:
        key = ("decode", batch, hash(widths))
        if key not in self._ms:
            work = [*self._products.head(0, batch)]
            for level, rows in enumerate(widths, start=1):
                work += [*self._products.forward(rows), *self._products.head(level, rows)]
            self._ms[key] = _graph_of(work)
        return self._ms[key]

    def _prefill_ms(self, tokens: int, ends: int) -> float:
        key = ("prefill", tokens, ends)
        if key not in self._ms:
            self._ms[key] = _graph_of(self._products.prefill(tokens, ends), replays=6)
        return self._ms[key]


class _Products:
    """The matrix products of a decoder: weights [out, in] of their own in every layer, activations shared."""

    def __init__(
        self, config: ModelConfig, codes: Sequence[int], dtype: torch.dtype, device: torch.device, fp8: bool
    ) -> None:
        self._dtype = dtype
        self._device = device
        self._fp8 = fp8
        hidden, inner = config.hidden_size, config.intermediate_size
        queries, self._keys = config.num_heads * config.head_dim, 2 * config.num_kv_heads * config.head_dim
        shapes = ((queries + self._keys, hidden), (hidden, queries), (2 * inner, hidden), (hidden, inner))
        self._layers = [
            [self._random(shape, fp8, shape[1] ** -0.5) for shape in shapes] for _ in range(config.num_layers)
        ]
        self._heads = [self._random((count, hidden), False, hidden**-0.5) for count in codes]
        self._one = torch.ones((), device=device)
        self._inputs: dict[tuple[int, int, bool], Tensor] = {}

    def forward(self, rows: int) -> list[Work]:
        """All products of one forward of so many rows."""
        return [self._product(weight, rows) for layer in self._layers for weight in layer]

    def prefill(self, tokens: int, ends: int) -> list[Work]:
        """All products of a prefill of `tokens` tokens; the last layer computes all of their keys and values, and the
        rest for the `ends` last tokens of their requests."""
        chunks = [SIDE] * (tokens // SIDE) + ([tokens % SIDE] if tokens % SIDE else [])
        *body, last = self._layers
        work = [self._product(weight, rows) for layer in body for weight in layer for rows in chunks]
        qkv, *rest = last
        work += [self._product(qkv[-self._keys :], rows) for rows in chunks]
        return work + [self._product(weight, ends) for weight in (qkv[: -self._keys], *rest)]

    def head(self, level: int, rows: int) -> list[Work]:
        """The level's slice of the head."""
        return [self._product(self._heads[level], rows)]

    def _product(self, weight: Tensor, rows: int) -> Work:
        x = self._input(rows, weight.shape[1], weight.dtype == FP8)
        if weight.dtype == FP8:
            one, dtype = self._one, self._dtype
            return lambda: torch._scaled_mm(x, weight.t(), one, one, out_dtype=dtype, use_fast_accum=True)
        return lambda: torch.mm(x, weight.t())

    def _input(self, rows: int, width: int, fp8: bool) -> Tensor:
        key = (rows, width, fp8)
        if key not in self._inputs:
            self._inputs[key] = self._random((rows, width), fp8, 1.0)
        return self._inputs[key]

    def _random(self, shape: tuple[int, int], fp8: bool, scale: float) -> Tensor:
        drawn = torch.randn(shape, device=self._device, dtype=self._dtype) * scale
        return drawn.to(FP8) if fp8 else drawn


def _graph_of(work: Sequence[Work], *, replays: int = 20) -> float:
    """Milliseconds of all of this in one graph."""

    def run() -> None:
        for product in work:
            product()

    return graph_ms(run, replays=replays)[0]
