"""`xgr-stream bench`: figures that anyone can reproduce, each with what it was measured against."""

from __future__ import annotations

import click

from xgr_stream.cli.lazy import LazyGroup

BENCHES = {
    "ablation": "What each part of the engine gains: the same requests with one part switched off at a time.",
    "appends": "Events per second that are added to cached prefixes.",
    "catalog": "A catalog that changes while it serves: flips, and batches beside a merge.",
    "engine": "Requests, warm and cold, against the floor of the card or against transformers.",
    "kernels": "Each kernel: its result checked, then timed.",
    "kv-cache": "Users for a GB with the KV cache in FP8, and how far the answers agree.",
    "overlap": "Warm requests while appends are running, against requests alone.",
    "stream": "Events and requests by the clock, through a broker or in process: latency against load until it breaks.",
    "tiers": "Users who outnumber the device's memory, simulated: who is served warm, and what a request costs.",
    "wakeup": "How late the device thread is woken while the event loop computes all the time.",
    "profile": "Where the time of a warm batch goes on the GPU; a trace; allocations.",
    "rebalance": "Requests while a second worker joins, then leaves.",
}
"""Name → summary. The command is the function of that name in `xgr_stream/cli/benches/<name>.py`, dashes being
underscores there."""


@click.command(cls=LazyGroup, package="xgr_stream.cli.benches", summaries=BENCHES)
def bench() -> None:
    """Time the engine and the kernels, each against a baseline."""
