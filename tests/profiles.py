"""How many examples the property tests try: HYPOTHESIS_PROFILE=ci (as `.ci/run` has it) a part of a developer's."""

from __future__ import annotations

import os

import hypothesis

CI_SHARE, LEAST = 0.3, 12
"""Of the examples of a test that is dear. What they find and what they miss was looked at by breaking the engine
(docs/log.md, 2026-11-28). The tests of tiers keep all of theirs."""

PROFILE = os.environ.get("HYPOTHESIS_PROFILE", "developer")

# The machines that run these tests are shared: a slow example is no failure, nor are examples that are slow to draw
# (the first strings of a fresh checkout wait for hypothesis's tables of characters). On CI a failure must be one that
# the next run shows again.
for name, most in (("developer", 100), ("ci", 50)):
    hypothesis.settings.register_profile(
        name,
        max_examples=most,
        deadline=None,
        suppress_health_check=[hypothesis.HealthCheck.too_slow],
        derandomize=name == "ci" or bool(os.environ.get("CI")),
        print_blob=True,
    )
hypothesis.settings.load_profile(PROFILE)


def examples(count: int) -> hypothesis.settings:
    """Of a test whose examples take tens of milliseconds each: so many, and on CI a part of them."""
    return hypothesis.settings(max_examples=count if PROFILE != "ci" else max(LEAST, round(CI_SHARE * count)))
