"""The manifests under cluster/. Oracles: Kubernetes' and Ray's own schemas, KubeRay's API, the jobs' command lines."""

import copy
import json
import re
import shlex
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import ray
import yaml
from cluster.commands import ROOT, commands_in, execution_of
from ray.autoscaler._private.util import prepare_config, validate_config

FOLDER = ROOT / "cluster"
KUBERAY = sorted((FOLDER / "kuberay").glob("*.yaml"))
RAY_UP = sorted((FOLDER / "ray-up").glob("*.yaml"))
PAGES = [FOLDER / "README.md", FOLDER / "slurm" / "train.sbatch"]
_KUBERNETES = "1.36"
_DRAIN = "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"


def _read(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text())


def _cluster(manifest: dict) -> dict:
    spec = manifest["spec"]
    return spec.get("rayClusterSpec", spec)


def _pods(manifest: dict) -> list[dict]:
    cluster = _cluster(manifest)
    templates = [cluster["headGroupSpec"]["template"], *(group["template"] for group in cluster["workerGroupSpecs"])]
    if "submitterPodTemplate" in manifest["spec"]:
        templates.append(manifest["spec"]["submitterPodTemplate"])
    return templates


def _check_kuberay(manifest: dict) -> None:
    schema = json.loads((Path(__file__).parent / "schemas" / "kuberay.json").read_text())
    jsonschema.validate(manifest, schema)
    for template in _pods(manifest):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"} | template.get("metadata", {})}
        kubernetes_validate.validate(pod | {"spec": template["spec"]}, _KUBERNETES, strict=True)


@pytest.mark.parametrize("path", KUBERAY, ids=lambda path: path.stem)
def test_kuberay_and_kubernetes_know_every_field(path):
    _check_kuberay(_read(path))


def test_an_unknown_field_is_found():
    manifest = _read(FOLDER / "kuberay" / "rayjob-imagenet.yaml")
    for wrong in ("shutdownAfterJobFinish", "rayClusterSpecs"):
        with pytest.raises(jsonschema.ValidationError):
            _check_kuberay({**manifest, "spec": manifest["spec"] | {wrong: True}})
    for worker_or_head in range(2):
        broken = copy.deepcopy(manifest)
        _pods(broken)[worker_or_head]["spec"]["containers"][0]["volumeMount"] = []
        with pytest.raises(kubernetes_validate.ValidationError):
            _check_kuberay(broken)


@pytest.mark.parametrize("path", KUBERAY, ids=lambda path: path.stem)
def test_pods_are_on_the_machines_and_have_the_time_that_they_need(path):
    cluster = _cluster(_read(path))
    head = cluster["headGroupSpec"]
    (workers,) = cluster["workerGroupSpecs"]
    assert cluster["authOptions"] == {"mode": "token", "secretName": "ray-token"}
    assert cluster["rayVersion"] == ray.__version__
    assert head["rayStartParams"]["num-cpus"] == "0"
    assert head["template"]["spec"]["nodeSelector"] == {"karpenter.sh/capacity-type": "on-demand"}
    assert workers["template"]["spec"]["nodeSelector"] == {"karpenter.sh/capacity-type": "spot"}
    pod = workers["template"]["spec"]
    (container,) = pod["containers"]
    drain = {entry["name"]: entry.get("value") for entry in container["env"]}[_DRAIN]
    # Ray checks for a notice every 5 s and its controller every half second; the rest is for a step and a checkpoint.
    assert 30 < float(drain) < pod["terminationGracePeriodSeconds"] - 10
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    for template in (head["template"]["spec"], pod):
        mounts = {mount["mountPath"]: mount["name"] for mount in template["containers"][0]["volumeMounts"]}
        volumes = {volume["name"]: volume for volume in template["volumes"]}
        assert volumes[mounts["/dev/shm"]]["emptyDir"]["medium"] == "Memory"
        assert template["securityContext"]["runAsNonRoot"]


@pytest.mark.parametrize("path", [path for path in KUBERAY if "job" in path.stem], ids=lambda path: path.stem)
def test_a_kuberay_job_asks_for_what_its_cluster_has(path):
    manifest = _read(path)
    words = shlex.split(manifest["spec"]["entrypoint"])
    assert words[0] == "python"
    execution = execution_of(words[1:])
    assert execution is not None
    (group,) = _cluster(manifest)["workerGroupSpecs"]
    least, most = execution.worker_range
    # A job is refused if its cluster has fewer nodes than the job's minimum.
    assert least <= group["minReplicas"]
    assert most <= group["maxReplicas"]
    cores = float(group["template"]["spec"]["containers"][0]["resources"]["limits"]["cpu"])
    assert (execution.cpus_per_worker or 1) <= cores
    assert execution.storage.startswith("s3://")
    assert execution.name == manifest["metadata"]["name"]


@pytest.mark.parametrize("path", RAY_UP, ids=lambda path: path.stem)
def test_ray_knows_every_field_of_a_cluster_for_ray_up(path):
    config = _read(path)
    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    jsonschema.validate(config, schema)
    validate_config(prepare_config(copy.deepcopy(config)))
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(config | {"min_workers_": 1}, schema)


@pytest.mark.parametrize("path", RAY_UP, ids=lambda path: path.stem)
def test_ray_up_keeps_the_head_and_takes_spot_machines_for_workers(path):
    config = _read(path)
    types = config["available_node_types"]
    head, workers = types[config["head_node_type"]], types["gpu"]
    assert head["resources"] == {"CPU": 0}
    assert "SPOT" not in json.dumps(head).upper()
    assert "SPOT" in json.dumps(workers["node_config"]).upper()
    assert workers["max_workers"] <= config["max_workers"]
    options = config["docker"]["run_options"]
    assert "--env RAY_AUTH_MODE=token" in options
    (token,) = config["file_mounts"]
    assert f"--env RAY_AUTH_TOKEN_PATH={token}" in options


@pytest.mark.parametrize("path", KUBERAY + RAY_UP, ids=lambda path: path.stem)
def test_a_head_has_the_health_checks_of_docs_operations(path):
    page = (ROOT / "docs" / "operations.md").read_text()
    said = dict(re.findall(r"`(RAY_health_check_\w+)=(\d+)`", page))
    assert len(said) == 3
    if path in KUBERAY:
        head = _cluster(_read(path))["headGroupSpec"]["template"]["spec"]["containers"][0]
        given = {entry["name"]: entry.get("value") for entry in head["env"]}
    else:
        options = _read(path)["docker"]["head_run_options"]
        given = dict(option.removeprefix("--env ").split("=") for option in options)
    assert said.items() <= given.items()


def test_the_page_calls_the_cluster_that_stays_by_its_name():
    name = _read(FOLDER / "kuberay" / "raycluster.yaml")["metadata"]["name"]
    page = (FOLDER / "README.md").read_text()
    assert set(re.findall(r"raycluster[ /](?!\$)([a-z][a-z-]+)\b(?!\.yaml)", page)) == {name}
    assert f"service/{name}-head-svc " in page


def test_the_images_are_those_that_the_dockerfile_makes():
    targets = set(re.findall(r"(?m)^FROM \S+ AS (\S+)$", (ROOT / "docker" / "Dockerfile").read_text()))
    assert {"cpu", "gpu"} <= targets
    named = []
    for path in KUBERAY + RAY_UP:
        named += re.findall(r"(?m)image: (\S+)$", path.read_text())
    assert len(named) >= 12
    for image in named:
        assert re.fullmatch(r"registry\.example\.org/dist-resnet:(cpu|gpu)", image), image


@pytest.mark.parametrize("path", [*PAGES, *KUBERAY, *RAY_UP], ids=lambda path: path.name)
def test_every_command_of_a_job_is_one_that_the_job_takes(path):
    for words in commands_in(path.read_text()) if path not in KUBERAY else ():
        execution_of(words)


def test_the_pages_name_jobs_at_all():
    assert sum(len(list(commands_in(path.read_text()))) for path in PAGES) >= 4
    with pytest.raises(SystemExit):
        execution_of(["jobs/imagenet_preact200.py", "--execution.worker", "2"])
    with pytest.raises(FileNotFoundError):
        execution_of(["jobs/imagenet_preact201.py"])
