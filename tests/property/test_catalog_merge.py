"""What a merge makes of the current arrays is what building from nothing makes, to the last number."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import Any
from unittest.mock import patch

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tests.profiles import examples
from xgr_stream.catalog import Trie, splice
from xgr_stream.catalog.tags import TagIndex
from xgr_stream.catalog.tags_merge import changed_tags
from xgr_stream.catalog.trie_merge import changed_trie

MOST_CODES = 1 << 20
Sid = tuple[int, ...] | None
"""None: the row has no place."""


@contextmanager
def small_blocks(data: st.DataObject) -> Iterator[None]:
    block = data.draw(st.integers(1, 8))
    with patch.object(splice, "BLOCK", block), patch.object(splice, "PIECE", 4 * block):
        yield


def assert_equal(found: Any, wanted: Any) -> None:
    """Trees of tuples of arrays, dictionaries (their order too) and numbers."""
    if isinstance(wanted, np.ndarray):
        assert found.dtype == wanted.dtype
        assert found.tolist() == wanted.tolist()
    elif isinstance(wanted, tuple):
        for own, other in zip(found, wanted, strict=True):
            assert_equal(own, other)
    elif isinstance(wanted, dict):
        assert list(found.items()) == list(wanted.items())
    elif isinstance(wanted, Trie | TagIndex):
        for field in fields(wanted):
            assert_equal(getattr(found, field.name), getattr(wanted, field.name))
    else:
        assert found == wanted


def table(sids: list[Sid], levels: int) -> np.ndarray[Any, np.dtype[np.int32]]:
    return np.array([sid or (-1,) * levels for sid in sids], np.int32).reshape(len(sids), levels)


def in_order(sids: list[Sid], last: list[int]) -> np.ndarray[Any, np.dtype[np.int32]]:
    """The rows that have a place; of one leaf those in `last` behind the others."""
    placed = ((sid, row in last and last.index(row) + 1, row) for row, sid in enumerate(sids) if sid is not None)
    return np.array([row for _, _, row in sorted(placed)], np.int32)


@examples(400)
@given(st.data())
def test_a_changed_trie_is_the_one_built_anew(data: st.DataObject) -> None:
    """Items that go, come and move; all of them, and none; that share leaves; codes that are new, and combinations of
    them that no number holds."""
    levels = data.draw(st.integers(1, 4))
    some = st.one_of(st.integers(0, 2), st.integers(0, 2), st.sampled_from([0, 1 << 19, MOST_CODES - 1]))
    sid: st.SearchStrategy[Sid] = st.tuples(*(some for _ in range(levels)))
    before = [*data.draw(st.lists(st.one_of(sid, sid, st.none()), max_size=24)), data.draw(sid)]
    changes = data.draw(
        st.one_of(
            st.dictionaries(st.integers(0, len(before) - 1), st.one_of(st.none(), sid), max_size=4),
            st.fixed_dictionaries({row: st.one_of(st.none(), sid) for row in range(len(before))}),
        )
    )
    new = data.draw(st.lists(st.one_of(sid, sid, st.none()), max_size=12))
    after: list[Sid] = [changes.get(row, own) for row, own in enumerate(before)] + new
    if not any(after):
        after.append(data.draw(sid))
    changed = [*changes, *range(len(before), len(after))]
    go = np.array([row for row in changes if before[row] is not None], np.int32)
    come = data.draw(st.permutations([row for row in changed if after[row] is not None]))
    old = Trie.from_sids(table(before, levels), (5,) * levels, in_order(before, []))
    with small_blocks(data):
        found = changed_trie(old, table(after, levels), (MOST_CODES,) * levels, go, np.array(come, np.int32))
    assert_equal(found, Trie.from_sids(table(after, levels), (MOST_CODES,) * levels, in_order(after, come)))
    assert_equal(old, Trie.from_sids(table(before, levels), (5,) * levels, in_order(before, [])))


def index_of(tags: list[list[str]]) -> TagIndex:
    names = sorted({tag for own in tags for tag in own})
    pairs = [(names.index(tag), row) for row, own in enumerate(tags) for tag in own]
    numbers = np.array(pairs, np.int64).reshape(-1, 2)
    return TagIndex.from_pairs(names, numbers[:, 0], numbers[:, 1].astype(np.int32), len(tags))


@examples(400)
@given(st.data())
def test_a_changed_index_of_tags_is_the_one_built_anew(data: st.DataObject) -> None:
    """Tags that are new, and that nobody has any more; rows without any, and with one twice."""
    early = st.lists(st.sampled_from("bdfh"), max_size=3)
    late = st.lists(st.sampled_from("abcdefghi"), max_size=4)
    before = data.draw(st.lists(early, max_size=24))
    changes = data.draw(st.dictionaries(st.integers(0, max(0, len(before) - 1)), late, max_size=len(before)))
    new = data.draw(st.lists(late, max_size=12))
    after = [changes.get(row, own) for row, own in enumerate(before)] + new
    changed = data.draw(st.permutations(sorted({*changes, *range(len(before), len(after))} & set(range(len(after))))))
    rows = [row for row in changed if after[row]]
    old = index_of(before)
    with small_blocks(data):
        of = [tuple(after[row]) for row in rows]
        found = changed_tags(old, np.array(changed, np.int32), np.array(rows, np.int32), of, len(after))
    assert_equal(found, index_of(after))
    assert_equal(old, index_of(before))
