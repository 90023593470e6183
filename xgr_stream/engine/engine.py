"""The engine: histories in, recommendations out."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Collection, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from secrets import randbits
from typing import cast

import torch

from xgr_kernels.compiled import library
from xgr_stream.cache import DecayedRate, PrefixCache
from xgr_stream.cache.budget import within_budget
from xgr_stream.catalog import Catalog, row_table
from xgr_stream.config import EngineConfig, HistoryConfig, check_settings, settings_or_default
from xgr_stream.engine.ablation import Skipped
from xgr_stream.engine.batches import Batches
from xgr_stream.engine.catalog_merge import CatalogMerge
from xgr_stream.engine.decode import BeamDecoder
from xgr_stream.engine.pending import PendingAnswers
from xgr_stream.engine.prefixes import PrefixBuilder
from xgr_stream.engine.preparation import prepare_appends, prepare_decodes
from xgr_stream.engine.restore_costs import RestoreCosts
from xgr_stream.engine.scoring import CandidateScorer
from xgr_stream.engine.serving_catalog import ServingCatalog
from xgr_stream.engine.sizing import (
    check_history,
    check_loaded,
    default_window,
    host_tier,
    keep_freed_memory,
    page_pool,
    prefill_operations,
    rate_half_life,
)
from xgr_stream.engine.switches import Switches
from xgr_stream.engine.tails import TailForks
from xgr_stream.engine.tiers import TierStats, UserBytes, tier_stats, user_bytes
from xgr_stream.engine.warming import Warming, WarmReport
from xgr_stream.engine.work import Work
from xgr_stream.errors import EngineError, InvalidEvent, InvalidRequest, error_from, is_out_of_memory
from xgr_stream.history import HistoryStore, HistoryView
from xgr_stream.model import Model, load_model
from xgr_stream.types import (
    MAX_TAIL_TOKENS,
    NO_FILTER,
    CatalogUpdate,
    ItemFilter,
    Recommendation,
    RecommendRequest,
    RecommendResponse,
    Status,
    Tags,
    UserEvent,
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class EngineStats:
    """The engine's state and what it has counted since it was loaded."""

    users_warm: int
    bytes_used: int
    bytes_budget: int
    users_evicted: int
    requests: int
    tokens_appended: int
    beams_dead: int
    invalid_items: int
    tiers: TierStats | None
    """Of what is behind the device's memory; None: there is nothing."""


class Engine:
    """Keeps users' prefixes in a bounded cache and answers requests by beam search over the catalog.

    One thread calls it, catalog changes included (`apply_updates`, `catalog.set_available`, `use_catalog`): between two
    calls nothing is in flight, but for what `begin` began. It never fails a request for lack of cache: users who do not
    fit together are computed in turn.
    """

    def __init__(
        self,
        model: Model,
        catalog: Catalog,
        *,
        config: EngineConfig,
        history: HistoryStore | None = None,
        switches: Switches = Switches(),  # noqa: B008, it is frozen
    ) -> None:
        check_settings("config", config, EngineConfig)
        self.model = model
        self.config = config
        self.window = config.window or model.settings.window or default_window(model)
        self.normalizer = config.normalizer or model.settings.normalizer or "level"
        widths = (config.beam_width, config.widened_beam_width)
        dtypes = (str(model.decoder.dtype), model.decoder.fp8, config.cache.kv_cache_dtype)
        settings = (self.window, self.normalizer, widths, *dtypes)
        self.version = f"{model.version}.{hashlib.sha256(repr(settings).encode()).hexdigest()[:8]}"
        """What responses name as their model: the checkpoint, and the settings that answers depend on."""
        if history is None:
            history = HistoryStore(HistoryConfig(keep_events=max(HistoryConfig().keep_events, self.window.max_events)))
        check_history(history.config, self.window)
        self.history = history
        keep_freed_memory()
        row_table.in_c()  # compiled now, where it never was, and not while a request waits
        if model.decoder.device.type == "cpu":
            library()  # the same
        with within_budget("budget_bytes", config.cache.budget_bytes):
            pool = page_pool(model, config.cache, self.window)
        costs = RestoreCosts(
            lambda tokens: prefill_operations(model.config, tokens), pool.bytes_per_page / pool.page_size
        )
        worth = DecayedRate(rate_half_life(model, pool, self.window))
        with within_budget("budget_bytes", config.cache.budget_bytes):
            self.cache = PrefixCache(
                pool,
                model.config.hidden_size,
                worth=worth,
                restore_cost=costs.restore,
                hidden_dtype=model.decoder.dtype,
            )
        self.cache.host = host_tier(model, config.cache, self.window, self.cache, costs.rebuild)
        longest = model.tokens.context_tokens(self.window.max_events) + MAX_TAIL_TOKENS
        page_columns = self.cache.pool.pages_for(longest)
        self._work = Work(model, self.cache, config, switches, costs, page_columns=page_columns)
        lane, graphs = self._work.decode_lane, self._work.graphs
        self._decoder = BeamDecoder(
            model, self.cache, self.normalizer, lane, switches, graphs, page_columns=page_columns
        )
        self._prefixes = PrefixBuilder(self.cache, costs)
        self._warming = Warming(self.cache, self._work, self._prefixes)
        self._batches = Batches(
            self.version,
            config,
            self.cache,
            self._work,
            self._prefixes,
            tails=TailForks(model, self.cache, self._work.request_appender, self.window),
            decoder=self._decoder,
            scorer=CandidateScorer(model, self.cache, self.normalizer, lane),
        )
        self._serving = ServingCatalog(catalog, model, self.window, history, self._work, self._prefixes, self._batches)

    @classmethod
    def load(
        cls,
        model: str | Path | Model,
        catalog: str | Path | Catalog,
        *,
        config: EngineConfig | None = None,
        history: HistoryStore | None = None,
    ) -> Engine:
        """Load what is given by path; a model that is loaded stays on its device. Raises `ConfigError`
        (`CheckpointError`, `CatalogError`) for parts that are damaged or do not fit together."""
        config = settings_or_default("config", config, EngineConfig)
        if isinstance(model, Model):
            check_loaded(model, config)
        else:
            model = load_model(model, device=config.device, dtype=config.dtype, fp8=config.fp8)
        if not isinstance(catalog, Catalog):
            catalog = Catalog.load(catalog)
        return cls(model, catalog, config=config, history=history)

    @property
    def catalog(self) -> Catalog:
        """What requests are answered from. Its version counts updates as soon as `update_catalog` has returned; items
        that are new or changed are in it with the next call that reads it: `begin`, `warm`, `expect` and the like."""
        return self._serving.catalog

    def knows_item(self, item_id: str) -> bool:
        """Whether the catalog has the item. Safe to call from any thread."""
        return self._serving.catalog.row(item_id) is not None

    def use_catalog(self, catalog: Catalog) -> None:
        """Answer from this catalog from now on. Prefixes that another one tokenised are computed anew on next use,
        unless both give items the same tokens. A merge that is under way is void."""
        self._serving.use(catalog)

    # What changes in the catalog.

    @property
    def codes(self) -> tuple[int, ...]:
        """Codes per level that a semantic ID may have: the model's."""
        return self.model.tokens.codes

    def apply_updates(self, updates: Iterable[CatalogUpdate]) -> None:
        """Let these happen to the catalog, in their order; they count when this returns. The catalog's version is then
        its table's and the number of updates that it has had. Raises `CatalogError` while a merge (`begin_merge`) is
        under way: it has changed nothing then."""
        self._serving.apply(updates)

    def update_catalog(self, updates: Sequence[CatalogUpdate], position: int) -> None:
        """Let items come and go at once, and those that are new or have another semantic ID or other tags be in the
        catalog's delta. Between two batches: what was begun must be finished, or it would be answered from what has
        changed. `updates` must fit `codes`; `position` is where their log goes on behind them."""
        self._serving.update(updates, position)

    def bring_legality(self, item_filter: ItemFilter = NO_FILTER) -> None:
        """Have what came and went, and the filter's masks, on the device now. The next batch does it otherwise."""
        self._serving.bring_legality(item_filter)

    @property
    def catalog_bytes(self) -> int:
        """That the catalog takes on the device. While a merge is under way, the next one takes as much beside it."""
        return self._serving.legality.num_bytes

    def begin_merge(self) -> CatalogMerge | None:
        """What merges all that waits now; None if nothing does, or while another merge is neither finished nor
        abandoned."""
        return self._serving.begin_merge()

    # The facade: one user at a time, out of this engine's own history.

    def append(self, user_id: str, items: Sequence[str], actions: Sequence[str | None] | None = None) -> None:
        """These events happened, in this order; the user is warm afterwards, if there is memory for it. `actions`: one
        per item."""
        for name, of, values in (
            ("items", "item ids", items),
            ("actions", "strings or None", () if actions is None else actions),
        ):
            if isinstance(values, str) or not isinstance(values, Sequence):
                raise InvalidEvent(f"{name} must be a sequence of {of}, not {values!r}")
        if actions is not None and len(actions) != len(items):
            raise InvalidEvent(f"actions must be one per item ({len(items)}), not {len(actions)}")
        # All are checked before the first is applied: an append that is refused has changed nothing.
        pairs = zip(items, [None] * len(items) if actions is None else actions, strict=True)
        events = [UserEvent(user_id, item, action) for item, action in pairs]
        self.history.check_actions(event.action for event in events if event.action is not None)
        for event in events:
            self.history.apply(event)
        view = self.history.view(user_id)
        if view is None:
            return
        try:
            self.warm([view])
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            # Raised, it would have the caller append again what the history has already.
            logger.warning("no memory to warm a user whose events came: the next request does it", exc_info=True)

    def recommend(
        self,
        user_id: str,
        k: int = 10,
        *,
        beam_width: int | None = None,
        exclude: Collection[str] = (),
        allow: Collection[Tags] = (),
        deny: Collection[Tags] = (),
        seen: bool = False,
        caps: Mapping[str, int] | None = None,
        min_score: float | None = None,
        temperature: float | None = None,
        seed: int | None = None,
        tail: Sequence[int] | None = None,
    ) -> tuple[Recommendation, ...]:
        """The k best items for the user, best first. `allow`, `deny`: tags, or tuples of tags that an item has all of
        (`ItemFilter`). `seen`: none of those in the user's kept history. `caps`, `min_score`,
        `temperature`, `seed`: see `RecommendRequest`; without a seed each call draws anew. Raises the `XgrError` that a
        response would carry."""
        if temperature is not None and seed is None:
            seed = randbits(63)
        request = RecommendRequest(
            "recommend",
            user_id,
            k,
            beam_width,
            ItemFilter.of(exclude, allow, deny, seen),
            tail=tail,
            caps=() if caps is None else caps,
            min_score=min_score,
            temperature=temperature,
            seed=seed,
        )
        return self._answered(request).items

    def score(
        self, user_id: str, items: Collection[str], *, tail: Sequence[int] | None = None
    ) -> dict[str, float | None]:
        """The score of each of these items after the user's history, as `recommend` would give it; None for one that
        the catalog does not hold or that is not available, and for all if nothing of the user is known. At most 1,024
        items. Raises the `XgrError` that a response would carry."""
        candidates = cast("Sequence[str]", () if items is None else items)  # None would be a search
        request = RecommendRequest("score", user_id, tail=tail, candidates=candidates)
        scores = {item.item_id: item.score for item in self._answered(request).items}
        return {item_id: scores.get(item_id) for item_id in request.candidates or ()}

    def _answered(self, request: RecommendRequest) -> RecommendResponse:
        """Out of this engine's own history. Raises the `XgrError` that the response carries."""
        (response,) = self.answer([(request, self.history.view(request.user_id))])
        if response.status is Status.ERROR:
            raise error_from(response.error, response.message)
        return response

    # What the scheduler's device thread calls.

    def answer(self, requests: Sequence[tuple[RecommendRequest, HistoryView | None]]) -> list[RecommendResponse]:
        """Append what these users' prefixes lack, then decode all requests together. One response per request, in
        order; one request's fault becomes its response. Requests of one user all see the newest of their views, and
        at least what is cached."""
        return self.begin(requests).finish()

    def begin(self, requests: Sequence[tuple[RecommendRequest, HistoryView | None]]) -> PendingAnswers:
        """`answer`, as far as it goes without waiting for the device: the next batch may begin before this one is
        finished, but the catalog must not change."""
        self._serving.join()
        pending = self._batches.begin(requests)
        self._batches.counters.requests += len(requests)
        return pending

    def warm(self, views: Sequence[HistoryView]) -> WarmReport:
        """Bring these users' prefixes up to their views, together, in forwards of at most `max_batch_tokens`. On CUDA
        it returns while the last of them is under way."""
        self._serving.join()
        return self._warming.warm(views)

    def prefilling(self, view: HistoryView, chunk_tokens: int) -> Generator[WarmReport, None, None]:
        """`warm` of one user who has nothing to go on from, in forwards of at most so many tokens: one for each step,
        with `users` 1 for the last, when the prefix is there. Between two steps anything may be asked of the engine;
        `forget` of the user ends them. Another user's has no steps: they are warmed at once."""
        self._serving.join()
        return self._warming.prefilling(view, chunk_tokens)

    def expect(self, views: Sequence[HistoryView]) -> None:
        """These users have had events, so their requests may be near, whether or not they are warmed before: start to
        bring back those who are in a lower tier and are worth it. Without lower tiers it does nothing."""
        self._warming.expect(views)

    def demote(self, user_ids: Iterable[str]) -> None:
        """Turn these users out of the device now, to host memory if that is there and has room for them. For tests and
        measurements: otherwise it happens by itself."""
        self._warming.demote(user_ids)

    def prepare(self) -> None:
        """On CUDA, capture the graphs of the usual sizes, which would otherwise be captured when first needed and hold
        up that request. It takes some seconds."""
        for _ in self.preparing():
            pass

    @torch.inference_mode()
    def preparing(self) -> Iterator[None]:
        """`prepare`, one graph for each step, so that another engine on this thread has its turns in between."""
        if self.cache.hidden.is_cuda:
            yield from prepare_appends(self._work, self.cache, self.model.tokens, self.config, self.window.max_events)
            serving = self._serving
            unfiltered = serving.catalog.resolve(NO_FILTER)
            yield from prepare_decodes(self._work, self._decoder, self.cache, self.config, unfiltered, serving.legality)
            with self._work.decode_lane.current():
                serving.legality.flip_graph()
            yield

    def use_streams(self, streams: bool) -> None:
        """`Switches.streams` from now on, for what measures both in turn. Waits for all that is under way; a prefill
        that is between two of its chunks goes on where it began."""
        self._work.settle()
        self._work.use_streams(streams)

    def close(self) -> None:
        """Wait for what is under way, so that the engine's memory may be given to others. Nothing is to be asked of it
        any more."""
        self._work.settle_file()

    @property
    def last_skipped(self) -> list[Skipped]:
        """What the early stop spared at each level of the last decode that was no graph (`Switches.graphs`)."""
        return [searched.skipped() for searched in self._decoder.searched]

    def pending_tokens(self, view: HistoryView) -> int:
        """Tokens that warming this user up to `view` computes, at most; a copy that is brought back from a lower tier
        counts as the tokens that could be computed meanwhile. Safe to call from any thread."""
        return self._prefixes.pending_tokens(view)

    def is_resident(self, user_id: str) -> bool:
        return user_id in self.cache

    def forget(self, user_ids: Iterable[str]) -> None:
        """Drop these users' prefixes, in lower tiers too; their history is left alone."""
        if isinstance(user_ids, str):
            raise InvalidRequest(f"user_ids must be a collection of user ids, not {user_ids!r}")
        users = list(user_ids)
        self._warming.forget(users)
        self.cache.drop(users)

    def stats(self) -> EngineStats:
        self._work.reap()  # copies may have ended since anything was asked
        counters = self._batches.counters
        return EngineStats(
            users_warm=len(self.cache),
            bytes_used=self.cache.bytes_used,
            bytes_budget=self.cache.bytes_budget,
            users_evicted=self.cache.num_evicted,
            requests=counters.requests,
            tokens_appended=self._work.tokens_appended,
            beams_dead=counters.beams_dead,
            invalid_items=counters.invalid_items,
            tiers=tier_stats(self.cache, self._work),
        )

    def bytes_of(self, user_id: str) -> UserBytes:
        """What the user's prefix takes, and copies of it."""
        return user_bytes(self.cache, user_id)

    def check_integrity(self) -> None:
        """Raise `XgrError` unless memory, cache and catalog are consistent. Call between batches."""
        self._work.settle_file()
        self.cache.check_integrity()
        self._serving.check_integrity()
        invalid_items = self._batches.counters.invalid_items
        if invalid_items:
            raise EngineError(f"{invalid_items} recommended semantic IDs were not legal")
