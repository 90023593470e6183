"""Rows by item id equal a dictionary's, whatever the ids are and however they collide."""

from __future__ import annotations

from itertools import product
from operator import eq
from random import Random
from string import ascii_letters

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.profiles import examples
from xgr_kernels.compiled import find_compiler
from xgr_stream.catalog import row_table
from xgr_stream.catalog.names import ItemNames
from xgr_stream.catalog.row_table import BUCKET, FEW, RowTable
from xgr_stream.catalog.strings import PackedStrings, Strings

texts = st.text(max_size=20) | st.text("ab", max_size=40) | st.text("\0a", max_size=9) | st.text("a\ud800", max_size=9)


def packed(strings: list[str]) -> PackedStrings:
    return PackedStrings(pa.array(strings, pa.string()))


def encodable(string: str) -> bool:
    return not any("\ud800" <= char <= "\udfff" for char in string)


def check(table: RowTable, known: list[str], asked: list[str]) -> None:
    row_of = {item_id: row for row, item_id in enumerate(known)}
    expected = [row_of.get(item_id, -1) for item_id in asked]
    assert [table.row(item_id) for item_id in asked] == expected
    for in_c in {row_table.in_c(), None}:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(row_table, "in_c", lambda in_c=in_c: in_c)
            assert table.rows(asked).tolist() == expected
            assert table.rows(tuple(asked) * (FEW + 1)).tolist() == expected * (FEW + 1)


@examples(100)
@given(st.lists(texts.filter(encodable), unique=True, max_size=60), st.lists(texts, max_size=20))
def test_rows_are_a_dictionary_s(known: list[str], others: list[str]) -> None:
    check(RowTable(packed(known)), known, known + others)


@given(st.integers(1, 12), st.data())
def test_ids_of_one_length_are_found_too(length: int, data: st.DataObject) -> None:
    known = data.draw(st.lists(st.text("abc", min_size=length, max_size=length), unique=True, max_size=60))
    check(RowTable(packed(known)), known, known + data.draw(st.lists(st.text("abc", max_size=14), max_size=20)))


@given(st.lists(texts.filter(encodable), max_size=60), st.data())
def test_strings_are_what_they_were(strings: list[str], data: st.DataObject) -> None:
    kept = packed(strings)
    assert kept == strings
    assert kept != [*strings, "more"]
    assert kept.to_arrow().to_pylist() == strings
    assert list(kept[1:7:2]) == strings[1:7:2]
    places = data.draw(st.lists(st.integers(0, len(strings) - 1), max_size=9)) if strings else []
    assert kept.take(np.array(places, np.int32)) == [strings[place] for place in places]
    other = data.draw(st.permutations(strings))
    own, every = Strings.of(other), np.arange(len(strings))
    assert kept.equal(every, own.lengths, list(own.words())).tolist() == list(map(eq, strings, other))
    begin = data.draw(st.integers(0, len(strings)))
    assert PackedStrings(pa.array(strings, pa.string())[begin:]) == strings[begin:]


@pytest.mark.parametrize("kept", [0, 0b11, 0xFF << 61 & (1 << 64) - 1, 0xFFFFFFFF00000000, 0xFFFFFFFF])
def test_hashes_that_are_the_same_change_nothing(kept: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Full buckets, upper halves that are equal, and both."""
    monkeypatch.setattr(row_table, "in_c", lambda: None)
    one, many = RowTable._hash, RowTable._hashes
    monkeypatch.setattr(RowTable, "_hash", lambda self, encoded: one(self, encoded) & kept)
    monkeypatch.setattr(RowTable, "_hashes", lambda *args: many(*args) & np.uint64(kept))
    monkeypatch.setattr(row_table, "PIECE", 50)
    monkeypatch.setattr(row_table, "AT_ONCE", 70)
    ids = [f"item-{number}" for number in range(20 * BUCKET)]
    Random(0).shuffle(ids)
    known, others = ids[: 12 * BUCKET], ids[12 * BUCKET :]
    table = RowTable(packed(known))
    assert np.count_nonzero(table._slots) == len(known)
    check(table, known, ids + others)


@pytest.mark.parametrize("place", [0, 3, 4, 7])
def test_ids_that_differ_in_one_place_of_each_word_have_hashes_of_their_own(
    place: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fields of one width make such ids, and whoever names items may. With some seeds, the same each time: of a
    thousand, one fills a bucket five times over, which costs its ids a longer search."""
    monkeypatch.setattr(row_table, "randbits", Random(place).getrandbits)
    words = ["-" * place + char + "-" * (7 - place) for char in ascii_letters]
    ids = ["".join(chosen) for chosen in product(words, repeat=3)]
    table = RowTable(packed(ids))
    hashes = np.array([table._hash(item_id.encode()) for item_id in ids], np.uint64)
    bucket = (hashes & np.uint64(len(table._slots) - 1)).astype(np.int64)
    assert len(np.unique(hashes)) == len(ids)
    assert len(np.unique(hashes >> np.uint64(32))) > 0.999 * len(ids)
    assert np.bincount(bucket).max() < 4 * BUCKET


def test_ids_whose_hashes_are_the_same_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """With seeds that are all 1 a hash is that of the sum of an id's words, here all equal."""
    monkeypatch.setattr(row_table, "randbits", lambda bits: 0)
    monkeypatch.setattr(row_table, "AT_ONCE_IN_C", 70)
    ids = [f"{chr(40 + number)}aaaaaaa{chr(120 - number)}bbbbbbb" for number in range(9 * BUCKET)]
    Random(0).shuffle(ids)
    known, others = ids[: 6 * BUCKET], ids[6 * BUCKET :]
    table = RowTable(packed([*known, *map(str, range(100))]))
    assert len(set(map(table._hash, map(str.encode, ids)))) == 1
    check(table, known, ids + others)


def test_starts_of_64_bits_are_read_too() -> None:
    strings = packed(["a", "", "bcd"])
    strings._starts = strings._starts.astype(np.int64)  # as those of 4 GB of ids are
    check(RowTable(strings), ["a", "", "bcd"], ["bcd", "b", "a", ""])


@pytest.mark.skipif(find_compiler() is None, reason="needs a C compiler")
def test_what_is_no_string_is_refused_in_c() -> None:
    assert row_table.in_c() is not None
    with pytest.raises(TypeError):
        RowTable(packed(["a"])).rows(["a", None])  # type: ignore[list-item]


def test_ids_that_updates_bring_are_behind_the_table_s() -> None:
    names = ItemNames(packed(["a", "b"]))
    assert names.add(["c", "a", "d"]).tolist() == [2, 0, 3]
    assert names.add(["d", "e", "c"]).tolist() == [3, 4, 2]
    assert names.rows(["e", "x", "b", "c"]).tolist() == [4, -1, 1, 2]
    assert [names.row("x"), names.row("d"), names.row("b")] == [None, 3, 1]
    assert names.take(np.array([4, 0, 2])) == ["e", "a", "c"]
    assert (names[3], names[0], list(names)) == ("d", "a", ["a", "b", "c", "d", "e"])
    assert names.to_arrow().to_pylist() == list(names)
    table = names.of_table()
    assert (table.row("c"), list(table)) == (None, ["a", "b"])
    assert table.add(["z"]).tolist() == [2]
    assert names.row("z") is None
