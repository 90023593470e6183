"""An engine on each of a machine's devices, while another one is the current one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.gpu.test_engine import CASES
from tests.property.oracle import EPSILON, assert_same
from tests.property.users import append, ask
from xgr_stream.config import CacheConfig
from xgr_stream.model import build_model
from xgr_stream.types import CatalogUpdate, ItemFilter

pytestmark = pytest.mark.gpu

COUNT = max(1, torch.cuda.device_count())


@pytest.fixture(params=range(COUNT), ids=lambda number: f"cuda:{number}")
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    with torch.cuda.device((request.param + 1) % COUNT):
        yield f"cuda:{request.param}"


def test_it_answers_as_on_a_cpu(device: str) -> None:
    case = CASES["plain"]
    cache = CacheConfig(budget_bytes=8 << 20, page_size=case.page_size, host_bytes=8 << 20)
    engines = [case.engine(device=at, cache=cache, beam_width=512, max_batch_rows=1024) for at in (device, "cpu")]
    engines[0].prepare()
    known = case.items["item_id"]

    def check(wanted: ItemFilter) -> None:
        batches = [ask(engine, *((user, 20, 1000, wanted) for user in ("ann", "bob"))) for engine in engines]
        for mine, theirs in zip(*batches, strict=True):
            assert mine.status == theirs.status
            assert_same(mine.items, theirs.items, len(theirs.items))

    for step in range(3):
        for engine in engines:
            append(engine, "ann", [(item, None) for item in known[step : step + 5]])
            append(engine, "bob", [(known[-1 - step], None)])
            engine.demote(["ann"])  # and back
            moved = {known[40]: (step, 1, 1), f"new-{step}": (1, step, 2)}
            updates = [CatalogUpdate(item, sid, ("red",)) for item, sid in moved.items()]
            place = engine.catalog.row(known[step])
            sid, tags = tuple(engine.catalog.sids[place].tolist()), engine.catalog.columns.tags.of_row(place)
            engine.update_catalog([*updates, CatalogUpdate(known[step], sid, tags, False)], 3 * (step + 1))
        check(ItemFilter())
        check(ItemFilter(exclude=tuple(known[5:200]), deny=("red",), seen=True))
        drawn, expected = (
            {item.item_id: item.score for item in engine.recommend("ann", 1000, beam_width=1000, temperature=1.0)}
            for engine in engines
        )
        assert drawn == pytest.approx(expected, abs=EPSILON)
        scores, expected_scores = (engine.score("bob", known[:50]) for engine in engines)
        assert scores == pytest.approx(expected_scores, abs=EPSILON)
        for engine in engines:
            merge = engine.begin_merge()
            assert merge is not None
            merge.run()
            merge.finish()
            engine.check_integrity()


def test_weights_are_quantised_there(device: str) -> None:
    parts = CASES["plain"]._parts
    quantised = build_model(*parts, device=device, dtype="bfloat16", fp8=True).decoder._layers._fp8
    for own, plain in zip(quantised, CASES["plain"].model.decoder._layers._layers, strict=True):
        assert own.gate_up.device == torch.device(device)
        scale = own.gate_up_scale[:, None].cpu()
        # Half a step of FP8 is a sixteenth, and of bfloat16 a 256th.
        error = (own.gate_up.cpu().float() * scale - plain.gate_up).abs()
        assert (error <= plain.gate_up.abs() / 15 + scale * 2.0**-8).all()
