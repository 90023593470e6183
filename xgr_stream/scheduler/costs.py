"""What a step of the device takes, learned from those that ran."""

from __future__ import annotations

from collections import deque
from statistics import fmean, median
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

SAMPLES = 9
"""Steps of a shape that are remembered: their median stands for it, whatever four of them were."""
FEW = 3
"""A shape counts when it was seen more often: the first steps compile kernels and capture graphs."""
REFIT_EVERY = 16
"""Steps between two fits, unless a shape is new."""
FADES_AFTER = 16
"""Steps after which a shape that did not come counts half: what comes now must be predicted best."""
FORGOTTEN_AFTER = 4_096
"""Steps after which a shape that no longer comes is forgotten."""


class Shape(NamedTuple):
    """What is counted of a step: beams and tokens to append of a decode, users and tokens of an append."""

    rows: int
    tokens: int

    @property
    def cell(self) -> tuple[int, int]:
        """Shapes within a factor of two count as one."""
        return self.rows.bit_length(), self.tokens.bit_length()


class _Cell:
    """The latest steps of about one shape."""

    def __init__(self) -> None:
        self.steps: deque[tuple[Shape, float]] = deque(maxlen=SAMPLES)
        self.noted_at = 0

    @property
    def seconds(self) -> float:
        times = [seconds for _, seconds in self.steps]
        return median(times) if self.settled else min(times)

    @property
    def settled(self) -> bool:
        return len(self.steps) > FEW

    @property
    def rows(self) -> float:
        return fmean(shape.rows for shape, _ in self.steps)

    @property
    def tokens(self) -> float:
        return fmean(shape.tokens for shape, _ in self.steps)


class StepCosts:
    """Seconds of a step: `fixed_s + rows · row_s + tokens · token_s`, fitted to the medians of the shapes seen lately.

    `note` on one thread; the three coefficients may be read on any. All are 0 until something is known: a shape that
    was seen more than `FEW` times, or if `hasty` any.
    """

    def __init__(self, *, hasty: bool = False) -> None:
        self._hasty = hasty
        self.fixed_s = 0.0
        self.row_s = 0.0
        self.token_s = 0.0
        self.known = False
        """Whether anything is."""
        self.most_rows = 0.0
        """Of a step that counts."""
        self._cells: dict[tuple[int, int], _Cell] = {}
        self._noted = 0

    def note(self, rows: int, tokens: int, seconds: float) -> None:
        """A step of so many rows and tokens took `seconds`."""
        shape = Shape(rows, tokens)
        self._noted += 1
        new = shape.cell not in self._cells
        cell = self._cells.setdefault(shape.cell, _Cell())
        cell.steps.append((shape, seconds))
        cell.noted_at = self._noted
        if new or len(cell.steps) <= FEW + 1 or self._noted % REFIT_EVERY == 0:
            self._fit()

    def seconds(self, rows: int, tokens: int) -> float:
        """That a step of this shape takes, by the fit."""
        return self.fixed_s + rows * self.row_s + tokens * self.token_s

    def shapes(self) -> list[tuple[float, float, float]]:
        """(rows, tokens, seconds) of each shape that counts."""
        return [(cell.rows, cell.tokens, cell.seconds) for cell in self._counting()]

    def _counting(self) -> list[_Cell]:
        settled = [cell for cell in self._cells.values() if cell.settled]
        return list(self._cells.values()) if not settled and self._hasty else settled

    def _fit(self) -> None:
        oldest = self._noted - FORGOTTEN_AFTER
        self._cells = {key: cell for key, cell in self._cells.items() if cell.noted_at >= oldest}
        cells = self._counting()
        if not cells:
            return
        table = np.array([(cell.rows, cell.tokens, cell.seconds) for cell in cells])
        weights = np.array([1.0 / (1.0 + (self._noted - cell.noted_at) / FADES_AFTER) for cell in cells])
        self.most_rows = max(cell.rows for cell in cells)
        self.fixed_s, self.row_s, self.token_s = _fitted(table[:, :2], np.maximum(table[:, 2], 1e-9), weights)
        self.known = True


def _fitted(
    shapes: NDArray[np.float64], seconds: NDArray[np.float64], weights: NDArray[np.float64]
) -> tuple[float, float, float]:
    """Coefficients, none below zero, with the least squares of weighted relative errors. What few shapes leave open is
    split evenly between them."""
    features = np.column_stack((np.ones(len(shapes)), shapes))
    scales = np.maximum(features.mean(axis=0), 1e-9)
    weighted = features / scales * (weights / seconds)[:, None]
    used = [i for i in range(3) if features[:, i].any()]
    while used:
        found = np.linalg.lstsq(weighted[:, used], weights, rcond=1e-6)[0]
        if found.min() >= 0:
            break
        used.pop(int(found.argmin()))
    coefficients = np.zeros(3)
    coefficients[used] = found / scales[used]
    fixed_s, row_s, token_s = coefficients.tolist()
    return fixed_s, row_s, token_s
