"""Token names of a Hugging Face directory, read as plain JSON."""

from __future__ import annotations

from pathlib import Path

from xgr_stream.errors import CheckpointError
from xgr_stream.model.fields import Fields, mismatch, read_json


def read_vocabulary(path: Path) -> dict[str, object]:
    """Every token name of the checkpoint at `path` → its id (unchecked), from tokenizer.json, or from vocab.json and
    added_tokens.json where an older tokenizer wrote those."""
    if (path / "tokenizer.json").is_file():
        return _from_tokenizer(Fields(read_json(path / "tokenizer.json"), "tokenizer.json"))
    names: dict[str, object] = {}
    for file in ("vocab.json", "added_tokens.json"):
        if (path / file).is_file():
            names |= Fields(read_json(path / file), file).items()
    if not names:
        raise CheckpointError(
            f"item tokens are given by name, and {path} has neither tokenizer.json nor vocab.json or "
            "added_tokens.json to look them up in"
        )
    return names


def _from_tokenizer(tokenizer: Fields) -> dict[str, object]:
    model = tokenizer.object("model")
    names = dict(model.object("vocab").items())
    added = tokenizer.raw("added_tokens") if tokenizer.has("added_tokens") else []
    if not isinstance(added, list):
        mismatch(tokenizer.path("added_tokens"), added, "a list")
    for i, entry in enumerate(added):
        token = Fields(entry, f"{tokenizer.path('added_tokens')}[{i}]")
        names[token.string("content")] = token.raw("id")
    return names
