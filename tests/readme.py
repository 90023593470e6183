"""The README's programs, by what they import or call."""

from __future__ import annotations

import re
from pathlib import Path

README = Path(__file__).parent.parent / "README.md"


def program(mark: str) -> str:
    """The one Python block of the README that holds `mark`."""
    blocks = re.findall(r"^```python\n(.*?)^```", README.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    (block,) = (block for block in blocks if mark in block)
    return str(block)
