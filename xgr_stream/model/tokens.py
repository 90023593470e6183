"""Events to tokens: what the decoder reads for what a user did."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from xgr_stream.errors import CheckpointError
from xgr_stream.model.settings import NamedTokens, OffsetTokens, Settings

TokenIds = NDArray[np.int64]

_NO_TOKEN = -1
"""Fills rows of unequal length."""


class ItemTokens:
    """The tokens of a checkpoint's items and events. Immutable.

    An event is `begin`, its action's tokens (if the checkpoint knows the action), one token per level of the item's
    semantic ID, and `end`. A context is `prompt`, the events, and `tail`.
    """

    codes: tuple[int, ...]
    levels: int
    token_ids: tuple[TokenIds, ...]
    """Per level [codes]: the token of each code."""
    prompt: TokenIds
    tail: TokenIds
    max_event_tokens: int

    def __init__(self, settings: Settings, vocab_size: int, vocabulary: Callable[[], Mapping[str, object]]) -> None:
        """`vocabulary` gives the id of every token name; it is called only if item tokens are given by name."""
        self.codes = settings.codes
        self.levels = len(settings.codes)
        self.token_ids = tuple(map(_array, _resolve(settings, vocab_size, vocabulary)))
        self._all_ids = np.concatenate(self.token_ids).astype(np.int32)
        self._level_starts = np.array([0, *accumulate(self.codes[:-1])], np.int32)
        self.prompt = _checked("prompt", settings.prompt, vocab_size)
        self.tail = _checked("tail", settings.tail, vocab_size)
        begin = _checked("event.begin", settings.begin, vocab_size)
        self._end = _checked("event.end", settings.end, vocab_size).astype(np.int32)
        actions = [_checked(f"event.actions.{name}", ids, vocab_size) for name, ids in settings.actions.items()]
        self._action_rows: dict[str | None, int] = {name: row for row, name in enumerate(settings.actions, start=1)}
        openings = _padded([np.concatenate([begin, action]) for action in [_array(()), *actions]])
        self._openings = openings.astype(np.int32)
        self.max_event_tokens = self._openings.shape[1] + self.levels + len(self._end)
        self._items_alone = self.max_event_tokens == self.levels

    def encode(self, sids: NDArray[np.integer], actions: Sequence[str | None] | None = None) -> TokenIds:
        """The tokens of events, in order, without prompt and tail.

        `sids` [events, levels]: the semantic ID of each event's item; a row of -1 is an item that the catalog does
        not know, and yields nothing. `actions` [events]: one that the checkpoint does not know, or None, yields no
        action tokens. Returns [tokens] int64.
        """
        items = self.of_items(sids)
        items[sids[:, 0] < 0] = _NO_TOKEN
        return self.of_events(items, actions).astype(np.int64)

    def of_items(self, sids: NDArray[np.integer]) -> NDArray[np.int32]:
        """The tokens of items that have these semantic IDs. [items, levels]"""
        return self._all_ids.take(sids + self._level_starts)

    def of_events(self, items: NDArray[np.int32], actions: Sequence[str | None] | None = None) -> NDArray[np.int32]:
        """`encode` where the tokens of each event's item are at hand, -1 for one that the catalog does not know.
        [events, levels] → [tokens]"""
        if self._items_alone:
            tokens: NDArray[np.int32] = items.ravel()
            if len(tokens) and tokens[tokens.argmin()] < 0:  # `min` of a few takes the host three times as long
                tokens = tokens[tokens >= 0]
            return tokens
        known = items[:, 0] >= 0
        items = items[known]
        rows = self._rows_of(actions, known)
        end = np.broadcast_to(self._end, (len(items), len(self._end)))
        tokens = np.concatenate([self._openings[rows], items, end], axis=1).reshape(-1)
        return tokens[tokens != _NO_TOKEN] if self._action_rows else tokens

    def context_tokens(self, events: int) -> int:
        """The most positions that a decode over `events` events takes: prompt, events, tail and the beams' tokens."""
        return len(self.prompt) + events * self.max_event_tokens + len(self.tail) + self.levels - 1

    def check_catalog(self, codes: Sequence[int]) -> None:
        """Raises `CheckpointError` unless a catalog with so many codes per level fits; it may use fewer codes than
        the model has tokens for."""
        if len(codes) != self.levels:
            raise CheckpointError(
                f"the catalog's semantic IDs have {len(codes)} levels, the checkpoint's have {self.levels}; "
                "build the catalog from the SIDs that the model was trained on"
            )
        for level, (wanted, available) in enumerate(zip(codes, self.codes, strict=True)):
            if wanted > available:
                raise CheckpointError(
                    f"the catalog has {wanted} codes at level {level}, the checkpoint has tokens for {available}; "
                    "build the catalog from the SIDs that the model was trained on"
                )

    def _rows_of(self, actions: Sequence[str | None] | None, known: NDArray[np.bool_]) -> NDArray[np.intp]:
        """[known events]: the row of each event's opening."""
        if actions is None or not self._action_rows:
            return np.zeros(np.count_nonzero(known), np.intp)
        rows = np.fromiter((self._action_rows.get(action, 0) for action in actions), np.intp, len(actions))
        return rows[known]


def _resolve(
    settings: Settings, vocab_size: int, vocabulary: Callable[[], Mapping[str, object]]
) -> list[Sequence[int]]:
    """Per level the token ids of its codes, each in the vocabulary and used once."""
    if max(settings.codes) > vocab_size:
        raise CheckpointError(
            f"a level of {max(settings.codes)} codes does not fit the checkpoint's vocabulary of {vocab_size}"
        )
    source = settings.item_tokens
    if isinstance(source, OffsetTokens):
        levels: list[Sequence[int]] = [
            range(offset, offset + codes) for offset, codes in zip(source.offsets, settings.codes, strict=True)
        ]
    elif isinstance(source, NamedTokens):
        names = vocabulary()
        levels = [_look_up(source.names(level, codes), names) for level, codes in enumerate(settings.codes)]
    else:
        levels = list(source.table)
    for level, ids in enumerate(levels):
        lowest, highest = min(ids), max(ids)
        if lowest < 0 or highest >= vocab_size:
            raise CheckpointError(
                f"item tokens of level {level} reach from {lowest} to {highest}, "
                f"beyond the checkpoint's vocabulary of {vocab_size}"
            )
        if not isinstance(ids, range) and len(set(ids)) != len(ids):
            raise CheckpointError(f"item tokens of level {level} must differ from each other")
    return levels


def _look_up(names: list[str], vocabulary: Mapping[str, object]) -> list[int]:
    missing = [name for name in names if name not in vocabulary]
    if missing:
        raise CheckpointError(
            f"the checkpoint's tokenizer lacks {len(missing)} of {len(names)} item tokens of a level, "
            f"the first is {missing[0]!r}"
        )
    ids = []
    for name in names:
        token = vocabulary[name]
        if type(token) is not int:
            raise CheckpointError(f"the id of token {name!r} must be an integer, not {token!r}")
        ids.append(token)
    return ids


def _checked(name: str, ids: Sequence[int], vocab_size: int) -> TokenIds:
    for token in ids:
        if token >= vocab_size:
            raise CheckpointError(f"{name} holds token {token}, beyond the checkpoint's vocabulary of {vocab_size}")
    return _array(ids)


def _array(ids: Sequence[int]) -> TokenIds:
    array = np.asarray(ids, np.int64)
    array.flags.writeable = False
    return array


def _padded(rows: list[TokenIds]) -> TokenIds:
    """[rows, longest], filled up with `_NO_TOKEN`."""
    table = np.full((len(rows), max(map(len, rows))), _NO_TOKEN, np.int64)
    for row, ids in zip(table, rows, strict=True):
        row[: len(ids)] = ids
    return table
