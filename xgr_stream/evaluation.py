"""Offline quality: Recall and NDCG of next-item recommendations, for any checkpoint, catalog and file of sequences."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat
from math import log2, sqrt
from pathlib import Path
from uuid import uuid4

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from xgr_stream.catalog.table import read_json_lines
from xgr_stream.config import HistoryConfig
from xgr_stream.engine import Engine
from xgr_stream.errors import InvalidInput, NothingLegal, error_from
from xgr_stream.history import HistoryStore
from xgr_stream.types import NO_FILTER, ItemFilter, RecommendRequest, Status, UserEvent


@dataclass(frozen=True, slots=True)
class UserSequence:
    """What a user did, oldest first; the last item is the target, those before it the history."""

    user_id: str
    items: tuple[str, ...]
    actions: tuple[str | None, ...] | None = None
    """One per item, the target's ignored; None: the history has none."""

    def __post_init__(self) -> None:
        if len(self.items) < 2:
            raise InvalidInput(f"items of user {self.user_id!r} must hold a history and a target, not {self.items!r}")
        if self.actions is not None and len(self.actions) != len(self.items):
            raise InvalidInput(
                f"actions of user {self.user_id!r} must be one per item ({len(self.items)}), not {len(self.actions)}"
            )

    @property
    def events(self) -> Iterator[tuple[str, str | None]]:
        """Item and action of each event of the history."""
        return zip(self.history, self.actions or repeat(None), strict=False)

    @property
    def history(self) -> tuple[str, ...]:
        return self.items[:-1]

    @property
    def target(self) -> str:
        return self.items[-1]


@dataclass(frozen=True, slots=True)
class Quality:
    """Means over users with one target each, so that recall at k is also the hit rate at k."""

    k: int
    users: int
    recall: float
    ndcg: float

    @classmethod
    def of_ranks(cls, ranks: Sequence[int | None], k: int) -> Quality:
        """`ranks`: each user's target's place in the list, from 0; None if it was not recommended."""
        if not ranks:
            raise InvalidInput("there must be at least 1 sequence to evaluate, not 0")
        gains = [1 / log2(rank + 2) for rank in ranks if rank is not None and rank < k]
        return cls(k, len(ranks), len(gains) / len(ranks), sum(gains) / len(ranks))

    @property
    def recall_error(self) -> float:
        """Standard error of `recall`, from the number of users alone."""
        return sqrt(self.recall * (1 - self.recall) / self.users)


def whole_histories() -> HistoryStore:
    """For an engine that is to be evaluated: what its history does not keep of a user, `exclude_seen` excludes by name,
    10,000 items at most."""
    return HistoryStore(HistoryConfig(keep_events=sys.maxsize))


def evaluate(
    engine: Engine,
    sequences: Sequence[UserSequence],
    *,
    k: int = 10,
    beam_width: int | None = None,
    exclude_seen: bool = True,
    batch_users: int = 32,
    on_batch: Callable[[int], object] = lambda users: None,
) -> list[int | None]:
    """The place of each sequence's target among the engine's k best items, None where it is not among them.

    `exclude_seen` filters the history out of the answer, exactly, within the beam search. A target that the catalog
    does not hold is a miss. Raises the `XgrError` that a response carries.
    """
    lists = recommend(
        engine,
        sequences,
        k=k,
        beam_width=beam_width,
        exclude_seen=exclude_seen,
        batch_users=batch_users,
        on_batch=on_batch,
    )
    return [rank_of(items, sequence.target) for items, sequence in zip(lists, sequences, strict=True)]


def recommend(
    engine: Engine,
    sequences: Sequence[UserSequence],
    *,
    k: int = 10,
    beam_width: int | None = None,
    exclude_seen: bool = True,
    batch_users: int = 32,
    on_batch: Callable[[int], object] = lambda users: None,
) -> list[list[str]]:
    """The engine's k best items after each sequence's history, none where it has nothing legal to recommend.

    Users go through the engine under names of their own and are forgotten after their batch, even one that fails;
    `on_batch` is called with the number of users done. Raises the `XgrError` that a response carries.
    """
    if type(batch_users) is not int or batch_users < 1:
        raise InvalidInput(f"batch_users must be an integer of at least 1, not {batch_users!r}")
    lists: list[list[str]] = []
    own = f"evaluate-{uuid4().hex}"  # the engine may have users already, of any name
    for batch in _batches(sequences, batch_users):
        requests = [
            RecommendRequest(f"evaluate-{n}", f"{own}-{n}", k, beam_width, _seen(engine, sequence, exclude_seen))
            for n, sequence in enumerate(batch)
        ]
        try:
            for request, sequence in zip(requests, batch, strict=True):
                for item, action in sequence.events:
                    engine.history.apply(UserEvent(request.user_id, item, action))
            responses = engine.answer([(request, engine.history.view(request.user_id)) for request in requests])
            for response in responses:
                # Whoever has seen everything is recommended nothing: a miss, not the end of the evaluation.
                if response.status is Status.ERROR and response.error != NothingLegal.code:
                    raise error_from(response.error, response.message)
                lists.append([item.item_id for item in response.items])
        finally:
            engine.forget([request.user_id for request in requests])
            for request in requests:
                engine.history.forget(request.user_id)
        on_batch(len(batch))
    return lists


def overlap(lists: Sequence[Sequence[object]], others: Sequence[Sequence[object]]) -> float:
    """Which share of each list the other one of the same user has as well, whatever the order: the mean."""
    shares = [
        len(set(own) & set(other)) / max(len(own), len(other), 1) if own or other else 1.0
        for own, other in zip(lists, others, strict=True)
    ]
    if not shares:
        raise InvalidInput("there must be at least 1 list to compare, not 0")
    return sum(shares) / len(shares)


def rank_of(items: Sequence[object], target: object) -> int | None:
    return items.index(target) if target in items else None


def read_sequences(path: str | Path) -> list[UserSequence]:
    """Read a Parquet, CSV or JSON Lines file with the columns `user_id` and `items`: a list, oldest first, the target
    last (in CSV one string with `|` between the items); optionally `actions`, of the same form, one per item, empty
    or null for none. Raises `InvalidInput` naming what is wrong."""
    path = Path(path)
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise InvalidInput(f"sequences {str(path)!r} must be a file that ends in one of {sorted(_READERS)}")
    try:
        table = reader(path)
    except (OSError, pa.ArrowException) as error:
        raise InvalidInput(f"sequences {str(path)!r} cannot be read as a {path.suffix} file: {error}") from error
    missing = {"user_id", "items"} - set(table.column_names)
    if missing:
        raise InvalidInput(f"sequences {str(path)!r} must have the columns user_id and items, not {table.column_names}")
    for name in ("user_id", "items", "actions"):
        if (number := table.column_names.count(name)) > 1:
            raise InvalidInput(f"sequences {str(path)!r} must have one column {name}, not {number}")
    columns = [table[name].to_pylist() for name in ("user_id", "items")]
    columns.append(table["actions"].to_pylist() if "actions" in table.column_names else [None] * len(table))
    return [_sequence(number, *row) for number, row in enumerate(zip(*columns, strict=True), start=1)]


def _sequence(number: int, user_id: object, items: object, actions: object) -> UserSequence:
    items, actions = (value.split("|") if isinstance(value, str) else value for value in (items, actions))
    if user_id is None or not isinstance(items, list) or None in items:
        raise InvalidInput(f"row {number} must have a user_id and a list of items, not {user_id!r} and {items!r}")
    if actions is not None and not isinstance(actions, list):
        raise InvalidInput(f"row {number} must have a list of actions, or none, not {actions!r}")
    named = None if actions is None else tuple(None if action in (None, "") else str(action) for action in actions)
    return UserSequence(str(user_id), tuple(map(str, items)), named)


def _read_parquet(path: Path) -> pa.Table:
    with pa.parquet.ParquetFile(path) as file:
        return file.read()


def _read_csv(path: Path) -> pa.Table:
    # Ids stay strings, so that "007" is not read as 7.
    types = {"user_id": pa.string(), "items": pa.string(), "actions": pa.string()}
    return pa.csv.read_csv(path, convert_options=pa.csv.ConvertOptions(column_types=types))


_READERS: dict[str, Callable[[Path], pa.Table]] = {
    ".parquet": _read_parquet,
    ".csv": _read_csv,
    ".jsonl": read_json_lines,
    ".ndjson": read_json_lines,
}


def _batches(sequences: Sequence[UserSequence], size: int) -> Iterator[Sequence[UserSequence]]:
    for start in range(0, len(sequences), size):
        yield sequences[start : start + size]


def _seen(engine: Engine, sequence: UserSequence, exclude_seen: bool) -> ItemFilter:
    """All of the sequence's history: what the engine's keeps of it, and by name what that lets go."""
    if not exclude_seen:
        return NO_FILTER
    history = sequence.history
    gone = history[: engine.history.config.first_kept(len(history))]
    return ItemFilter(exclude=tuple(dict.fromkeys(gone)), seen=True)
