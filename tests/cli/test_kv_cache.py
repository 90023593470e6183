"""What the commands say and do with the KV cache in FP8."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from xgr_stream.cli.main import main
from xgr_stream.config import EngineConfig
from xgr_stream.engine import Engine
from xgr_stream.testing import save_tiny_model, tiny_catalog

TINY = ("--shape", "tiny", "--device", "cpu", "--items", "800")
FP8 = ("--kv-cache-dtype", "fp8")


def run(*arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == code, result.output
    return result


@pytest.fixture
def shop(tmp_path: Path) -> tuple[str, ...]:
    """The options that name a checkpoint and its catalog."""
    save_tiny_model(tmp_path / "model")
    tiny_catalog().save(tmp_path / "catalog.parquet")
    return "--model", str(tmp_path / "model"), "--catalog", str(tmp_path / "catalog.parquet")


def test_evaluate_says_how_many_of_the_best_are_the_same(tmp_path: Path, shop: tuple[str, ...]) -> None:
    rows = [{"user_id": f"u{n}", "items": [f"item-{(7 * n + i) % 60}" for i in range(6)]} for n in range(12)]
    sequences = tmp_path / "sequences.jsonl"
    sequences.write_text("\n".join(map(json.dumps, rows)))
    options = ("evaluate", *shop, "--sequences", str(sequences), "--k", "5")
    plain = json.loads(run(*options).stdout.splitlines()[-1])
    result = run(*options, *FP8, "--overlap")
    figures = json.loads(result.stdout.splitlines()[-1])
    assert (plain["dtype"], plain["kv_cache_dtype"], plain["overlap"]) == ("float32", "auto", None)
    assert figures["kv_cache_dtype"] == "fp8"
    assert figures["model_version"] != plain["model_version"]
    assert 0.5 < figures["overlap"] <= 1
    assert f"overlap     {figures['overlap']:.4f} of the best 5 are those without" in result.stdout
    half = json.loads(run(*options, *FP8, "--dtype", "bfloat16", "--overlap").stdout.splitlines()[-1])
    assert half["dtype"] == "bfloat16"
    assert 0.5 < half["overlap"] <= 1
    refused = run(*options, "--overlap", code=2)
    assert "--overlap compares --fp8 or --kv-cache-dtype fp8 with neither" in refused.output


def test_the_bench_compares_users_and_answers(tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    sizes = ("--context", "60", "--users", "6", "--asked", "4", "--beam", "40", "--k", "20")
    run("bench", "kv-cache", *TINY, *sizes, "--json", str(path))
    plain, fp8 = json.loads(path.read_text())["rows"]
    assert (plain["kv_cache_dtype"], fp8["kv_cache_dtype"]) == ("auto (float32)", "fp8 (float8_e4m3fn)")
    assert plain["users_warm"] == fp8["users_warm"] == 6
    # A page of 64 tokens has two hidden states of 64 float32 beside it: more here than in any model that serves.
    assert fp8["ratio"] == pytest.approx(plain["user_bytes"] / fp8["user_bytes"], rel=1e-3)
    assert 3.5 < fp8["ratio"] < 4
    assert 0.5 < fp8["overlap"] < 1
    assert 0 < fp8["score_difference"] < 0.5
    assert "overlap" not in plain
    run("bench", "kv-cache", *TINY, *sizes, *FP8, "--json", str(path))
    (alone,) = json.loads(path.read_text())["rows"]
    assert alone["kv_cache_dtype"] == "fp8 (float8_e4m3fn)"
    assert "--beam must be at least --k" in run("bench", "kv-cache", *TINY, "--beam", "4", code=1).output


@pytest.mark.parametrize("options", [("--context", "30", "--host"), ("--events", "5", "--model")])
def test_bench_engine_takes_it(tmp_path: Path, shop: tuple[str, ...], options: tuple[str, ...]) -> None:
    path, sizes = tmp_path / "figures.json", ("--batch", "1", "--beam", "4", "--repeats", "1")
    what = (*shop, *options[:-1]) if options[-1] == "--model" else (*TINY, *options)
    result = run("bench", "engine", *what, *sizes, *FP8, "--json", str(path))
    assert json.loads(path.read_text())["rows"]
    assert "KV cache in FP8" in result.output


def test_tiers_hold_twice_the_users(tmp_path: Path) -> None:
    sizes = ("--device-gb", "3", "--host-gb", "6", "--users", "50", "--requests", "40", "--warm-up", "20")
    for dtype, held in (("auto", "5 users on the device, 10 more"), ("fp8", "10 users on the device, 20 more")):
        assert held in run("bench", "tiers", *sizes, "--kv-cache-dtype", dtype).output


def test_the_doctor_plans_with_it(shop: tuple[str, ...]) -> None:
    """Without a broker, which is an error of its own."""
    users = []
    for dtype in ("auto", "fp8"):
        said = run("doctor", *shop, "--broker", "127.0.0.1:1", "--cache-mib", "50", "--kv-cache-dtype", dtype, code=1)
        (line,) = (line for line in said.output.splitlines() if "warm on the device" in line)
        assert ("MiB in FP8;" in line) == (dtype == "fp8")
        users.append(int(line.split()[-2].replace(",", "")))
    assert users[1] // users[0] in (4, 5)  # a part of a page is no user's


def test_the_doctor_plans_the_tiers_behind_it(shop: tuple[str, ...], tmp_path: Path) -> None:
    on_disk = ("--file-cache-mib", "100", "--file-cache-dir", str(tmp_path))
    said = run("doctor", *shop, "--broker", "127.0.0.1:1", "--host-cache-mib", "10", *on_disk, code=1).output
    host, file = (int(line.split()[-2].replace(",", "")) for line in said.splitlines() if "behind it in" in line)
    assert 9 * host <= file <= 11 * host
    most = str(1 << 40)
    too_much = ("--host-cache-mib", most, "--file-cache-mib", most, "--file-cache-dir", str(tmp_path))
    said = run("doctor", *shop, "--broker", "127.0.0.1:1", *too_much, code=1).output
    assert said.count("MiB are available") == 2
    assert "less --host-cache-mib" in said
    assert "less --file-cache-mib" in said


def test_a_file_needs_a_directory_and_host_memory(shop: tuple[str, ...]) -> None:
    said = run("doctor", *shop, "--host-cache-mib", "10", "--file-cache-mib", "10", code=1).output
    assert "file_bytes and file_directory must be given together" in said


def test_the_worker_takes_it(monkeypatch: pytest.MonkeyPatch, shop: tuple[str, ...]) -> None:
    taken: list[EngineConfig] = []

    class Enough(Exception):
        pass

    def load(*_: object, config: EngineConfig, **__: object) -> Engine:
        taken.append(config)
        raise Enough

    monkeypatch.setattr(Engine, "load", load)
    result = CliRunner().invoke(main, ["worker", *shop, *FP8])
    assert isinstance(result.exception, Enough)
    assert taken[0].cache.kv_cache_dtype == "fp8"
