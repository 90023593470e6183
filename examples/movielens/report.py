"""What the demo prints."""

from __future__ import annotations

from collections.abc import Sequence

import click

from examples.movielens.baselines import popularity, top_items
from examples.movielens.data import MovieLens, UserEvents
from examples.movielens.replay import Answer
from xgr_stream.evaluation import Quality, rank_of

WATCHED_SHOWN = 3
RECOMMENDED_SHOWN = 5
TITLE_CHARS = 60


def heading(text: str) -> None:
    click.secho(f"\n{text}", bold=True)


def show_users(data: MovieLens, users: Sequence[UserEvents], answers: Sequence[Answer]) -> None:
    """The first two users with a hit, and the first without one."""
    by_user = {user.user_id: sorted(_of(user, answers), key=lambda answer: answer.number) for user in users}
    hits = {user_id for user_id, own in by_user.items() if any(place_of_target(data, a) is not None for a in own)}
    with_hit = [user for user in users if user.user_id in hits][:2]
    without = [user for user in users if user.user_id not in hits][:1]
    heading(
        f"{len(hits)} of {len(users)} users watched one of their recommendations next. Two who did, one who did not:"
    )
    for user in with_hit + without:
        _show_user(data, user, by_user[user.user_id])


def place_of_target(data: MovieLens, answer: Answer) -> int | None:
    """Where in the recommendation the movie stands that was watched next, from 0."""
    return rank_of(answer.items, data.movies[answer.target].item_id)


def _of(user: UserEvents, answers: Sequence[Answer]) -> list[Answer]:
    return [answer for answer in answers if answer.user is user]


def _show_user(data: MovieLens, user: UserEvents, answers: Sequence[Answer]) -> None:
    """One user's last movies, what was recommended and what they watched next, twice."""
    first = answers[0]
    heading(f"User {user.user_id}, {first.number} movies so far, the last ones:")
    for item in first.history[-WATCHED_SHOWN:]:
        click.echo(f"     {_title(data, int(item))}")
    for answer in answers:
        place = place_of_target(data, answer)
        click.echo("   recommended:")
        for rank, item_id in enumerate(answer.items):
            if rank < RECOMMENDED_SHOWN or rank == place:
                _show_item(data, rank, item_id, hit=rank == place)
        if len(answer.items) > RECOMMENDED_SHOWN and (place is None or place < RECOMMENDED_SHOWN):
            click.secho(f"     … and {len(answer.items) - RECOMMENDED_SHOWN} more", dim=True)
        verdict = "not among the ten" if place is None else f"recommended at place {place + 1}"
        click.echo(f"   watched next: {_title(data, answer.target)}, {verdict}")


def model_quality(data: MovieLens, answers: Sequence[Answer], k: int) -> Quality:
    return Quality.of_ranks([place_of_target(data, answer) for answer in answers], k)


def popularity_quality(data: MovieLens, answers: Sequence[Answer], k: int) -> Quality:
    """Popularity by training counts, for the same events, with the same items excluded."""
    scores = popularity(data)
    ranks = [rank_of(top_items(scores(answer.history), answer.history, k), answer.target) for answer in answers]
    return Quality.of_ranks(ranks, k)


def _show_item(data: MovieLens, rank: int, item_id: str, *, hit: bool) -> None:
    movie = next(movie for movie in data.movies if movie.item_id == item_id)
    click.secho(
        f"   {'★' if hit else ' '}{rank + 1:>3} {_shortened(str(movie))}", fg="green" if hit else None, bold=hit
    )


def _title(data: MovieLens, item: int) -> str:
    return _shortened(str(data.movies[item]))


def _shortened(text: str) -> str:
    return text if len(text) <= TITLE_CHARS else f"{text[: TITLE_CHARS - 1]}…"
