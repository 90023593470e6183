"""What the documents point to exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from xgr_stream.config import TopicNames
from xgr_stream.metrics import Metrics

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/**/*.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8"))
    local = [target for target in targets if not re.match(r"[a-z]+:", target)]
    assert [target for target in local if not (page.parent / target).exists()] == []


def test_operations_names_every_metric_and_every_topic() -> None:

    text = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    metrics = [metric for metric in vars(Metrics()).values() if hasattr(metric, "_labelnames")]
    exposed = [f"{m._name}_total" if m._type == "counter" else m._name for m in metrics]
    names = TopicNames()
    topics = [getattr(names, name) for name in names.__slots__]
    assert [name for name in (*exposed, *topics) if f"`{name}" not in text] == []
