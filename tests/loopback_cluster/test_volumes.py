"""What a pod asks its kubelet for reaches its process: volumes, variables, probes, its log."""

from __future__ import annotations

import base64
import json
import time
from pathlib import Path
from typing import Any

import pytest
from kubernetes import client  # noqa: TID253

from airflow_arcadia.ports import free_port
from tests.conftest import wait_for
from tests.loopback_cluster.cluster import Cluster, Image, Loopback

SHOW = "import pathlib, sys; print(*(pathlib.Path(p).read_text() for p in sys.argv[1:]))"
SERVE = "import http.server, os; http.server.HTTPServer(('127.0.0.1', int(os.environ['PORT'])), "
SERVE += "http.server.SimpleHTTPRequestHandler).serve_forever()"


def showing(cluster: Cluster, name: str, volume: dict[str, Any], *paths: str) -> str:
    """What a pod finds at ``paths`` in a volume mounted at /data/models."""
    mount = {"name": "v", "mountPath": "/data/models"}
    container = {"args": list(paths), "volumeMounts": [mount]}
    cluster.run(cluster.manifest(name, SHOW, container=container, volumes=[{"name": "v", **volume}]))
    return cluster.log(name).strip()


def test_a_folder_of_the_node_is_found_where_it_is_mounted(cluster: Cluster, tmp_path: Path):
    (tmp_path / "config.json").write_text("{}")
    volume = {"hostPath": {"path": str(tmp_path), "type": "Directory"}}
    assert showing(cluster, "host", volume, "/data/models/config.json") == "{}"


def test_a_claim_keeps_its_files_for_the_next_pod(cluster: Cluster, loopback: Loopback):
    spec = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
    body = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "models"},
        "spec": spec,
    }
    claim = cluster.core.create_namespaced_persistent_volume_claim(cluster.namespace, body)
    assert claim.status.phase == "Bound"
    (loopback.claim_folder("models") / "a").write_text("kept")
    volume = {"persistentVolumeClaim": {"claimName": "models"}}
    assert showing(cluster, "claim", volume, "/data/models/a") == "kept"


def test_an_image_is_a_volume(cluster: Cluster, loopback: Loopback, tmp_path: Path):
    (tmp_path / "a").write_text("weights")
    loopback.images["registry.test/model:1"] = Image(files=tmp_path)
    volume = {"image": {"reference": "registry.test/model:1"}}
    assert showing(cluster, "image", volume, "/data/models/a") == "weights"


def test_secrets_config_maps_and_the_pods_own_fields_are_files(cluster: Cluster):
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "s"},
        "stringData": {"key": "hidden"},
    }
    cluster.core.create_namespaced_secret(cluster.namespace, secret)
    config = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}, "data": {"a": "plain"}}
    cluster.core.create_namespaced_config_map(cluster.namespace, config)
    sources = [
        {"secret": {"name": "s", "items": [{"key": "key", "path": "deep/key"}]}},
        {"configMap": {"name": "c"}},
        {"downwardAPI": {"items": [{"path": "name", "fieldRef": {"fieldPath": "metadata.name"}}]}},
    ]
    paths = [f"/data/models/{path}" for path in ("deep/key", "a", "name")]
    assert showing(cluster, "projected", {"projected": {"sources": sources}}, *paths) == (
        "hidden plain projected"
    )
    assert showing(cluster, "secret", {"secret": {"secretName": "s"}}, paths[0][:-8] + "key") == "hidden"


def test_an_init_container_loads_what_the_main_one_reads(cluster: Cluster):
    mounts = [{"name": "v", "mountPath": "/data/models"}, {"name": "shm", "mountPath": "/dev/shm"}]
    loader = {
        "name": "loader",
        "image": cluster.python_image,
        "command": ["sh", "-c", "echo loaded > /data/models/a && test -w /dev/shm"],
        "volumeMounts": mounts,
    }
    body = cluster.manifest(
        "init",
        SHOW,
        container={"args": ["/data/models/a"], "volumeMounts": mounts},
        initContainers=[loader],
        volumes=[
            {"name": "v", "emptyDir": {}},
            {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "1Gi"}},
        ],
    )
    cluster.run(body)
    assert cluster.log("init").strip() == "loaded"


def test_an_init_container_that_fails_fails_the_pod(cluster: Cluster):
    loader = {"name": "loader", "image": cluster.python_image, "command": ["sh", "-c", "echo why; exit 7"]}
    found = cluster.run(cluster.manifest("init", "", initContainers=[loader]), "Failed")
    assert found["status"]["initContainerStatuses"][0]["state"]["terminated"]["exitCode"] == 7
    assert found["status"]["containerStatuses"][0]["state"]["waiting"]["reason"] == "PodInitializing"
    assert cluster.log("init", container="loader").strip() == "why"


def test_variables_come_from_fields_secrets_and_each_other(cluster: Cluster, loopback: Loopback):
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "s"},
        "data": {"key": base64.b64encode(b"hidden").decode()},
    }
    cluster.core.create_namespaced_secret(cluster.namespace, secret)
    ports = [{"name": "http", "port": 21002}]
    service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "vllm"}, "spec": {"ports": ports}}
    cluster.core.create_namespaced_service(cluster.namespace, service)
    env = [
        {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
        {"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "s", "key": "key"}}},
        {"name": "BOTH", "value": "$(IP)/$(KEY)/$$(KEY)/$(NONE)"},
        {"name": "CPUS", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu"}}},
    ]
    container = {"env": env, "resources": {"limits": {"cpu": "1500m"}}}
    script = "import json, os; print(json.dumps(dict(os.environ)))"
    cluster.run(cluster.manifest("env", script, container=container))
    found = json.loads(cluster.log("env"))
    assert found["BOTH"] == "127.0.0.1/hidden/$(KEY)/$(NONE)"
    assert (found["CPUS"], found["HOSTNAME"]) == ("2", "env")
    assert found["VLLM_PORT"].startswith("tcp://127."), "service links are a trap that a real cluster sets"


def test_a_pod_is_ready_when_its_probes_pass_and_its_service_reaches_it(cluster: Cluster, loopback: Loopback):
    port = free_port()
    get = {"httpGet": {"path": "/", "port": "http"}, "periodSeconds": 1}
    container = {
        "env": [{"name": "PORT", "value": str(port)}],
        "ports": [{"name": "http", "containerPort": port}],
        "startupProbe": {**get, "failureThreshold": 30},
        "readinessProbe": {**get, "httpGet": {"path": "/", "port": port}},
    }
    body = cluster.manifest("probed", SERVE, container=container, terminationGracePeriodSeconds=1)
    body["metadata"]["labels"] = {"app": "probed"}
    spec = {"selector": {"app": "probed"}, "ports": [{"port": 80, "targetPort": "http"}]}
    service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "probed"}, "spec": spec}
    made = cluster.core.create_namespaced_service(cluster.namespace, service)
    found = cluster.run(body, "Running")
    assert found["status"]["containerStatuses"][0]["ready"] is False

    def ready() -> bool:
        conditions = (cluster.pod("probed") or {})["status"]["conditions"]
        return {"type": "Ready", "status": "True"}.items() <= conditions[-1].items()

    wait_for(ready, 10, "the pod to be ready")
    import urllib.request

    with urllib.request.urlopen(f"http://{made.spec.cluster_ip}:80/", timeout=5) as response:
        assert response.status == 200


def test_a_container_that_is_not_alive_is_restarted(cluster: Cluster):
    probe = {"exec": {"command": ["false"]}, "periodSeconds": 1, "failureThreshold": 1}
    body = cluster.manifest(
        "dead",
        "import time; print('up'); time.sleep(60)",
        container={"livenessProbe": probe},
        restartPolicy="Always",
        terminationGracePeriodSeconds=1,
    )
    cluster.run(body, "Running")

    def restarted() -> bool:
        return (cluster.pod("dead") or {})["status"]["containerStatuses"][0]["restartCount"] > 0

    wait_for(restarted, 20, "a restart")
    events = cluster.core.list_namespaced_event(cluster.namespace, field_selector="involvedObject.name=dead")
    assert {"Unhealthy", "Killing"} <= {event.reason for event in events.items}


def test_a_log_is_followed_cut_and_dated(cluster: Cluster):
    script = "import time\nfor n in range(5): print(n, flush=True); time.sleep(0.5)"
    cluster.run(cluster.manifest("log", script), "Running")
    began = time.monotonic()
    stream = cluster.core.read_namespaced_pod_log(
        "log", cluster.namespace, follow=True, _preload_content=False
    )
    assert b"".join(stream.stream()).split() == [b"0", b"1", b"2", b"3", b"4"]
    assert time.monotonic() - began < 10
    assert cluster.log("log", tail_lines=2).split() == ["3", "4"]
    stamped = cluster.log("log", timestamps=True).splitlines()
    moment = stamped[3].partition(" ")[0]
    assert stamped[0].partition(" ")[2] == "0"
    later = cluster.core.api_client.call_api(
        f"/api/v1/namespaces/{cluster.namespace}/pods/log/log",
        "GET",
        query_params=[("sinceTime", moment)],
        auth_settings=["BearerToken"],
        _preload_content=False,
        _return_http_data_only=True,
    )
    # Lines of the same second come again.
    second = [line.partition(" ")[2] for line in stamped if line[:19] >= moment[:19]]
    assert later.data.decode().split() == second
    assert second[-2:] == ["3", "4"]


def test_the_log_of_the_try_before_and_a_containers_last_words_are_kept(cluster: Cluster):
    body = cluster.manifest(
        "again",
        "print('the cause'); raise SystemExit(3)",
        container={"terminationMessagePolicy": "FallbackToLogsOnError"},
        restartPolicy="OnFailure",
    )
    cluster.core.create_namespaced_pod(cluster.namespace, body)

    def twice() -> dict[str, Any] | None:
        statuses = (cluster.pod("again") or {})["status"].get("containerStatuses") or [{}]
        return statuses[0] if statuses[0].get("restartCount", 0) > 0 else None

    last = wait_for(twice, 20, "a second try")["lastState"]["terminated"]
    assert (last["exitCode"], last["message"].strip()) == (3, "the cause")
    assert cluster.log("again", previous=True).strip() == "the cause"
    with pytest.raises(client.ApiException, match="is not valid for pod"):
        cluster.log("again", container="nobody")


def test_processes_that_left_the_containers_session_end_with_it(cluster: Cluster, loopback: Loopback):
    script = (
        "import subprocess, time; subprocess.Popen(['sleep', '600'], start_new_session=True); time.sleep(600)"
    )
    cluster.run(cluster.manifest("family", script, terminationGracePeriodSeconds=1), "Running")
    wait_for(lambda: len(loopback.pids("family")) == 2, 10, "the daemon")
    pids = loopback.pids("family")
    cluster.core.delete_namespaced_pod("family", cluster.namespace)
    wait_for(lambda: cluster.pod("family") is None, 20, "the pod to go")
    # A zombie, which only its new parent can remove, has no command line.
    left = [Path(f"/proc/{pid}/cmdline") for pid in pids]
    assert not [file for file in left if file.exists() and file.read_bytes()]
