"""Random odd shapes for the property tests: checkpoints, catalogs, users, filters."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from hypothesis import strategies as st

from tests.property.oracle import EPSILON, FP8_EPSILON, Oracle
from xgr_stream.catalog import Catalog
from xgr_stream.config import CacheConfig, EngineConfig, WindowConfig
from xgr_stream.engine import Engine
from xgr_stream.history import HistoryStore
from xgr_stream.model import Model, build_model
from xgr_stream.testing.models import TAGS, tiny_checkpoint, tiny_items
from xgr_stream.types import ItemFilter

ACTIONS = ("view", "buy")
KV_CACHE_DTYPES = ("auto", "auto", "fp8")


@dataclass(frozen=True)
class Case:
    """One checkpoint, one catalog and settings; printed by hypothesis when a test fails."""

    codes: tuple[int, ...]
    num_items: int
    seed: int
    framed: bool
    """With a prompt, a tail, event frames and action tokens."""
    page_size: int
    max_batch_tokens: int
    max_events: int
    normalizer: str = "level"
    kv_cache_dtype: str = "auto"
    model_config: dict[str, Any] = field(default_factory=dict)
    tail: tuple[int, ...] | None = None
    """Instead of the tail that `framed` brings."""

    @cached_property
    def _parts(self) -> tuple[Any, Any, Any]:
        xgr: dict[str, Any] = {}
        if self.framed:
            frame = {"begin": [2], "end": [3, 4], "actions": {"view": [5], "buy": [6, 7]}}
            xgr = {"prompt": [0, 1], "tail": [1, 0], "event": frame}
        if self.tail is not None:
            xgr["tail"] = list(self.tail)
        return tiny_checkpoint(self.codes, seed=self.seed, config=self.model_config, xgr=xgr)

    @cached_property
    def model(self) -> Model:
        return build_model(*self._parts)

    @cached_property
    def items(self) -> dict[str, list[Any]]:
        return tiny_items(self.codes, items=self.num_items, seed=self.seed, shared=0.3)

    @cached_property
    def oracle(self) -> Oracle:
        return Oracle(self.model, self.items, self._parts[2], fp8_cache=self.kv_cache_dtype == "fp8")

    @property
    def epsilon(self) -> float:
        """How close scores must be to count as equal."""
        return FP8_EPSILON if self.kv_cache_dtype == "fp8" else EPSILON

    @property
    def window(self) -> WindowConfig:
        return WindowConfig(max_events=self.max_events)

    def engine(
        self,
        budget_bytes: int = 1 << 20,
        *,
        device: str = "cpu",
        dtype: str = "float32",
        history: HistoryStore | None = None,
        cache: CacheConfig | None = None,
        **settings: Any,
    ) -> Engine:
        """`cache`: instead of one of `budget_bytes`."""
        model = self.model if device == "cpu" else build_model(*self._parts, device=device, dtype=dtype)
        config = EngineConfig(
            device=device,
            normalizer=self.normalizer,  # type: ignore[arg-type]
            window=self.window,
            cache=cache
            or CacheConfig(budget_bytes=budget_bytes, page_size=self.page_size, kv_cache_dtype=self.kv_cache_dtype),  # type: ignore[arg-type]
            max_batch_tokens=self.max_batch_tokens,
            **settings,
        )
        catalog = Catalog.from_table(self.items, codes=self.codes)
        return Engine.load(model, catalog, config=config, history=history)

    def item_ids(self) -> st.SearchStrategy[str]:
        """Known items, and now and then an unknown one."""
        known = st.integers(0, self.num_items - 1).map(lambda i: f"item-{i}")
        return st.one_of(known, known, known, st.just("item-of-another-catalog"))

    def histories(self, max_events: int = 12) -> st.SearchStrategy[list[tuple[str, str | None]]]:
        """(item, action) in order."""
        return st.lists(
            st.tuples(self.item_ids(), st.sampled_from((None, *ACTIONS, "unheard-of"))), max_size=max_events
        )

    def tails(self) -> st.SearchStrategy[tuple[int, ...]]:
        """Any tokens of the vocabulary, those of items too."""
        vocab_size = self._parts[0]["vocab_size"]
        return st.lists(st.integers(0, vocab_size - 1), max_size=9).map(tuple)

    def filters(self) -> st.SearchStrategy[ItemFilter]:
        tag = st.sampled_from((*TAGS, *TAGS, "unheard-of"))
        tags = st.lists(tag | st.lists(tag, min_size=1, max_size=3), max_size=2)
        return st.builds(
            ItemFilter, exclude=st.lists(self.item_ids(), max_size=12), allow=tags, deny=tags, seen=st.booleans()
        )


@st.composite
def cases(
    draw: st.DrawFn,
    normalizers: tuple[str, ...] = ("level",),
    max_code: int = 6,
    kv_cache_dtypes: tuple[str, ...] = ("auto",),
) -> Case:
    heads, kv_heads = draw(st.sampled_from([(4, 2), (3, 1), (2, 2)]))
    return Case(
        codes=tuple(draw(st.lists(st.integers(1, max_code), min_size=1, max_size=4))),
        num_items=draw(st.integers(1, 25)),
        seed=draw(st.integers(0, 999)),
        framed=draw(st.booleans()),
        page_size=draw(st.sampled_from([1, 2, 8])),
        max_batch_tokens=draw(st.sampled_from([1, 5, 16, 512])),
        max_events=draw(st.sampled_from([1, 3, 5, 16])),
        normalizer=draw(st.sampled_from(normalizers)),
        kv_cache_dtype=draw(st.sampled_from(kv_cache_dtypes)),
        model_config={"num_attention_heads": heads, "num_key_value_heads": kv_heads},
    )
