"""Garbage that only a collection finds."""

from __future__ import annotations


class Knot:
    """`held`: what goes with it."""

    def __init__(self, *held: object) -> None:
        self.itself, self.held = self, held
