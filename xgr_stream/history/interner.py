"""Strings as small integers, so that an event takes six bytes."""

from __future__ import annotations

from collections.abc import Sequence


class Interner:
    """Numbers strings from 0 in the order in which they come; append-only.

    One thread may add while others read the names of numbers they have been given: a name is in the list before its
    number is handed out, and neither ever changes.
    """

    __slots__ = ("_names", "_numbers")

    def __init__(self) -> None:
        self._names: list[str] = []
        self._numbers: dict[str, int] = {}

    def add(self, name: str) -> int:
        """The number of `name`, a new one if it has none."""
        number = self._numbers.get(name)
        if number is None:
            number = len(self._names)
            self._names.append(name)
            self._numbers[name] = number
        return number

    def add_all(self, names: Sequence[str]) -> list[int]:
        """The numbers of several names. Nearly always all are known: half the time of adding one by one."""
        try:
            return list(map(self._numbers.__getitem__, names))
        except KeyError:
            return [self.add(name) for name in names]

    def get(self, name: str) -> int | None:
        """The number of `name`, None if it was never added."""
        return self._numbers.get(name)

    def __getitem__(self, number: int) -> str:
        return self._names[number]

    def __len__(self) -> int:
        return len(self._names)
