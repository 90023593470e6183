"""`xgr-stream`: the group of subcommands."""

from __future__ import annotations

import click

from xgr_stream import __version__
from xgr_stream.cli.lazy import LazyGroup

SUBCOMMANDS = {
    "bench": "Time the engine and the kernels, each against a baseline.",
    "catalog": "Make a catalog, look at one, compare two, change what is served, go back.",
    "doctor": "Look at device, memory plan, brokers, topics and clocks; a remedy for each finding.",
    "evaluate": "Recall and NDCG of a checkpoint on a file of sequences.",
    "history": "Bring histories in from Parquet, look at one, start anew.",
    "plan": "Workers, memory and batches for a load and a P99, from measured step times.",
    "soak": "Run workers under load and faults, and prove that nothing was lost.",
    "worker": "Consume events and answer requests, without a Faust app.",
}
"""Name → summary. The command is the function of that name in `xgr_stream/cli/<name>.py`."""


@click.command(
    cls=LazyGroup,
    package="xgr_stream.cli",
    summaries=SUBCOMMANDS,
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True},
)
@click.version_option(__version__, prog_name="xgr-stream")
def main() -> None:
    """Generative recommendations inside your stream processor."""


if __name__ == "__main__":
    main()
