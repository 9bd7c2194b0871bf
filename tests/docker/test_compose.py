"""docker/compose.yaml. Oracles: the Compose specification's schema, and the rules that docs/containers.md states."""

import importlib.resources
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from cluster.commands import commands_in, execution_of

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docker"
TEXT = (FOLDER / "compose.yaml").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load(TEXT)
SERVICES: dict[str, Any] = COMPOSE["services"]
EXAMPLE = (FOLDER / "env.example").read_text()
SECRETS = re.findall(r"(?m)^(\w+)=$", EXAMPLE)


def _schema() -> dict:
    vendored = importlib.resources.files("check_jsonschema") / "builtin_schemas" / "vendor" / "compose-spec.json"
    return json.loads(vendored.read_text())


@pytest.mark.parametrize("name", ["compose.yaml", "compose.gpu.yaml"])
def test_compose_knows_every_field(name):
    jsonschema.validate(yaml.safe_load((FOLDER / name).read_text()), _schema())


def test_a_worker_with_gpus_has_a_core_for_each_of_eight_and_shared_memory_within_its_memory():
    text = (FOLDER / "compose.gpu.yaml").read_text()
    filled = [re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)]
    given = dict(re.findall(r"(?m)^(\w+)=(.+)$", EXAMPLE))
    filled += [re.sub(r"\$\{(\w+):-[^}]*\}", lambda found: given[found[1]], text)]
    for worker in [yaml.safe_load(each)["services"]["worker"] for each in filled]:
        limits = worker["deploy"]["resources"]["limits"]
        assert f"--num-cpus={limits['cpus']} " in worker["command"]
        assert int(limits["cpus"]) >= 8
        assert int(worker["shm_size"].removesuffix("g")) < int(limits["memory"].removesuffix("g"))
    plain = re.sub(r"=\S*WORKER_CPUS\S*", "=", SERVICES["worker"]["command"])
    assert re.sub(r"=\S*WORKER_CPUS\S*", "=", yaml.safe_load(text)["services"]["worker"]["command"]) == plain


def test_an_unknown_field_is_found():
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(COMPOSE | {"services": {"s3": SERVICES["s3"] | {"helthcheck": {}}}}, _schema())


def test_ports_are_on_loopback_only_and_the_database_has_none():
    ports = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert set(ports) == {"head", "mlflow", "s3", "prometheus", "grafana"}
    for published in ports.values():
        assert all(re.fullmatch(r"127\.0\.0\.1:\d+:\d+", port) for port in published)
    assert COMPOSE["networks"]["database"]["internal"]
    assert [name for name, service in SERVICES.items() if "database" in service.get("networks", [])] == [
        "mlflow",
        "postgres",
    ]


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_has_an_image_limits_a_health_check_and_no_more_rights_than_it_needs(name):
    service = SERVICES[name]
    image, tag = service["image"].rsplit(":", 1)
    assert image == "dist-resnet" or re.fullmatch(r"v?\d+\.\d+(\.\d+)?", tag), service["image"]
    limits = service["deploy"]["resources"]["limits"]
    assert limits.keys() == {"cpus", "memory"}
    # The images built here have their own.
    assert "healthcheck" in service or image == "dist-resnet"
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service.get("cap_drop") == ["ALL"] or name in ("postgres", "s3")
    assert service["networks"]


def test_ray_nodes_ask_for_the_token_and_drain_before_they_are_killed():
    for name in ("head", "worker"):
        environment = SERVICES[name]["environment"]
        assert environment["RAY_AUTH_MODE"] == "token"
        assert environment["RAY_AUTH_TOKEN"].startswith("${RAY_AUTH_TOKEN:?")
        drain = float(environment["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"])
        assert float(SERVICES[name]["stop_grace_period"].removesuffix("s")) > drain + 10
        assert "--block" in SERVICES[name]["command"]
    assert "--num-cpus=0" in SERVICES["head"]["command"]
    # A fixed name or port would keep a second worker from starting.
    assert not {"container_name", "ports", "hostname"} & SERVICES["worker"].keys()


def test_secrets_come_from_a_file_that_is_not_committed():
    assert set(SECRETS) == set(re.findall(r"\$\{(\w+):\?", TEXT)) - {"AWS_ACCESS_KEY_ID"}
    assert len(SECRETS) == 6
    used = set(re.findall(r"(?<!\$)\$\{(\w+)", TEXT + (FOLDER / "compose.gpu.yaml").read_text()))
    assert used == set(re.findall(r"(?m)^(\w+)=", EXAMPLE))
    ignored = subprocess.run(["git", "check-ignore", "docker/.env"], cwd=ROOT, capture_output=True, text=True)
    if ignored.returncode != 128:  # 128: not a git checkout
        assert ignored.stdout.strip() == "docker/.env"


@pytest.mark.parametrize(
    "page", ["docker/env.example", "docker/compose.yaml", "docs/containers.md", "docs/observability.md"]
)
def test_the_command_that_makes_the_secrets_makes_one_for_each(page, tmp_path):
    (command,) = re.findall(r"\(umask 077; .*> \.env\)", (ROOT / page).read_text())
    (tmp_path / "env.example").write_text(EXAMPLE)
    subprocess.run(["sh", "-c", command], cwd=tmp_path, check=True)
    made = dict(re.findall(r"(?m)^(\w+)=(.*)$", (tmp_path / ".env").read_text()))
    assert (tmp_path / ".env").stat().st_mode & 0o777 == 0o600
    secrets = [made[name] for name in SECRETS]
    assert all(re.fullmatch(r"[0-9a-f]{48}", secret) for secret in secrets)
    assert len(set(secrets)) == len(secrets)
    assert made["WORKER_CPUS"] == "2"


def test_mounted_files_exist_and_persistent_data_is_in_volumes():
    for service in SERVICES.values():
        for mount in service.get("volumes", ()):
            source = mount.split(":")[0]
            assert (FOLDER / source).exists() if source.startswith("./") else source in COMPOSE["volumes"], mount
            assert not source.startswith("./") or mount.endswith(":ro")
    for name, folder in (("postgres", "/var/lib/postgresql"), ("s3", "/data"), ("prometheus", "/prometheus")):
        assert f"{name}:{folder}" in SERVICES[name]["volumes"]


def test_prometheus_finds_rays_nodes_where_the_head_writes_them():
    config = yaml.safe_load((FOLDER / "prometheus" / "prometheus.yml").read_text())
    files = [
        file
        for job in config["scrape_configs"]
        for discovery in job.get("file_sd_configs", ())
        for file in discovery["files"]
    ]
    assert "/tmp/ray/prom_metrics_service_discovery.json" in files
    assert "ray:/tmp/ray" in SERVICES["head"]["volumes"]
    assert "ray:/tmp/ray:ro" in SERVICES["prometheus"]["volumes"]


@pytest.mark.parametrize("page", ["docker/compose.yaml", "docs/containers.md", "docker/Dockerfile"])
def test_every_command_of_a_job_is_one_that_the_job_takes(page):
    commands = list(commands_in((ROOT / page).read_text()))
    assert commands or page == "docker/Dockerfile"
    for words in commands:
        execution_of(words)
