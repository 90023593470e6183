"""Events and requests over Kafka, from any program. Start a worker first: `xgr-stream worker --help`.

python -m examples.client --broker localhost:9092 --user user-7 --watched item-1 --watched item-2
"""

from __future__ import annotations

import asyncio

import click

from xgr_stream import RecommendClient, RecommendResponse, XgrError


async def talk(client: RecommendClient, user_id: str, watched: tuple[str, ...]) -> None:
    position = None
    for item_id in watched:
        position = await client.send_event(user_id, item_id, action="watch")

    # `after`: the answer must have seen the last of these events.
    response = await client.recommend(user_id, k=5, exclude=watched, timeout=10.0, after=position)
    show(response)

    # One client serves as many requests at a time as you like. An error response is raised as what it names.
    others = [f"user-{number}" for number in range(20)]
    responses = await asyncio.gather(
        *(client.recommend(other, k=5, timeout=10.0) for other in others), return_exceptions=True
    )
    failures = [response for response in responses if isinstance(response, XgrError)]
    click.echo(f"{len(responses) - len(failures)} of {len(others)} other users answered")


def show(response: RecommendResponse) -> None:
    click.echo(f"{response.user_id}: {response.event_count} events seen, cache {response.cache}")
    for item in response.items:
        click.echo(f"  {item.item_id}  {item.score:.3f}")


@click.command()
@click.option("--broker", "bootstrap", default="localhost:9092")
@click.option("--user", "user_id", default="user-7")
@click.option("--watched", multiple=True, default=("item-1", "item-2"))
def main(bootstrap: str, user_id: str, watched: tuple[str, ...]) -> None:
    async def run() -> None:
        async with RecommendClient(bootstrap) as client:
            await talk(client, user_id, watched)

    asyncio.run(run())


if __name__ == "__main__":
    main()
