"""The simulation of `xgr-stream bench tiers`, against sequences worked out by hand."""

from __future__ import annotations

from xgr_stream.cache import LeastRecentlyUsed
from xgr_stream.cli.benches.tier_simulation import PAGE_TOKENS, Costs, Simulation

ONE_PAGE_EACH = Costs(PAGE_TOKENS, 1_000, warm_ms=1.0, cold_ms=10.0, copy_bytes_per_s=1e9)


def outcomes(steps: str, *, pages: int, host_pages: int) -> str:
    """How each request finds its user, and whether an event brings its user back. `steps`: users one behind the other,
    in capitals for a request, else for an event. The outcomes: `w`arm, `h`ost, `c`old, `a`head, `.` for nothing."""
    simulation = Simulation(ONE_PAGE_EACH, LeastRecentlyUsed(), pages, host_pages)
    served, found = simulation.served, ""
    for user in steps:
        before = (served.warm, served.host, served.cold, served.ahead)
        (simulation.request if user.isupper() else simulation.event)(user.upper())
        after = (served.warm, served.host, served.cold, served.ahead)
        grown = [kind for kind, old, new in zip("whca", before, after, strict=True) if new > old]
        found += "".join(grown) or "."
        simulation.cache.check_integrity()
    return found


def test_the_least_recently_used_go_first() -> None:
    steps = "AABBCAaBAC"
    # On the device: A, AB, BC, CA, then a keeps A and B is cold again and turns out C.
    assert outcomes(steps, pages=2, host_pages=0) == "cwcwcc.cwc"


def test_the_least_recently_used_of_the_device_go_to_host_memory() -> None:
    """Two users on the device, and two copies in host memory, one of them made ahead of the next to be turned out."""
    steps = [
        # asked for, how it is found; on the device (the next to go first) | copies in host memory
        ("A", "c"),  # A |
        ("B", "c"),  # A B | A
        ("C", "c"),  # B C | A B
        ("A", "h"),  # C A | B C
        ("A", "w"),  # C A | B C
        ("B", "h"),  # A B | C A
        ("D", "c"),  # B D | A B: C was seen the longest ago
        ("C", "c"),  # D C | B D
        ("b", "a"),  # C B | D C: an event brings its user back
        ("B", "w"),  # C B | D C
        ("c", "."),  # B C | D B: one of a user on the device makes them the last to go
        ("a", "."),  # the same: nobody is prefilled ahead
        ("D", "h"),  # C D | B C
        ("A", "c"),  # D A | C D: B, seen before C, goes
        ("B", "c"),
    ]
    found = outcomes("".join(user for user, _ in steps), pages=2, host_pages=2)
    assert found == "".join(how for _, how in steps)
