"""The error tree is the one that its docstring draws, and its codes, part of the protocol, are frozen."""

from __future__ import annotations

import inspect
import re

from xgr_stream import errors
from xgr_stream.errors import XgrError

CODES = {
    "XgrError": "internal",
    "InvalidInput": "invalid",
    "InvalidEvent": "invalid_event",
    "InvalidRequest": "invalid_request",
    "InvalidUpdate": "invalid_update",
    "MalformedMessage": "malformed",
    "UnsupportedVersion": "unsupported_version",
    "MessageTooLarge": "too_large",
    "Misplaced": "misplaced",
    "ConfigError": "config",
    "CatalogError": "catalog",
    "CheckpointError": "checkpoint",
    "TopologyError": "topology",
    "RequestFailed": "failed",
    "DeadlineExceeded": "deadline_exceeded",
    "OverCapacity": "over_capacity",
    "NothingLegal": "nothing_legal",
    "NotOwned": "not_owned",
    "ShuttingDown": "shutting_down",
    "Fenced": "fenced",
    "HistoryError": "history",
    "EngineError": "engine",
    "OutOfMemory": "out_of_memory",
    "DeviceLost": "device_lost",
}


def defined() -> dict[str, type[XgrError]]:
    return {name: value for name, value in vars(errors).items() if inspect.isclass(value)}


def drawn() -> list[tuple[str, str]]:
    """(class, parent) of each line of the drawing, from the depth at which its name starts."""
    path: list[tuple[int, str]] = []
    pairs = []
    for line in (errors.__doc__ or "").splitlines():
        found = re.match(r"    [│├└─ ]*(\w+)", line)
        if found is None:
            continue
        depth = found.start(1)
        path = [(at, name) for at, name in path if at < depth]
        pairs.append((found[1], path[-1][1] if path else "Exception"))
        path.append((depth, found[1]))
    return pairs


def test_the_drawing_is_the_tree() -> None:
    assert dict(drawn()) == {name: error.__bases__[0].__name__ for name, error in defined().items()}


def test_codes_are_frozen_and_distinct() -> None:
    assert {name: error.code for name, error in defined().items()} == CODES
    assert len(set(CODES.values())) == len(CODES)


def test_a_code_is_its_class_own() -> None:
    assert all("code" in vars(error) for error in defined().values())


def test_one_except_catches_everything() -> None:
    assert all(issubclass(error, XgrError) for error in defined().values())
