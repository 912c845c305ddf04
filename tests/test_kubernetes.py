"""`deploy/kubernetes`, without a cluster: each object against its schema, strictly, and against rules of our own."""

import inspect
import re
from collections.abc import Iterator
from copy import deepcopy
from itertools import pairwise
from pathlib import Path
from typing import Any

import click
import kubernetes_validate  # type: ignore[import-untyped]  # ships no types
import pytest
import yaml  # type: ignore[import-untyped]  # ships no types
from msgspec.structs import fields
from tests.conftest_service import Processes, until

from sightline import cli
from sightline.adapters import metrics
from sightline.adapters.settings import ALIASES, Settings
from sightline.http import server
from sightline.workers import attempt

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "deploy" / "kubernetes"
VERSIONS = ("1.30.0", "1.37.0")  # the oldest that has all that is used here, and the newest schema there is
OF_OTHERS = ("kustomize.config.k8s.io/", "keda.sh/")  # not the cluster's own: no schema
PINNED = re.compile(r"[a-z0-9.-]+/[a-z0-9/-]+:(?!latest)v?\d[\w.-]*")
WORKER_BASE_MIB = 1024
UNITS_MIB = {"Mi": 1, "Gi": 1024}

Manifest = dict[str, Any]


def manifests() -> Iterator[tuple[str, Manifest]]:
    for path in sorted(FOLDER.glob("*.yaml")):
        for one in yaml.safe_load_all(path.read_text()):
            yield f"{path.name}: {one['kind']} {one.get('metadata', {}).get('name', '')}", one


ALL = dict(manifests())
OWN = {name: one for name, one in ALL.items() if not one["apiVersion"].startswith(OF_OTHERS)}
PODS = {name: one["spec"]["template"]["spec"] for name, one in OWN.items() if one["kind"] in {"Deployment", "Job"}}
CONTAINERS = {name: pod["containers"][0] for name, pod in PODS.items()}


def of_kind(kind: str) -> dict[str, Manifest]:
    return {one["metadata"]["name"]: one for one in ALL.values() if one["kind"] == kind}


def mebibytes(quantity: str) -> int:
    return int(quantity[:-2]) * UNITS_MIB[quantity[-2:]]


def drain_s(command: str) -> float:
    """How long a process may take from SIGTERM to its end."""
    if command == "serve":
        return server.NOTICE_S + server.GRACE_S + server.LAST_WORDS_S
    if command == "work":
        return attempt.STOP_GRACE_S + attempt.BUSY_TRIES_MAX * attempt.BUSY_PAUSE_S
    return 10.0


def schema_faults(manifest: Manifest, version: str) -> list[str]:
    try:
        kubernetes_validate.validate(manifest, version, strict=True)
    except kubernetes_validate.ValidationError as error:
        return [str(error).splitlines()[0]]
    return []


def pod_faults(pod: Manifest, kind: str) -> list[str]:
    """What is wrong with a pod, by rules of our own."""
    found = []
    if kind == "Job" and pod.get("restartPolicy") not in {"OnFailure", "Never"}:
        found.append("a Job's pods are restarted OnFailure or Never")
    if pod.get("enableServiceLinks") is not False:
        found.append("a Service's variables would be read as settings")
    if pod.get("automountServiceAccountToken") is not False:
        found.append("a token of the cluster that nobody needs")
    security = pod.get("securityContext", {})
    if not (security.get("runAsNonRoot") and security.get("runAsUser", 0) > 0):
        found.append("it may run as root")
    if security.get("seccompProfile", {}).get("type") != "RuntimeDefault":
        found.append("no seccomp profile")
    volumes = {volume["name"] for volume in pod.get("volumes", ())}
    for container in pod["containers"]:
        found += container_faults(container, kind)
        found += [f"no volume {one['name']}" for one in container["volumeMounts"] if one["name"] not in volumes]
        sleep_s = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
        if pod.get("terminationGracePeriodSeconds", 30) < sleep_s + drain_s(container["args"][0]):
            found.append("it would be killed before it has drained")
    return found


def container_faults(container: Manifest, kind: str) -> list[str]:
    found = []
    if not PINNED.fullmatch(container["image"]):
        found.append("the image is not pinned")
    if kind != "Job" and not {"livenessProbe", "readinessProbe"} <= container.keys():
        found.append("nobody asks whether it is well")
    resources = container.get("resources", {})
    if not all({"cpu", "memory"} <= resources.get(name, {}).keys() for name in ("requests", "limits")):
        found.append("it may take all there is")
    security = container.get("securityContext", {})
    if security.get("allowPrivilegeEscalation") is not False or security.get("capabilities") != {"drop": ["ALL"]}:
        found.append("it may rise")
    if not security.get("readOnlyRootFilesystem"):
        found.append("it may write where it is not kept")
    if "/tmp" not in {one["mountPath"] for one in container["volumeMounts"]}:
        found.append("it has no place for what is temporary")
    found += [f"{one['name']} is a secret in the open" for one in container.get("env", ()) if is_secret(one)]
    return found


def is_secret(variable: Manifest) -> bool:
    return bool(re.search(r"SECRET|PASSWORD|SEALING_KEY|_URL$", variable["name"])) and "value" in variable


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", OWN)
def test_each_object_is_what_the_cluster_takes(name: str, version: str) -> None:
    assert schema_faults(OWN[name], version) == []


@pytest.mark.parametrize("name", PODS)
def test_each_pod_keeps_our_rules(name: str) -> None:
    assert pod_faults(PODS[name], OWN[name]["kind"]) == []


BROKEN: dict[str, Any] = {
    "a field that is none": lambda one: one["spec"].update(replica=2),
    "a number as text": lambda one: one["spec"].update(replicas="two"),
    "no containers": lambda one: one["spec"]["template"]["spec"].pop("containers"),
    "no selector": lambda one: one["spec"].pop("selector"),
    "a probe of nothing": lambda one: one["spec"]["template"]["spec"]["containers"][0].update(
        livenessProbe={"httpget": {}}
    ),
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_manifest_is_refused(how: str) -> None:
    broken = deepcopy(ALL["api.yaml: Deployment sightline-api"])
    BROKEN[how](broken)
    assert schema_faults(broken, VERSIONS[-1]) != []


def test_a_careless_pod_is_noticed() -> None:
    careless: Manifest = {
        "containers": [
            {
                "image": "sightline:latest",
                "args": ["serve"],
                "env": [{"name": "SIGHTLINE_SECRET_KEY", "value": "hunter2"}],
                "volumeMounts": [{"name": "absent", "mountPath": "/data"}],
            }
        ],
        "terminationGracePeriodSeconds": 1,
    }
    assert len(pod_faults(careless, "Job")) == 13
    assert "nobody asks whether it is well" in pod_faults(careless, "Deployment")


def test_every_process_that_up_starts_has_its_pod_and_runs_a_command_that_is_there() -> None:
    source = inspect.getsource(cli.up.callback)  # type: ignore[arg-type]  # click types it as any callable or none
    started = set(re.findall(r'_process\(f?"[\w{}-]+", "(\w+)"', source))
    assert {container["args"][0] for container in CONTAINERS.values()} == started | {"migrate"}
    for container in CONTAINERS.values():
        command, *words = container["args"]
        found = cli.main.get_command(click.Context(cli.main), command)
        assert found is not None
        assert {one for one in words if one.startswith("--")} <= {name for one in found.params for name in one.opts}


def test_every_variable_is_a_setting() -> None:
    known = {f"SIGHTLINE_{spec.name.upper()}" for spec in fields(Settings)} | {
        name for one in ALIASES.values() for name in one
    }
    given = set(of_kind("ConfigMap")["sightline"]["data"])
    given |= {one["name"] for container in CONTAINERS.values() for one in container.get("env", ())}
    assert given - known == set()


def test_what_is_referred_to_is_there_or_told_to_be_made() -> None:
    guide = (ROOT / "docs" / "how-to" / "scale-out.md").read_text()
    for pod in PODS.values():
        assert pod["serviceAccountName"] in of_kind("ServiceAccount")
        for source in pod["containers"][0]["envFrom"]:
            if "configMapRef" in source:
                assert source["configMapRef"]["name"] in of_kind("ConfigMap")
            else:
                assert f" {source['secretRef']['name']} " in guide
        for volume in pod["volumes"]:
            if "persistentVolumeClaim" in volume:
                assert volume["persistentVolumeClaim"]["claimName"] in of_kind("PersistentVolumeClaim")
            if "secret" in volume:
                assert f" {volume['secret']['secretName']} " in guide
    listed = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())["resources"]
    optional = {"kustomization.yaml", "workers-gpu.yaml", "autoscale-workers.yaml"}
    assert {*listed} == {path.name for path in FOLDER.glob("*.yaml")} - optional


def labels(manifest: Manifest) -> dict[str, str]:
    found: dict[str, str] = manifest["spec"]["template"]["metadata"]["labels"]
    return found


def test_selectors_find_pods() -> None:
    pods = [labels(one) for one in OWN.values() if one["kind"] in {"Deployment", "Job"}]
    wanted = [one["spec"]["selector"]["matchLabels"] for one in of_kind("PodDisruptionBudget").values()]
    wanted += [of_kind("Service")["sightline"]["spec"]["selector"]]
    wanted += [one["spec"]["podSelector"].get("matchLabels", {}) for one in of_kind("NetworkPolicy").values()]
    for selector in wanted:
        assert any(selector.items() <= pod.items() for pod in pods), selector
    for name, one in of_kind("Deployment").items():
        assert one["spec"]["selector"]["matchLabels"] == labels(one), name


def test_nobody_is_let_in_or_out_unless_it_is_said() -> None:
    policies = of_kind("NetworkPolicy")
    nothing = policies["nothing"]["spec"]
    assert nothing == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    entries = [name for name, one in policies.items() if "ingress" in one["spec"]]
    assert entries == ["to-the-door"]
    [out] = [one["spec"]["egress"] for one in policies.values() if "0.0.0.0/0" in str(one)]
    assert {"10.0.0.0/8", "169.254.0.0/16"} <= set(out[0]["to"][0]["ipBlock"]["except"])


def test_a_pod_has_room_for_what_its_jobs_may_take() -> None:
    data = of_kind("ConfigMap")["sightline"]["data"]
    slots, job_mib = int(data["SIGHTLINE_WORKER_SLOTS"]), int(data["SIGHTLINE_WORKER_MEMORY_MB_MAX"])
    worker = CONTAINERS["workers.yaml: Deployment sightline-worker"]
    assert mebibytes(worker["resources"]["limits"]["memory"]) >= slots * job_mib + WORKER_BASE_MIB
    gpu = CONTAINERS["workers-gpu.yaml: Deployment sightline-worker-gpu"]
    assert {"name": "SIGHTLINE_WORKER_MEMORY_MB_MAX", "value": "0"} in gpu["env"]
    assert gpu["resources"]["limits"]["nvidia.com/gpu"] == "1"


def test_the_autoscaler_asks_for_metrics_that_are_told() -> None:
    [scaled] = of_kind("ScaledObject").values()
    spec = scaled["spec"]
    assert spec.keys() <= {
        *("scaleTargetRef", "minReplicaCount", "maxReplicaCount", "pollingInterval"),
        *("cooldownPeriod", "fallback", "advanced", "triggers"),
    }
    assert spec["scaleTargetRef"]["name"] in of_kind("Deployment")
    assert 1 <= spec["minReplicaCount"] <= spec["fallback"]["replicas"] <= spec["maxReplicaCount"]
    told = {one._name for one in (metrics.JOBS_WAITING, metrics.JOBS_RUNNING, metrics.JOBS_OLDEST_SECONDS)}
    asked = set()
    for trigger in spec["triggers"]:
        assert trigger.keys() == {"type", "name", "metricType", "metadata"}
        assert trigger["metadata"].keys() == {"serverAddress", "query", "threshold"}
        assert float(trigger["metadata"]["threshold"]) > 0
        asked |= set(re.findall(r"sightline_\w+", trigger["metadata"]["query"]))
    assert asked == told


CONTAINERFILE = (ROOT / "deploy" / "Containerfile").read_text()


def test_the_image_is_built_from_what_is_there() -> None:
    """It is read, not built: the machines that run these tests have no engine."""
    bases = re.findall(r"^FROM (\S+)", CONTAINERFILE, re.MULTILINE)
    assert bases
    assert all(PINNED.fullmatch(base) for base in bases)
    copied = [
        word for line in re.findall(r"^COPY (?!--)(.+) \S+$", CONTAINERFILE, re.MULTILINE) for word in line.split()
    ]
    assert [word for word in copied if not (ROOT / word).exists()] == []
    assert {f"{kind}.txt" for kind in ("cpu", "gpu")} <= {path.name for path in (ROOT / "requirements").iterdir()}
    assert re.findall(r"^USER (\d+):(\d+)$", CONTAINERFILE, re.MULTILINE) == [("10001", "10001")]
    users = {(pod["securityContext"]["runAsUser"], pod["securityContext"]["runAsGroup"]) for pod in PODS.values()}
    assert users == {(10001, 10001)}
    tags = [re.findall(r":(\d[\w.]*)$", container["image"])[0] for container in CONTAINERS.values()]
    assert all(one == other for one, other in pairwise(tags))


WITHOUT_DATA = [
    container["args"][0]
    for container in CONTAINERS.values()
    if container["args"][0] != "migrate"
    and not any(one["mountPath"].startswith("/data") for one in container["volumeMounts"])
]


@pytest.mark.parametrize("command", WITHOUT_DATA)
async def test_what_has_no_data_directory_needs_none(command: str, processes: Processes) -> None:
    """As in its pod: a data directory that is not there and cannot be made, an S3, and the sealing key given."""
    process = processes.start(
        command,
        data_dir=Path("/proc/none"),
        s3_endpoint_url="http://127.0.0.1:9",
        sealing_key="A" * 43 + "=",
    )

    async def ready() -> bool:
        assert process.poll() is None, processes.log(process)
        return "worker_ready" in processes.log(process)

    await until(ready)


def test_the_probe_tells_a_stopped_process(tmp_path: Path) -> None:
    probe = CONTAINERS["workers.yaml: Deployment sightline-worker"]["livenessProbe"]["exec"]["command"]
    pattern = re.compile(probe[2])
    assert probe[:2] == ["grep", "-q"]
    assert pattern.search("State:\tS (sleeping)")
    assert pattern.search("State:\tR (running)")
    assert not pattern.search("State:\tT (stopped)")
    assert not pattern.search("State:\tZ (zombie)")
