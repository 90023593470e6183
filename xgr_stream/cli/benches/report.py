"""What a bench prints and writes: where it ran, a table, JSON."""

from __future__ import annotations

import importlib.util
import json
import platform
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import torch

from xgr_stream import __version__
from xgr_stream.cli.benches.options import Output
from xgr_stream.cli.benches.plots import Drawing, check_plot
from xgr_stream.cli.benches.samples import Samples
from xgr_stream.errors import ConfigError


def environment(device: torch.device) -> dict[str, str]:
    """Hardware and versions that the figures belong to."""
    found = {"xgr-stream": __version__, "python": platform.python_version(), "torch": torch.__version__}
    if importlib.util.find_spec("triton") is not None:
        import triton

        found["triton"] = str(triton.__version__)
    if device.type != "cuda":
        return {**found, "device": platform.machine(), "torch threads": str(torch.get_num_threads())}
    return {
        **found,
        "cuda": str(torch.version.cuda),
        "device": torch.cuda.get_device_name(device),
        "driver": _driver(),
    }


def _driver() -> str:
    query = ("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    try:
        answer = subprocess.run(query, capture_output=True, text=True, check=True, timeout=30).stdout
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return answer.splitlines()[0].strip() if answer.strip() else "unknown"


@dataclass(slots=True)
class Report:
    """The figures of one run, as they come in."""

    name: str
    columns: Mapping[str, str]
    """Key of a row → heading."""
    setting: Mapping[str, object]
    rows: list[dict[str, object]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    more: dict[str, object] = field(default_factory=dict)
    """What belongs to the whole run; goes into the JSON alone."""

    def print_header(self) -> None:
        click.echo(f"xgr-stream bench {self.name}")
        for name, value in self.setting.items():
            click.echo(f"  {name}: {value}")

    def add(self, row: dict[str, object]) -> None:
        """A row, said to the terminal at once, so that a run that ends early has shown what it had."""
        self.rows.append(row)
        click.echo(f"  {' | '.join(_cell(row[key]) for key in self.columns if row.get(key) is not None)}", err=True)

    def table(self) -> str:
        """The rows as a Markdown table."""
        cells = [list(self.columns.values())]
        cells += [[_cell(row.get(key)) for key in self.columns] for row in self.rows]
        widths = [max(len(line[i]) for line in cells) for i in range(len(self.columns))]
        rule = ["-" * (width - 1) + ":" for width in widths]
        return "\n".join(_line(line, widths) for line in (cells[0], rule, *cells[1:]))

    def finish(self, output: Output, plot: Drawing | None = None) -> None:
        """Print the table and the notes, and write what was asked for."""
        click.echo(self.table())
        for note in self.notes:
            click.echo(note)
        setting = "\n".join(f"{name}: {value}" for name, value in self.setting.items())
        failures = [_failure(output.json, self._write_json)]
        if plot is not None:
            failures.append(_failure(output.plot, lambda path: plot.draw(path, setting)))
        if any(failures):
            raise click.ClickException("; ".join(filter(None, failures)))

    def _write_json(self, path: Path) -> None:
        figures = {
            "bench": self.name,
            "setting": {name: str(value) for name, value in self.setting.items()},
            "rows": self.rows,
            "notes": self.notes,
            **self.more,
        }
        path.write_text(json.dumps(figures, indent=2, default=_plain) + "\n", encoding="utf-8")


def start(name: str, columns: Mapping[str, str], setting: Mapping[str, object], output: Output) -> Report:
    """A report whose header is printed. Raises `ConfigError` now for what can't be written or drawn at the end."""
    if output.plot is not None:
        check_plot()
    for path in (output.json, output.plot):
        if path is not None and not path.parent.is_dir():
            raise ConfigError(f"{path} must be in a directory that is there, and there is no {path.parent}")
    report = Report(name, columns, setting)
    report.print_header()
    return report


def _failure(path: Path | None, write: Callable[[Path], None]) -> str | None:
    """Why what was asked for could not be written."""
    try:
        if path is not None:
            write(path)
    except OSError as error:
        return f"{path} cannot be written: {error}"
    return None


def _plain(value: object) -> Any:
    if isinstance(value, Samples):
        return value.figures()
    raise TypeError(f"{value!r} is no figure")


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4f}" if abs(value) < 0.1 else f"{value:,.2f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    return f"| {' | '.join(cell.rjust(width) for cell, width in zip(cells, widths, strict=True))} |"
