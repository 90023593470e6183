"""Figures as bars or curves in a PNG. matplotlib is loaded when one is asked for."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from xgr_stream.errors import ConfigError


def check_plot() -> None:
    """Raises `ConfigError` where a plot can't be drawn."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ConfigError("--plot needs matplotlib: pip install 'xgr-stream[bench]'")


class Drawing(Protocol):
    """What a bench can draw."""

    def draw(self, path: Path, caption: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Plot:
    """Groups of horizontal bars, one bar of each series in every group."""

    title: str
    unit: str
    groups: Sequence[str]
    series: Mapping[str, Sequence[float | None]]
    """Name → one value per group; None: no bar."""
    log: bool = False

    def draw(self, path: Path, caption: str) -> None:
        """Write the PNG; `caption` says below the bars what was measured where."""
        check_plot()
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        shown = {name: values for name, values in self.series.items() if any(value is not None for value in values)}
        thickness = 0.8 / max(1, len(shown))
        height = 1.2 + 0.18 * caption.count("\n") + 0.28 * max(1, len(shown)) * len(self.groups)
        figure = Figure(figsize=(9, height), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        for number, (name, values) in enumerate(shown.items()):
            places = [i - 0.4 + thickness * (number + 0.5) for i in range(len(self.groups))]
            bars = axes.barh(places, [value or 0.0 for value in values], thickness, label=name)
            axes.bar_label(bars, ["" if value is None else f"{value:,.4g}" for value in values], padding=3, fontsize=8)
        axes.set_yticks(range(len(self.groups)), self.groups)
        axes.invert_yaxis()
        axes.margins(x=0.12)
        if self.log:
            axes.set_xscale("log")
            axes.set_xlim(left=0.3 * min((v for values in shown.values() for v in values if v), default=1.0))
        axes.set_title(self.title)
        axes.set_xlabel(f"{self.unit}\n\n{caption}", fontsize=7, loc="left")
        if len(shown) > 1:
            axes.legend(fontsize=8)
        figure.savefig(path, format="png", dpi=150)


@dataclass(frozen=True, slots=True)
class Curves:
    """Lines over one horizontal axis, their values on a logarithmic one."""

    title: str
    across: str
    """What the horizontal axis is, with its unit."""
    up: str
    xs: Sequence[float]
    series: Mapping[str, Sequence[float | None]]
    """Name → one value for each of `xs`; None: no point."""
    limits: Mapping[str, float]
    """Name → a horizontal line."""

    def draw(self, path: Path, caption: str) -> None:
        """Write the PNG; `caption` says below the curves what was measured where."""
        check_plot()
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=(9, 5 + 0.18 * caption.count("\n")), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        for name, values in self.series.items():
            points = sorted((x, value) for x, value in zip(self.xs, values, strict=True) if value is not None)
            axes.plot([x for x, _ in points], [value for _, value in points], marker="o", label=name)
        for name, limit in self.limits.items():
            axes.axhline(limit, linestyle="--", linewidth=0.8, color="grey")
            axes.annotate(name, (0.01, limit), xycoords=("axes fraction", "data"), fontsize=7, va="bottom")
        axes.set_yscale("log")
        axes.set_ylabel(self.up)
        axes.set_title(self.title)
        axes.grid(alpha=0.3)
        axes.set_xlabel(f"{self.across}\n\n{caption}", fontsize=7, loc="left")
        axes.legend(fontsize=8)
        figure.savefig(path, format="png", dpi=150)
