"""The engine alone: no Kafka, no Faust. Events go in, recommendations come out.

    python examples/offline_engine.py

runs it on a random model, to be seen working; `--model DIR --catalog FILE` on your own.
"""

from __future__ import annotations

import argparse

import xgr_stream as xgr
from xgr_stream.testing import tiny_catalog, tiny_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="checkpoint directory")
    parser.add_argument("--catalog", help="catalog file")
    args = parser.parse_args()

    engine = xgr.Engine.load(model=args.model or tiny_model(), catalog=args.catalog or tiny_catalog())
    seen = list(engine.catalog.item_ids[:3])

    engine.append("user-7", seen)
    print("after", ", ".join(seen))
    for item in engine.recommend("user-7", k=5, beam_width=32, exclude=seen):
        print(f"  {item.score:8.3f}  {item.item_id}  {item.sid}")

    following = engine.catalog.item_ids[5]
    engine.append("user-7", [following])  # computes this event's few tokens, not the history again
    print("after one more,", following)
    for item in engine.recommend("user-7", k=5, beam_width=32, exclude=[*seen, following]):
        print(f"  {item.score:8.3f}  {item.item_id}  {item.sid}")

    engine.catalog.set_available([item.item_id], False)  # sold out: gone from the next answer on
    assert item.item_id not in {other.item_id for other in engine.recommend("user-7", k=20)}
    print(engine.stats())


if __name__ == "__main__":
    main()
