"""The Compose file, the image and the dashboard, as far as they can be checked without a Docker engine."""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

import click
import compose_spec
import pytest
import yaml

from xgr_stream.config import TopicNames
from xgr_stream.metrics import Metrics
from xgr_stream.stream.topology import CATALOG_CONFIG, CHANGELOG_CONFIG, IN_SYNC, REPLICAS

ROOT = Path(__file__).parent.parent
DOCKER = ROOT / "docker"


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "docker-compose.yml").read_text())


@pytest.fixture(scope="module")
def services(compose: dict[str, Any]) -> dict[str, Any]:
    return compose["services"]


def test_the_file_follows_the_specification(compose: dict[str, Any]) -> None:
    parsed = compose_spec.PyCompose.from_json(json.dumps(compose))
    parsed.validate()
    assert set(parsed.service_names()) == set(compose["services"])


def test_everything_mounted_and_built_from_exists(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            known = (ROOT / source).exists() if source.startswith(".") else source in compose["volumes"]
            assert known, f"{name} mounts {source}"
        if build := service.get("build"):
            assert (ROOT / build["context"] / build["dockerfile"]).is_file()


def test_waiting_is_for_something_that_ends_or_reports(services: dict[str, Any]) -> None:
    for name, service in services.items():
        depends = service.get("depends_on", {})
        for other, how in depends.items() if isinstance(depends, dict) else ():
            if how["condition"] == "service_healthy":
                assert "healthcheck" in services[other], f"{name} waits for the health of {other}"
            if how["condition"] == "service_completed_successfully":
                assert "restart" not in services[other], f"{name} waits for {other}, which never ends"


def test_nothing_is_published_beyond_this_machine(services: dict[str, Any]) -> None:
    ports = [port for service in services.values() for port in service.get("ports", ())]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_every_container_is_confined(services: dict[str, Any]) -> None:
    for name, service in services.items():
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name


def test_the_gpu_is_asked_for_by_a_profile_alone(services: dict[str, Any]) -> None:
    with_profile = {name for name, service in services.items() if "profiles" in service}
    with_device = {name for name, service in services.items() if "deploy" in service}
    assert with_profile == with_device == {"worker-gpu"}


def test_both_workers_differ_in_the_device_alone(services: dict[str, Any]) -> None:
    cpu, gpu = dict(services["worker"]), dict(services["worker-gpu"])
    assert [word for word in gpu.pop("command") if word != "--device=cuda"] == cpu.pop("command")
    del gpu["profiles"], gpu["deploy"]
    assert cpu == gpu


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("worker", "xgr_stream.cli.worker:worker"),
        ("worker-gpu", "xgr_stream.cli.worker:worker"),
        ("load", "examples.load_generator:main"),
    ],
)
def test_commands_are_understood(services: dict[str, Any], name: str, target: str) -> None:
    module, attribute = target.split(":")
    command: click.Command = getattr(importlib.import_module(module), attribute)
    parameters = {option: parameter for parameter in command.params for option in parameter.opts}
    for word in services[name]["command"]:
        if word.startswith("--"):
            option, value = re.sub(r"\$\{\w+:-(.*)\}", r"\1", word).split("=")
            assert option in parameters
            if not isinstance(parameters[option].type, click.Path):
                parameters[option].type.convert(value, None, None)


def test_the_training_script_calls_what_is_there() -> None:
    script = (DOCKER / "train-movielens.sh").read_text()
    train = importlib.import_module("examples.movielens.train")
    options = {option for parameter in train.main.params for option in (*parameter.opts, *parameter.secondary_opts)}
    assert "-m examples.movielens.train --no-sasrec --output " in script
    assert {"--no-sasrec", "--output"} <= options
    assert '"training.json"' in Path(train.__file__).read_text(), "the file that marks a finished training"
    assert "/training.json" in script


def test_broker_addresses_are_advertised(services: dict[str, Any]) -> None:
    advertised = services["broker"]["environment"]["KAFKA_ADVERTISED_LISTENERS"]
    addresses = {address.split("//")[1] for address in advertised.split(",")}
    assert addresses == {"broker:19092", "localhost:9092"}
    assert "broker:19092" in services["topics"]["entrypoint"]
    for name in ("worker", "worker-gpu", "load"):
        assert "--broker=broker:19092" in services[name]["command"]


@pytest.mark.parametrize("replicas", [1, 3])
def test_topics_are_those_of_the_defaults(tmp_path: Path, replicas: int) -> None:
    stub = tmp_path / "kafka-topics"
    stub.write_text('#!/bin/sh\nprintf "%s " "$@"\necho\n')
    stub.chmod(0o755)
    done = subprocess.run(
        ["bash", DOCKER / "create-topics.sh", "broker:19092"],
        env={**os.environ, "KAFKA_TOPICS": str(stub), "PARTITIONS": "6", "REPLICAS": str(replicas)},
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    created = {}
    for line in done.stdout.splitlines():
        topic, partitions = re.findall(r"--topic (\S+) --partitions (\d+)", line)[0]
        created[topic] = (int(partitions), line)
    names = TopicNames()
    together = (names.events, names.requests, names.responses, names.changelog)

    assert set(created) == {*together, names.dead_letters, names.catalog}
    assert created[names.catalog][0] == 1
    assert {created[topic][0] for topic in together} == {6}
    assert [topic for topic, (_, line) in created.items() if "cleanup.policy=compact" in line] == [
        names.changelog,
        names.catalog,
    ]
    assert all("--if-not-exists" in line for _, line in created.values())
    in_sync = f"--config={'='.join(IN_SYNC)} "
    assert [in_sync in line for _, line in created.values()] == [replicas == REPLICAS] * len(created)
    for topic, config in ((names.changelog, CHANGELOG_CONFIG), (names.catalog, CATALOG_CONFIG)):
        for setting in config.items():
            assert f"--config={'='.join(setting)} " in f"{created[topic][1]} ", "a worker would create it otherwise"


def exposed_names() -> dict[str, set[str]]:
    """Name under which each sample is scraped → the labels it may carry."""
    histogram = {"_bucket": {"le"}, "_sum": set[str](), "_count": set[str]()}
    names: dict[str, set[str]] = {}
    for metric in vars(Metrics()).values():
        if not hasattr(metric, "_labelnames"):
            continue
        suffixes = {"counter": {"_total": set[str]()}, "histogram": histogram}.get(metric._type, {"": set[str]()})
        for suffix, extra in suffixes.items():
            names[metric._name + suffix] = {*metric._labelnames, *extra}
    return names


def expressions() -> list[str]:
    dashboard = json.loads((DOCKER / "grafana" / "dashboards" / "xgr-stream.json").read_text())
    return [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]


def test_the_dashboard_asks_for_metrics_that_exist() -> None:
    known = exposed_names()
    asked = {name for expression in expressions() for name in re.findall(r"\bxgr_\w+", expression)}
    assert asked <= set(known)

    histograms = ("xgr_stage_seconds", "xgr_catalog_merge_seconds", "xgr_model_stage_seconds")
    by_hand = {f"{name}_{part}" for name in histograms for part in ("sum", "count")}
    assert set(known) - asked == by_hand, "a metric that no panel shows"


@pytest.mark.parametrize("expression", expressions())
def test_the_dashboard_groups_by_labels_that_exist(expression: str) -> None:
    known = exposed_names()
    labels = {"instance"}.union(*(known[name] for name in re.findall(r"\bxgr_\w+", expression)))
    groups = [label.strip() for group in re.findall(r"by \(([^)]*)\)", expression) for label in group.split(",")]
    matchers = re.findall(r"[{,](\w+)!?=", expression)
    assert {*groups, *matchers} <= labels
    assert expression.count("(") == expression.count(")")


def test_the_dashboard_is_provisioned_where_it_is_mounted(services: dict[str, Any]) -> None:
    provider = yaml.safe_load((DOCKER / "grafana/provisioning/dashboards/xgr-stream.yml").read_text())["providers"][0]
    source = yaml.safe_load((DOCKER / "grafana/provisioning/datasources/prometheus.yml").read_text())["datasources"][0]
    dashboard = json.loads((DOCKER / "grafana/dashboards/xgr-stream.json").read_text())
    folder = provider["options"]["path"]
    home = services["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]

    assert f"./docker/grafana/dashboards:{folder}:ro" in services["grafana"]["volumes"]
    assert home == f"{folder}/xgr-stream.json"
    assert {panel["datasource"]["uid"] for panel in dashboard["panels"]} == {source["uid"]}


def test_prometheus_reads_the_port_that_the_workers_serve(services: dict[str, Any]) -> None:
    scrape = yaml.safe_load((DOCKER / "prometheus.yml").read_text())["scrape_configs"][0]["dns_sd_configs"][0]
    assert set(scrape["names"]) == {name for name in services if name.startswith("worker")}
    for name in scrape["names"]:
        assert f"--web-port={scrape['port']}" in services[name]["command"]
        assert services[name]["expose"] == [str(scrape["port"])]
        assert f":{scrape['port']}/" in services[name]["healthcheck"]["test"][-1]


def test_the_dockerfile_passes_its_linter() -> None:
    hadolint = shutil.which("hadolint", path=f"{sysconfig.get_path('scripts')}{os.pathsep}{os.environ['PATH']}")
    assert hadolint, "hadolint comes with the dev extra: pip install -e .[dev]"
    done = subprocess.run([hadolint, "--no-color", DOCKER / "Dockerfile"], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stdout


def test_the_image_copies_what_the_build_context_holds() -> None:
    kept = {
        line.removeprefix("!") for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")
    }
    copied = set()
    for line in (DOCKER / "Dockerfile").read_text().splitlines():
        if line.startswith("COPY "):
            copied.update(line.split()[1:-1])
    assert copied == kept
    assert all((ROOT / name).exists() for name in copied)
