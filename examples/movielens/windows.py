"""What a training step sees: windows of users' events, batched so that little of a batch is padding."""

from __future__ import annotations

import numpy as np

from examples.movielens.data import MovieLens, UserEvents


def epoch_windows(data: MovieLens, max_events: int, random: np.random.Generator) -> list[np.ndarray]:
    """One epoch: every training event once, as windows [events ≤ max_events] of item indices.

    A long history is cut at another place in each epoch. Half of all events share their second with another of the
    same user; their order carries nothing, so each epoch draws another.
    """
    windows = []
    for user in data.users:
        items = _shuffled_within_seconds(user, random)
        cuts = np.arange(random.integers(1, max_events + 1), len(items), max_events)
        pieces = np.split(items, cuts) if len(items) > max_events else [items]
        windows += [piece for piece in pieces if len(piece) > 1]
    return windows


def _shuffled_within_seconds(user: UserEvents, random: np.random.Generator) -> np.ndarray:
    items = user.training
    return items[np.lexsort((random.random(len(items)), user.times[: len(items)]))]


def batches(windows: list[np.ndarray], max_events: int, random: np.random.Generator) -> list[np.ndarray]:
    """Group windows of like length, at most `max_events` events to a batch with padding, in random order.

    Returns item indices [windows, events], -1 where a window has ended.
    """
    order = np.argsort([len(window) + 4 * random.random() for window in windows])
    groups: list[list[np.ndarray]] = [[]]
    for index in order:
        longest = max(len(windows[index]), *(len(window) for window in groups[-1]), 1)
        if groups[-1] and (len(groups[-1]) + 1) * longest > max_events:
            groups.append([])
        groups[-1].append(windows[index])
    return [_padded(groups[index]) for index in random.permutation(len(groups))]


def _padded(windows: list[np.ndarray]) -> np.ndarray:
    batch = np.full((len(windows), max(map(len, windows))), -1, np.int64)
    for row, window in enumerate(windows):
        batch[row, : len(window)] = window
    return batch
