"""What is measured: a model and a catalog, users with random histories, and engines over them."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch

from xgr_stream.catalog import Catalog
from xgr_stream.cli.benches.floors import Floors
from xgr_stream.cli.benches.options import Setting, chosen
from xgr_stream.cli.benches.report import environment
from xgr_stream.config import CacheConfig, EngineConfig, HistoryConfig, KvCacheDtype, WindowConfig
from xgr_stream.engine import Engine, Switches
from xgr_stream.engine.context import EVENTS_AHEAD
from xgr_stream.engine.sizing import page_bytes
from xgr_stream.errors import ConfigError, EngineError
from xgr_stream.history import HistoryStore, HistoryView
from xgr_stream.model import Model, load_model
from xgr_stream.testing.shapes import SHAPES, random_catalog, random_model, with_prompt
from xgr_stream.types import CacheState, RecommendRequest, RecommendResponse, Status, UserEvent

MAX_ITEMS = 1_500_000
KEPT_FREE = 9 << 30
"""Bytes of a card that no pages take: for graphs, activations and the catalog."""
SPARE = 1.25
"""The cache's budget over what its users need, so that no prefix is evicted and a released page may wait."""


def pages_for(users: int, positions: int, page_size: int) -> int:
    """Of a cache that keeps so many users warm, of so many positions each, and another one."""
    return int(SPARE * (users + 1)) * -(-positions // page_size)


@dataclass(frozen=True, slots=True)
class Users:
    """Users with random histories; all have as many events."""

    model: Model
    """The model that reads them: its prompt makes `context` exact."""
    history: HistoryStore
    max_events: int
    context: int
    """Tokens of each user's context at step 0, prompt and tail included."""
    event_tokens: int
    steps: tuple[tuple[HistoryView, ...], ...]
    """[step][user]: each user's history as it was after `step` events more than at the first."""

    @property
    def positions(self) -> int:
        """The most that one user's decode takes."""
        return self.model.tokens.context_tokens(self.max_events)

    def context_at(self, step: int) -> int:
        """Tokens of each user's context at a step."""
        return self.context + step * self.event_tokens


class Subject:
    """A model and a catalog."""

    def __init__(self, setting: Setting) -> None:
        if (setting.shape is None) == (setting.model is None):
            raise ConfigError("one of --shape and --model must be given")
        self.setting = setting
        torch.set_num_threads(setting.threads)
        self.device = chosen(setting.device)
        if setting.model is not None:
            self._load(setting)
        else:
            self._draw(setting, cast(str, setting.shape))
        self.levels = self.catalog.levels
        self.event_tokens = len(self.model.tokens.encode(self.catalog.sids[:1]))
        """Tokens of an event without an action."""

    def description(self) -> dict[str, object]:
        """What is measured and where, for the header."""
        setting, config = self.setting, self.model.config
        name = setting.shape or setting.model
        weights = "random weights" if setting.shape else "checkpoint"
        return {
            "model": f"{name} ({weights}), {config.num_layers} layers, hidden size {config.hidden_size}, "
            f"{config.num_heads} heads and {config.num_kv_heads} KV heads of {config.head_dim}, vocabulary of "
            f"{config.vocab_size}, {str(self.model.decoder.dtype).removeprefix('torch.')}"
            + (", products in FP8" if setting.fp8 else "")
            + (", KV cache in FP8" if setting.kv_cache_dtype == "fp8" else ""),
            "catalog": f"{' x '.join(map(str, self.catalog.codes))} codes, {self.catalog.num_items} items, prefixes "
            f"per level {' / '.join(str(self.catalog.trie.num_nodes(d + 1)) for d in range(self.levels))}",
            "seed": setting.seed,
            **environment(self.device),
        }

    def floors(self) -> Floors:
        """What measures the floors of this model over this catalog; on CUDA only."""
        decoder, trie = self.model.decoder, self.catalog.trie
        nodes = [trie.num_nodes(level + 1) for level in range(self.levels)]
        return Floors(
            self.model.config,
            self.model.tokens.codes,
            nodes,
            dtype=decoder.dtype,
            device=self.device,
            fp8=self.setting.fp8,
            fp8_pages=self.setting.kv_cache_dtype == "fp8",
        )

    def users(self, count: int, context: int, *, before: int = 0, after: int = 0) -> Users:
        """`count` users who have `context` tokens, and views of them up to `before` events earlier and `after` later.

        With a shape, the prompt's length makes the context exact; a checkpoint's is the longest one of whole events.
        Step 0 is the earliest view.
        """
        model, events = self._model_at(context)
        tokens, per_event = model.tokens, self.event_tokens
        if events <= before:
            raise ConfigError(
                f"a context of {context} tokens must hold more than {before} events; it holds {max(events, 0)}"
            )
        first, most = events - before, events + after
        window = most + EVENTS_AHEAD  # nobody comes near its end, so that no next one is computed
        store = HistoryStore(HistoryConfig(keep_events=max(HistoryConfig().keep_events, window)))
        steps: list[list[HistoryView]] = [[] for _ in range(before + after + 1)]
        random = np.random.default_rng((self.setting.seed, 1))
        for user in range(count):
            user_id = f"user-{user}"
            for number, row in enumerate(random.integers(0, self.catalog.num_items, most).tolist(), start=1):
                store.apply(UserEvent(user_id, self.catalog.item_ids[row]))
                if number >= first:
                    steps[number - first].append(cast(HistoryView, store.view(user_id)))
        at_first = len(tokens.prompt) + first * per_event + len(tokens.tail)
        return Users(model, store, window, at_first, per_event, tuple(map(tuple, steps)))

    def engine(
        self,
        users: Users,
        *,
        beam: int,
        rows: int | None = None,
        switches: Switches | None = None,
        host: bool = False,
        kv_cache_dtype: KvCacheDtype | None = None,
    ) -> Engine:
        """An engine that keeps all these users warm, as far as the device's memory goes, and decodes up to `rows` beams
        at once. `host`: with as much host memory behind. `kv_cache_dtype`: instead of the setting's."""
        # An earlier engine's memory and graphs go now: not while this one captures its own.
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        cache = CacheConfig(kv_cache_dtype=kv_cache_dtype or self.setting.kv_cache_dtype or "auto")
        each = page_bytes(users.model, cache)
        dtype = users.model.decoder.dtype
        pages = pages_for(len(users.steps[0]), users.positions, cache.page_size)
        if self.device.type == "cuda":
            free, _total = torch.cuda.mem_get_info(self.device)
            pages = min(pages, (free - KEPT_FREE) // each)
        engine_config = EngineConfig(
            beam_width=beam,
            device=str(self.device),
            dtype=cast(Any, str(dtype).removeprefix("torch.")),
            window=WindowConfig(max_events=users.max_events),
            cache=replace(
                cache,
                budget_bytes=pages * each,
                host_bytes=pages * (each + users.model.config.hidden_size * dtype.itemsize) if host else 0,
            ),
            max_batch_rows=max(EngineConfig().max_batch_rows, rows or 0),
        )
        return Engine(
            users.model,
            self.catalog,
            config=engine_config,
            history=users.history,
            switches=switches or Switches(),
        )

    def _model_at(self, context: int) -> tuple[Model, int]:
        """The model whose contexts of so many tokens hold whole events, and how many."""
        tokens = self.model.tokens
        if self.setting.shape is not None:
            events, rest = divmod(context, self.levels)
            return with_prompt(self.model, rest), events
        return self.model, (context - len(tokens.prompt) - len(tokens.tail)) // self.event_tokens

    def _load(self, setting: Setting) -> None:
        path = cast(Any, setting.model)
        if setting.levels or setting.codes or setting.items:
            raise ConfigError("--levels, --codes and --items go with --shape; a checkpoint has its own")
        self.model = load_model(path, device=self.device, dtype=setting.dtype, fp8=setting.fp8)
        self.catalog = Catalog.load(setting.catalog or path / "catalog.parquet")

    def _draw(self, setting: Setting, shape: str) -> None:
        if setting.catalog is not None:
            raise ConfigError("--catalog goes with --model; with --shape the catalog is random")
        codes = (setting.codes or SHAPES[shape].codes,) * (setting.levels or 3)
        items = setting.items or min(MAX_ITEMS, max(1, codes[0] ** len(codes) // 4))
        dtype = setting.dtype or ("bfloat16" if self.device.type == "cuda" else "float32")
        self.model = random_model(
            shape, codes, device=self.device, dtype=getattr(torch, dtype), fp8=setting.fp8, seed=setting.seed
        )
        self.catalog = random_catalog(codes, items, seed=setting.seed)


Requests = Sequence[tuple[RecommendRequest, HistoryView | None]]


def requests_of(
    views: Sequence[HistoryView], *, beam: int, k: int
) -> list[tuple[RecommendRequest, HistoryView | None]]:
    """One request of each of these users."""
    return [(RecommendRequest(f"request-{i}", view.user_id, k, beam), view) for i, view in enumerate(views)]


def answer_as(engine: Engine, requests: Requests, expected: CacheState) -> Sequence[RecommendResponse]:
    """The engine's answers; `EngineError` if one has no items, or its prefix was found in another state."""
    responses = check_answers(engine.answer(requests))
    states = {response.cache for response in responses}
    if states != {expected}:
        raise EngineError(f"requests must be {expected}, not {', '.join(sorted(states))}")
    return responses


def check_answers(responses: Sequence[RecommendResponse]) -> Sequence[RecommendResponse]:
    """The responses; `EngineError` if one is none of items."""
    for response in responses:
        if response.status is not Status.OK:
            raise EngineError(f"a request was answered {response.status}: {response.message}")
    return responses
