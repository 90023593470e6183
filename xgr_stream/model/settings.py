"""What a checkpoint says about its items and events: xgr.json, or the same settings as an argument.

Parsing checks everything that can be checked without the model; token ids are compared with the vocabulary when
`xgr_stream.model.tokens` resolves them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

from xgr_stream.config import Normalizer, WindowConfig
from xgr_stream.errors import CheckpointError, ConfigError
from xgr_stream.model.fields import Fields, as_integers, mismatch

FORMAT = 1
MAX_LEVELS = 16


@dataclass(frozen=True, slots=True)
class OffsetTokens:
    """The token of a code is its level's offset + the code."""

    offsets: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TableTokens:
    """The token ids of each level, by code."""

    table: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class NamedTokens:
    """The token of a code is found by its name in the checkpoint's tokenizer."""

    pattern: str
    levels: tuple[str, ...]

    def names(self, level: int, codes: int) -> list[str]:
        # replace, not format: a pattern is data and must not reach into objects.
        parts = [part.replace("{level}", self.levels[level]) for part in self.pattern.split("{code}")]
        return [str(code).join(parts) for code in range(codes)]


@dataclass(frozen=True, slots=True)
class Settings:
    """The parsed xgr.json; docs/checkpoints.md explains each field."""

    codes: tuple[int, ...]
    """Number of codes of each level."""
    item_tokens: OffsetTokens | TableTokens | NamedTokens
    prompt: tuple[int, ...]
    tail: tuple[int, ...]
    begin: tuple[int, ...]
    end: tuple[int, ...]
    actions: Mapping[str, tuple[int, ...]]
    normalizer: Normalizer | None
    """None: the checkpoint does not say."""
    window: WindowConfig | None

    @classmethod
    def from_json(cls, value: object, name: str = "xgr.json") -> Settings:
        """Reads the parsed JSON of an xgr.json. Raises `CheckpointError` for whatever is not one."""
        fields = Fields(value, name)
        fields.only("format", "codes", "item_tokens", "prompt", "tail", "event", "normalizer", "window")
        fields.integer("format", FORMAT, least=FORMAT, most=FORMAT)
        codes = fields.integers("codes", least=1)
        if not 1 <= len(codes) <= MAX_LEVELS:
            mismatch(fields.path("codes"), list(codes), f"a list of 1 to {MAX_LEVELS} numbers of codes, one per level")
        event = fields.object("event")
        event.only("begin", "end", "actions")
        actions = event.object("actions")
        return cls(
            codes=codes,
            item_tokens=_item_tokens(fields, codes),
            prompt=fields.integers("prompt"),
            tail=fields.integers("tail"),
            begin=event.integers("begin"),
            end=event.integers("end"),
            actions={action: actions.integers(action) for action, _ in actions.items()},
            normalizer=_normalizer(fields),
            window=_window(fields),
        )


def _item_tokens(fields: Fields, codes: tuple[int, ...]) -> OffsetTokens | TableTokens | NamedTokens:
    fields.raw("item_tokens")
    tokens = fields.object("item_tokens")
    kinds = [kind for kind in ("offset", "offsets", "table", "pattern") if tokens.has(kind)]
    if len(kinds) != 1:
        raise CheckpointError(f"{tokens.name} must have exactly one of offset, offsets, table, pattern; has {kinds}")
    kind = kinds[0]
    tokens.only(*(("pattern", "levels") if kind == "pattern" else kinds))
    if kind == "offset":
        first = tokens.integer("offset")
        return OffsetTokens(tuple(first + sum(codes[:level]) for level in range(len(codes))))
    if kind == "offsets":
        offsets = tokens.integers("offsets")
        _one_per_level(tokens.path("offsets"), len(offsets), codes)
        return OffsetTokens(offsets)
    if kind == "table":
        return TableTokens(_table(tokens.path("table"), tokens.raw("table"), codes))
    return _named(tokens, codes)


def _table(name: str, value: object, codes: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    if not isinstance(value, list | tuple):
        mismatch(name, value, "a list of one list of token ids per level")
    _one_per_level(name, len(value), codes)
    table = tuple(as_integers(f"{name}[{level}]", row, 0) for level, row in enumerate(value))
    for level, row in enumerate(table):
        if len(row) != codes[level]:
            raise CheckpointError(f"{name}[{level}] must hold {codes[level]} token ids (codes), not {len(row)}")
    return table


def _named(tokens: Fields, codes: tuple[int, ...]) -> NamedTokens:
    pattern, levels = tokens.string("pattern"), tokens.raw("levels")
    if any(pattern.count(part) != 1 for part in ("{level}", "{code}")):
        mismatch(tokens.path("pattern"), pattern, "a string with one {level} and one {code}")
    if not isinstance(levels, list | tuple) or not all(isinstance(level, str) for level in levels):
        mismatch(tokens.path("levels"), levels, "a list of strings")
    _one_per_level(tokens.path("levels"), len(levels), codes)
    return NamedTokens(pattern, tuple(levels))


def _one_per_level(name: str, length: int, codes: tuple[int, ...]) -> None:
    if length != len(codes):
        raise CheckpointError(f"{name} must have one entry per level ({len(codes)}), not {length}")


def _normalizer(fields: Fields) -> Normalizer | None:
    if not fields.has("normalizer"):
        return None
    return cast(Normalizer, fields.choice("normalizer", ("level", "vocabulary", "legal")))


def _window(fields: Fields) -> WindowConfig | None:
    if not fields.has("window"):
        return None
    window = fields.object("window")
    window.only("max_events", "stride")
    try:
        return WindowConfig(
            max_events=window.integer("max_events", least=1),
            stride=window.integer("stride", least=1) if window.has("stride") else None,
        )
    except ConfigError as error:
        raise CheckpointError(f"{window.name}: {error}") from error
