"""How much memory and which positions an engine needs, and whether its parts fit together: checked before anything is
allocated."""

from __future__ import annotations

import functools
from bisect import bisect_right
from collections.abc import Callable

import torch

from xgr_kernels.fp8 import FP8, power_of_two_scales
from xgr_stream.cache import FileTier, HostArena, HostTier, PageFile, PagePool, PrefixCache
from xgr_stream.config import CacheConfig, EngineConfig, HistoryConfig, WindowConfig
from xgr_stream.errors import ConfigError
from xgr_stream.model import Model, ModelConfig

FILE_RESERVE = 16
"""One of so many pages of host memory is kept free by writing to the file ahead of need."""
HALF_LIFE, LEAST_HALF_LIFE = 128, 256
"""Times that anybody is seen, per user whose window the device holds, after which a time counts half: enough for rates
to be known, and few enough for what is no longer so to be forgotten."""
LEAST_FP8_CAPABILITY = (8, 9)

_LARGEST_KEPT_BLOCK = (32 << 20) - 8192
"""Just below glibc's DEFAULT_MMAP_THRESHOLD_MAX, its header and alignment included."""


def default_window(model: Model) -> WindowConfig:
    """The default window, or as many events of it as the model has positions for."""
    events = range(1, WindowConfig().max_events + 1)
    fitting = bisect_right(events, model.config.max_positions, key=model.tokens.context_tokens)
    return WindowConfig(max(1, fitting))


def page_dtype(model: Model, cache: CacheConfig) -> torch.dtype:
    """What keys and values are kept in. Raises `ConfigError` where the kernels can't read it."""
    device = model.decoder.device
    if cache.kv_cache_dtype == "auto":
        return model.decoder.dtype
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < LEAST_FP8_CAPABILITY:
        raise ConfigError(f"cache.kv_cache_dtype must be 'auto' on {device}: fp8 needs compute capability 8.9 or more")
    return FP8


def page_bytes(model: Model, cache: CacheConfig) -> int:
    """Bytes of one page."""
    config = model.config
    return PagePool.page_bytes(
        layers=config.num_layers,
        page_size=cache.page_size,
        kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        dtype=page_dtype(model, cache),
    )


def page_pool(model: Model, cache: CacheConfig, window: WindowConfig) -> PagePool:
    """A pool of as many pages as the budget holds. Raises `ConfigError` if the window does not fit into it or into
    the model's positions."""
    config, tokens = model.config, model.tokens
    dtype = page_dtype(model, cache)
    positions = tokens.context_tokens(window.max_events)
    if positions > config.max_positions:
        raise ConfigError(
            f"window.max_events of {window.max_events} takes up to {positions} positions, the model has "
            f"{config.max_positions}; make it smaller, in xgr.json's window or EngineConfig's"
        )
    each = page_bytes(model, cache)
    window_pages = -(-positions // cache.page_size)
    if window_pages * each > cache.budget_bytes:
        raise ConfigError(
            f"cache.budget_bytes must hold one window: {window_pages * each} bytes for {window.max_events} "
            f"events ({window_pages} pages of {each}), not {cache.budget_bytes}"
        )
    return PagePool(
        layers=config.num_layers,
        num_pages=cache.budget_bytes // each,
        page_size=cache.page_size,
        kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        dtype=dtype,
        device=model.decoder.device,
        scales=power_of_two_scales(model.decoder.kv_bounds) if dtype == FP8 else None,
    )


def host_tier(
    model: Model, cache: CacheConfig, window: WindowConfig, prefixes: PrefixCache, rebuild_cost: Callable[[int], float]
) -> HostTier | None:
    """Host memory, and a file behind it, for as many pages as their budgets hold; None if there are none. Raises
    `ConfigError` if a window does not fit."""
    if not cache.host_bytes:
        return None
    page_bytes = HostArena.bytes_per_page(prefixes.pool, prefixes.hidden)
    window_pages = prefixes.pool.pages_for(model.tokens.context_tokens(window.max_events))
    for name, budget in (("host_bytes", cache.host_bytes), ("file_bytes", cache.file_bytes)):
        if budget and budget < window_pages * page_bytes:
            raise ConfigError(
                f"cache.{name} must be 0 or hold one window: {window_pages * page_bytes} bytes for {window.max_events} "
                f"events ({window_pages} pages of {page_bytes}), not {budget}"
            )
    file = None
    if cache.file_bytes and cache.file_directory is not None:
        file = FileTier(PageFile(cache.file_directory, cache.file_bytes // page_bytes, page_bytes))
    arena = HostArena(prefixes.pool, prefixes.hidden, cache.host_bytes // page_bytes)
    reserve = 0 if file is None else min(arena.num_pages // 2, max(window_pages, arena.num_pages // FILE_RESERVE))
    return HostTier(arena, prefixes.worth, rebuild_cost, file=file, reserve_pages=reserve)


def rate_half_life(model: Model, pool: PagePool, window: WindowConfig) -> int:
    """After how many times that a user was seen each of them counts half."""
    users = pool.num_pages // pool.pages_for(model.tokens.context_tokens(window.max_events))
    return max(LEAST_HALF_LIFE, HALF_LIFE * users)


@functools.cache
def keep_freed_memory() -> None:
    """Make glibc's malloc keep freed blocks of up to 32 MB for the next batch, instead of giving them back to the
    system and paying page faults for them again (a warm batch of 8 requests on the CPU: 33 ms of CPU time with, 24
    without). Of use beside a GPU, too: to resolve a batch's exclusions takes some MB.

    malloc adapts its thresholds to the largest block that was freed, for as long as the process lives, so once is
    enough; this one is never written to (but where torch fills what is uninitialised: 10 to 20 ms). Without effect on
    other allocators.
    """
    torch.empty(_LARGEST_KEPT_BLOCK, dtype=torch.uint8)


def check_history(history: HistoryConfig, window: WindowConfig) -> None:
    """Raise `ConfigError` unless a history keeps what a window shows."""
    if history.keep_events < window.max_events:
        raise ConfigError(
            f"history.keep_events must cover the window of {window.max_events} events, not {history.keep_events}"
        )


def check_loaded(model: Model, config: EngineConfig) -> None:
    """Raise `ConfigError` if the config asks for what a model that is loaded does not compute in."""
    if config.fp8 and not model.decoder.fp8:
        raise ConfigError("fp8 must be given to what loads the model: this one's weights are not in FP8")
    if config.dtype not in (None, own := str(model.decoder.dtype).removeprefix("torch.")):
        raise ConfigError(f"dtype must be {own!r} or None with this model, which is loaded, not {config.dtype!r}")


def prefill_operations(config: ModelConfig, num_tokens: int) -> float:
    """Multiplications to prefill a context: projections and MLP per token, attention per pair of tokens."""
    attention = config.num_heads * config.head_dim
    projections = config.hidden_size * (2 * attention + 2 * config.num_kv_heads * config.head_dim)
    per_token = projections + 3 * config.hidden_size * config.intermediate_size
    return config.num_layers * num_tokens * (per_token + attention * num_tokens)
