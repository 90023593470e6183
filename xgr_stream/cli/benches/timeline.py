"""A trace of torch's profiler, read: which kernels ran for which batch, and when none did."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

ALONE, IN_TURN = "xgr batch alone", "xgr batch in turn"
"""Host ranges of these names mark where a batch begins on the host: after the one before it has ended, or while it is
still running."""
COPIES, GLUE = "copies", "glue"
GROUPS = (
    ("attention", r"attention|attend|attn|flash|fmha|merge_kernel|plan_kernel"),
    (
        "selection",
        r"select|topk|top_k|sort|radix|logsumexp|log_sum_exp|threshold|compact|segments|survivors|beam|normalizer",
    ),
    ("GEMM", r"gemm|gate_up_silu|cutlass|cublas|nvjet|xmma|splitk|split_k|scaled_mm|wgmma|matmul|gemv"),
    (COPIES, r"^memcpy|^memset"),
)
"""Group → what names its kernels, first match; the rest is glue: norms, rotation, activations, gathers."""
_GROUPS = tuple((group, re.compile(pattern, re.IGNORECASE)) for group, pattern in GROUPS)
_DEVICE_WORK = ("kernel", "gpu_memcpy", "gpu_memset")
_LAUNCHES = ("cuda_runtime", "cuda_driver")


class Span(NamedTuple):
    """Microseconds."""

    start: float
    end: float


class Work(NamedTuple):
    """A kernel or copy on the GPU."""

    name: str
    span: Span


@dataclass(frozen=True, slots=True)
class Timeline:
    """What the GPU did for each of some batches, in their order."""

    batches: Sequence[Sequence[Work]]

    def busy_us(self) -> list[float]:
        """Per batch: time in which at least one kernel or copy ran."""
        return [covered(work.span for work in batch) for batch in self.batches]

    def spans(self) -> list[Span]:
        """Per batch: from its first kernel to the end of its last."""
        return [
            Span(min(work.span.start for work in batch), max(work.span.end for work in batch)) for batch in self.batches
        ]

    def gaps_us(self) -> list[float]:
        """Between batches: from the end of one's last kernel to the start of the next one's first, copies left aside,
        since a batch's inputs are copied while the one before it runs."""
        kernels = [[work.span for work in batch if group_of(work.name) != COPIES] for batch in self.batches]
        edges = [(min(spans).start, max(span.end for span in spans)) for spans in kernels if spans]
        return [max(0.0, after - before) for (_, before), (after, _) in pairwise(edges)]

    def groups(self) -> dict[str, list[float]]:
        """Group → time of its kernels, per batch; those that run at once count twice. Largest first."""
        names = [*(group for group, _ in GROUPS), GLUE]
        per_group: dict[str, list[float]] = {name: [0.0] * len(self.batches) for name in names}
        for number, batch in enumerate(self.batches):
            for work in batch:
                per_group[group_of(work.name)][number] += work.span.end - work.span.start
        return dict(sorted(per_group.items(), key=lambda entry: -sum(entry[1])))

    def kernels(self) -> list[tuple[str, str, float, float]]:
        """(group, name, launches and µs per batch) of each kernel, the longest first."""
        totals: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
        for batch in self.batches:
            for work in batch:
                totals[work.name][0] += 1
                totals[work.name][1] += work.span.end - work.span.start
        count = len(self.batches)
        ordered = sorted(totals.items(), key=lambda entry: -entry[1][1])
        return [(group_of(name), name, launches / count, us / count) for name, (launches, us) in ordered]

    def copies_beside_kernels(self) -> float | None:
        """Share of the copies' time in which a kernel ran too; None without copies."""
        work = [work for batch in self.batches for work in batch]
        copies = [one.span for one in work if group_of(one.name) == COPIES]
        kernels = [one.span for one in work if group_of(one.name) != COPIES]
        time = covered(copies)
        return (time + covered(kernels) - covered([*copies, *kernels])) / time if time else None


def read_trace(trace: Mapping[str, Any]) -> dict[str, Timeline]:
    """Read a trace in Chrome's format: the batches alone and those in turn. Device work belongs to the last batch that
    had begun on the host when it was launched; what was launched before the first is left out."""
    events = [event for event in trace["traceEvents"] if event.get("ph") == "X"]
    begins = sorted(
        (float(event["ts"]), event["name"])
        for event in events
        if event.get("cat") == "user_annotation" and event["name"] in (ALONE, IN_TURN)
    )
    launched = {
        event["args"]["correlation"]: float(event["ts"])
        for event in events
        if event.get("cat") in _LAUNCHES and "correlation" in event.get("args", {})
    }
    batches: list[list[Work]] = [[] for _ in begins]
    for event in events:
        if event.get("cat") in _DEVICE_WORK:
            start = float(event["ts"])
            at = launched.get(event["args"].get("correlation"), start)
            batch = bisect_right(begins, at, key=lambda begin: begin[0]) - 1
            if batch >= 0:
                batches[batch].append(Work(event["name"], Span(start, start + float(event["dur"]))))
    return {
        kind: Timeline([work for work, (_, of) in zip(batches, begins, strict=True) if of == kind and work])
        for kind in (ALONE, IN_TURN)
    }


def group_of(kernel: str) -> str:
    """The group of a kernel's name."""
    return next((group for group, pattern in _GROUPS if pattern.search(kernel)), GLUE)


def covered(spans: Iterable[Span]) -> float:
    """Length of the union."""
    total, end = 0.0, float("-inf")
    for span in sorted(spans):
        if span.end > end:
            total += span.end - max(span.start, end)
            end = span.end
    return total
