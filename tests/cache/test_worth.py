import random

import pytest

from xgr_stream.cache.worth import DecayedRate, WorthQueue


def test_a_time_that_a_user_was_seen_counts_half_after_its_half_life():
    worth = DecayedRate(8)
    for _ in range(2):
        worth.seen("often")
    for _ in range(7):
        worth.seen("others")
    worth.seen("once")
    # Twice, eight times earlier, is worth what once is now.
    assert worth.of("often", 1.0) == pytest.approx(worth.of("once", 1.0), abs=0.1)


def test_what_costs_twice_as_much_is_worth_twice_the_rate():
    worth = DecayedRate(1_000_000)
    for user_id in ("costly", "frequent", "frequent"):
        worth.seen(user_id)
    assert worth.of("costly", 6.0) == pytest.approx(worth.of("frequent", 3.0), abs=1e-4)


def test_a_rate_equals_the_sum_of_what_each_time_counts():
    draws = random.Random(0)
    worth, seen = DecayedRate(7), []
    for _ in range(400):
        seen.append(draws.choice("abcd"))
        worth.seen(seen[-1])
    rates = dict.fromkeys("abcd", 0.0)
    for at, user in enumerate(seen, 1):
        rates[user] += 2.0 ** ((at - len(seen)) / 7)
    assert sorted("abcd", key=lambda user: worth.of(user, 1.0)) == sorted("abcd", key=rates.__getitem__)
    ratio = 2.0 ** (worth.of("a", 1.0) - worth.of("b", 1.0))
    assert ratio == pytest.approx(rates["a"] / rates["b"])


def test_only_so_many_users_are_remembered_and_nobody_who_is_forgotten():
    worth = DecayedRate(10, remembered=3)
    for user_id in "abcdb":
        worth.seen(user_id)
    never_seen = worth.of("nobody", 1.0)
    assert worth.of("a", 1.0) == never_seen
    assert worth.of("b", 1.0) > never_seen
    worth.forget("b")
    assert worth.of("b", 1.0) == worth.of("nobody", 1.0)


def test_the_queue_gives_the_least_worthy_whatever_was_put_before():
    draws = random.Random(1)
    queue, known = WorthQueue(), {}
    for _ in range(5_000):
        user_id = f"user-{draws.randrange(40)}"
        what = draws.random()
        if what < 0.6:
            known[user_id] = draws.choice((draws.random(), 0.5))
            queue.put(user_id, known[user_id])
        elif what < 0.8:
            known.pop(user_id, None)
            queue.remove(user_id)
        elif known:
            worth, found = queue.pop() or (None, None)
            assert (worth, found) == min((worth, user) for user, worth in known.items())
            del known[found]
        assert len(queue) == len(known)
        assert (user_id in queue) == (user_id in known)
    assert sorted(queue.users()) == sorted(known)
    while known:
        del known[queue.pop()[1]]
    assert queue.pop() is None


def test_the_least_worthy_that_make_room_are_named_or_nobody_is():
    random.seed(3)
    queue, worths, sizes = WorthQueue(), {}, {f"user-{i}": i % 5 for i in range(40)}
    for _ in range(3_000):
        user = random.choice(list(sizes))
        if random.random() < 0.3:
            queue.remove(user)
            worths.pop(user, None)
        else:
            worths[user] = float(random.randrange(10))
            queue.put(user, worths[user])
        wanted, below = random.randrange(-2, 30), float(random.randrange(11))
        expected, made = [], 0
        for worth, other in sorted((worth, other) for other, worth in worths.items()):
            if made < wanted and worth < below and sizes[other]:
                expected.append(other)
                made += sizes[other]
        named = queue.least_for(wanted, sizes.__getitem__, below=below)
        assert named == (expected if made >= wanted else None)
    assert set(queue.users()) == worths.keys()
    assert [queue.pop() for _ in worths] == sorted((worth, user) for user, worth in worths.items())


def test_who_was_forgotten_is_worth_no_more_than_one_seen_once_just_now():
    worth = DecayedRate(1_000, remembered=5)
    for user_id in ("old", *["regular"] * 50, "b", "c", "d"):
        worth.seen(user_id)
    worth.seen("now")  # and "regular" is the longest unseen
    just_now = worth.of("now", 1.0)
    assert worth.of("old", 1.0) < just_now < worth.of("regular", 1.0)
    worth.forget("b")
    assert worth.of("old", 1.0) < just_now
    for i in range(3_000):
        worth.seen("wxyz"[i % 4])
    assert worth.of("old", 1.0) <= min(worth.of(user, 1.0) for user in "wxyz")
