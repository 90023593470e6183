"""A shop's own Faust app, with its own topic and record type, that gains a recommender by one call.

    SHOP_MODEL=models/shop SHOP_CATALOG=catalog.parquet python -m examples.embed_in_faust worker

Each page view is an event of its user. For each, the shop's agent asks for offers, in process, and writes them to a
topic; the answer has seen the page view that it belongs to.
"""

from __future__ import annotations

import os

import faust

import xgr_stream as xgr
from xgr_stream.client import EventPosition

app = faust.App(
    "shop",
    broker=os.environ.get("SHOP_BROKER", "kafka://localhost:9092"),
    web_bind="127.0.0.1",
    web_port=int(os.environ.get("SHOP_WEB_PORT", "6066")),
    consumer_auto_offset_reset="earliest",
    topic_partitions=4,
)


class PageView(faust.Record):
    user_id: str
    item_id: str | None
    cart: list[str]


class Offer(faust.Record):
    user_id: str
    item_ids: list[str]


page_views = app.topic("page-views", key_type=str, value_type=PageView)
offers = app.topic("offers", key_type=str, value_type=Offer)


def event_of(view: PageView) -> xgr.UserEvent | None:
    """What a page view tells about its user; None: nothing."""
    return None if view.item_id is None else xgr.UserEvent(view.user_id, view.item_id, action="view")


recommender = xgr.attach(
    app,
    model=os.environ.get("SHOP_MODEL", "models/shop"),
    catalog=os.environ.get("SHOP_CATALOG", "catalog.parquet"),
    events=page_views,
    event=event_of,
    # A recommender's topics are its own: another one's history belongs to other events.
    config=xgr.StreamConfig(
        topics=xgr.TopicNames(
            requests="shop-rec-requests",
            responses="shop-rec-responses",
            dead_letters="shop-rec-dead-letters",
            changelog="shop-history-changelog",
            catalog="shop-catalog-updates",
        )
    ),
)


@app.agent(page_views)
async def offer(views: faust.Stream[PageView]) -> None:
    async for event in views.events():
        view, message = event.value, event.message
        seen = EventPosition(message.partition, message.offset)
        try:
            response = await recommender.recommend(view.user_id, k=5, exclude=view.cart, timeout=5.0, after=seen)
        except xgr.XgrError as error:
            app.log.warning("no offers: %s", error)
            continue
        item_ids = [item.item_id for item in response.items]
        await offers.send(key=view.user_id, value=Offer(user_id=view.user_id, item_ids=item_ids))


if __name__ == "__main__":
    app.main()
