"""What the benches compute from what they measured."""

from __future__ import annotations

import types
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from time import sleep

import pytest
import torch
from click.testing import CliRunner

import xgr_kernels
from xgr_kernels.timing import Timing, WrongResult, report, require
from xgr_stream.cli.benches import kernels as kernel_bench
from xgr_stream.cli.benches.ablation import compare, shares
from xgr_stream.cli.benches.floors import Cell, Floor, Floors
from xgr_stream.cli.benches.profile import rows
from xgr_stream.cli.benches.report import Report
from xgr_stream.cli.benches.samples import Samples, measure, measure_in_turn
from xgr_stream.cli.benches.timeline import ALONE, IN_TURN, Span, covered, group_of, read_trace
from xgr_stream.testing.shapes import random_model
from xgr_stream.types import Recommendation, RecommendResponse, Status


def test_samples_are_summed_up() -> None:
    samples = Samples(tuple(float(ms) for ms in range(1, 101)))
    assert samples.median == 50.5
    assert samples.quartiles == (25.75, 75.25)
    assert samples.p99 == pytest.approx(99.01)
    assert samples.figures()["samples"] == 100


def test_what_comes_before_a_run_is_not_timed() -> None:
    order: list[str] = []
    samples = measure(
        lambda: order.append("run"),
        torch.device("cpu"),
        repeats=2,
        warm_up=1,
        before=lambda: order.append("before"),
    )
    assert order == ["before", "run"] * 3
    assert len(samples.times_ms) == 2


def test_runs_in_turn_are_told_apart_and_not_in_one_order() -> None:
    order: list[int] = []

    def run(which: int) -> None:
        order.append(which)
        sleep(0.004 * which)

    found = measure_in_turn([partial(run, which) for which in range(4)], torch.device("cpu"), repeats=9, warm_up=2)
    rounds = [tuple(order[first : first + 4]) for first in range(0, len(order), 4)]
    assert len(rounds) == 11
    assert all(sorted(each) == [0, 1, 2, 3] for each in rounds)
    assert len(set(rounds)) > 1
    assert [len(samples.times_ms) for samples in found] == [9] * 4
    assert [samples.median for samples in found] == sorted(samples.median for samples in found)
    assert found[3].median > 11


def test_a_table_is_markdown() -> None:
    report = Report("engine", {"name": "name", "ms": "ms"}, {})
    report.add({"name": "a", "ms": 1234.5})
    report.add({"name": "b"})
    assert report.table().splitlines() == [
        "| name |       ms |",
        "| ---: | -------: |",
        "|    a | 1,234.50 |",
        "|    b |        - |",
    ]


def test_attention_floor_is_the_larger_of_bytes_and_operations() -> None:
    config = random_model("tiny", (16, 16, 16)).config
    floors = Floors(config, (16,) * 3, (16, 200, 900), dtype=torch.bfloat16, device=torch.device("cpu"))
    # 2 layers, 4 heads and 2 KV heads of 16; 10 tokens of 3 requests, 8 beams of each.
    moved = 3 * 10 * 2 * 2 * 2 * 16 * 2
    operations = 4 * 24 * 4 * 16 * 10 * 2
    cell = Cell(context=10, batch=3, beam=8)
    floors.__dict__ |= {"copy_bytes_per_ms": 1.0, "operations_per_ms": 1e9}
    assert floors._attention_ms(cell, 24) == moved
    floors.__dict__ |= {"copy_bytes_per_ms": 1e9, "operations_per_ms": 1.0}
    assert floors._attention_ms(cell, 24) == operations
    # Causal in the first layer, the last token alone in the last.
    assert floors._prefill_attention_ms(cell) == 4 * 3 * 4 * 16 * (10 * 10 / 2 + 10)


def test_a_floor_adds_up() -> None:
    floor = Floor(gemm_ms=1.0, attention_ms=2.0, prefill_gemm_ms=4.0, prefill_attention_ms=8.0)
    assert (floor.warm_ms, floor.cold_ms) == (3.0, 15.0)


def response(*items: tuple[str, float]) -> RecommendResponse:
    listed = tuple(Recommendation(item, score, (0,)) for item, score in items)
    return RecommendResponse("r", "u", Status.OK, listed)


def test_answers_are_equal_up_to_near_ties() -> None:
    expected = response(("a", -1.0), ("b", -2.0), ("c", -3.0))
    assert compare(expected, expected, 1e-3) == (1.0, 0.0, True)
    assert compare(response(("b", -2.0), ("a", -1.0), ("d", -3.0005)), expected, 1e-3)[2]
    assert not compare(response(("a", -1.0), ("b", -2.0), ("d", -2.5)), expected, 1e-3)[2]
    assert not compare(response(("a", -1.5), ("b", -2.0), ("c", -3.0)), expected, 1e-3)[2]
    assert not compare(response(("a", -1.0), ("b", -2.0)), expected, 1e-3)[2]


def test_the_shares_that_were_skipped() -> None:
    assert shares([(0, 1), (192, 256), (0, 0)]) == "0% / 75% / -"


def kernel(name: str, start: float, duration: float, correlation: int, kind: str = "kernel") -> dict[str, object]:
    return {"ph": "X", "cat": kind, "name": name, "ts": start, "dur": duration, "args": {"correlation": correlation}}


def launch(at: float, correlation: int) -> dict[str, object]:
    args = {"correlation": correlation}
    return {"ph": "X", "cat": "cuda_runtime", "name": "cudaGraphLaunch", "ts": at, "dur": 1.0, "args": args}


def mark(name: str, at: float) -> dict[str, object]:
    return {"ph": "X", "cat": "user_annotation", "name": name, "ts": at, "dur": 0.1}


TRACE = {
    "traceEvents": [
        {"ph": "M", "name": "process_name"},
        launch(1, 1),
        kernel("before the first batch", 2, 5, 1),
        mark(ALONE, 10),
        launch(12, 2),
        kernel("nvjet_tst_128x64", 20, 10, 2),
        kernel("_staged_attention_kernel", 28, 6, 2),
        kernel("rms_norm", 40, 4, 2),
        mark(IN_TURN, 100),
        launch(101, 3),
        kernel("nvjet_tst_128x64", 110, 20, 3),
        mark(IN_TURN, 105),
        launch(106, 4),
        launch(107, 5),
        kernel("Memcpy HtoD (Pinned -> Device)", 120, 5, 4, "gpu_memcpy"),
        kernel("nvjet_tst_128x64", 137, 20, 5),
    ]
}


def test_a_trace_tells_groups_and_gaps() -> None:
    read = read_trace(TRACE)
    alone, in_turn = read[ALONE], read[IN_TURN]
    assert alone.spans() == [Span(20, 44)]
    assert alone.busy_us() == [18]
    assert alone.groups() == {"GEMM": [10], "attention": [6], "glue": [4], "selection": [0], "copies": [0]}
    assert alone.kernels()[0] == ("GEMM", "nvjet_tst_128x64", 1, 10)
    assert alone.copies_beside_kernels() is None
    assert in_turn.gaps_us() == [7]
    assert in_turn.copies_beside_kernels() == 1


def test_the_parts_of_a_profile_add_up() -> None:
    floor = Floor(gemm_ms=0.008, attention_ms=0.005, prefill_gemm_ms=0, prefill_attention_ms=0)
    *parts, whole = rows(read_trace(TRACE)[ALONE], floor, alone_ms=0.05)
    assert sum(float(str(row["ms"])) for row in parts) == pytest.approx(0.05)
    assert whole["floor_ms"] == pytest.approx(0.013)
    assert {row["part"]: row["floor_ms"] for row in parts}["GEMM"] == 0.008


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("nvjet_hsh_128x256_64x4_2x1_v_bz_coopA_TNT", "GEMM"),
        ("void cutlass::device_kernel<flash::FlashAttnFwdSm90>", "attention"),
        ("attend", "attention"),
        ("gate_up_silu_kernel", "GEMM"),
        ("find_segments", "selection"),
        ("beam_descend_kernel", "selection"),
        ("legal_normalizer_kernel", "selection"),
        ("Memset (Device)", "copies"),
        ("silu_mul_kernel", "glue"),
        ("kv_write_kernel", "glue"),
    ],
)
def test_kernels_are_told_apart_by_name(name: str, group: str) -> None:
    assert group_of(name) == group


def test_covered_counts_overlaps_once() -> None:
    assert covered([Span(5, 7), Span(0, 4), Span(1, 2), Span(3, 6)]) == 7


def op(name: str, wrong: float) -> types.ModuleType:
    module = types.ModuleType(f"xgr_kernels.{name}.bench")

    def run() -> Iterator[Timing]:
        yield Timing("a case", 1.5, 0.1)

    module.check = lambda: require(name, wrong, 1e-2)  # type: ignore[attr-defined]
    module.run = run  # type: ignore[attr-defined]
    return module


def test_a_kernel_whose_check_fails_is_not_timed() -> None:
    report = Report("kernels", kernel_bench.COLUMNS, {})
    ops = [op("good", 1e-3), op("bad", 0.5), op("unwritten", float("nan"))]
    assert kernel_bench.time_ops(ops, report, seed=0) == ["bad", "unwritten"]
    assert [row["op"] for row in report.rows] == ["good"]
    assert "bad is wrong: error 0.5" in report.notes[0]


def test_bench_kernels_fails_and_names_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_bench.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(kernel_bench, "environment", lambda device: {})
    monkeypatch.setattr(kernel_bench, "bench_of", lambda name: op(name, 1.0 if name == "kv_write" else 0.0))
    result = CliRunner().invoke(kernel_bench.kernels, ["--op", "kv_write", "--op", "beam_select"])
    assert result.exit_code == 1
    assert "not timed, since the check failed: kv_write" in result.output
    assert "| beam_select |" in result.output


def test_bench_kernels_knows_the_ops_and_refuses_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    with_kernel = {kernel.parent.name for kernel in Path(xgr_kernels.__path__[0]).glob("*/kernel.py")}
    assert {"beam_select", "quantize_rows"} <= with_kernel == set(kernel_bench.ops_with_bench())
    monkeypatch.setattr(kernel_bench.torch.cuda, "is_available", lambda: False)
    assert "needs CUDA" in str(CliRunner().invoke(kernel_bench.kernels).exception)
    assert "must be one of" in str(CliRunner().invoke(kernel_bench.kernels, ["--op", "softmax"]).exception)


def test_an_op_s_own_program_checks_first(capsys: pytest.CaptureFixture[str]) -> None:
    def wrong() -> None:
        raise WrongResult("kv_write is wrong")

    with pytest.raises(SystemExit, match="kv_write is wrong"):
        report("kv_write", wrong, list)
    report("kv_write", lambda: None, lambda: [("256 tokens", 0.25, 0.01)])
    assert capsys.readouterr().out == "kv_write, 256 tokens: 0.2500 ms (± 0.0100)\n"
