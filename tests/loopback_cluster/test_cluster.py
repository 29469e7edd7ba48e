"""The loopback cluster has a real one's manners, as the real clients and Airflow's own operator see them."""

from __future__ import annotations

import time
from typing import Any

import pytest
from kubernetes import client, watch  # noqa: TID253

from tests.conftest import wait_for
from tests.loopback_cluster.cluster import TOKEN, Cluster, Loopback


def test_airflows_own_pod_operator_runs_a_pod_to_its_end(cluster: Cluster, capfd: pytest.CaptureFixture[str]):
    from unittest.mock import MagicMock

    from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator

    operator = KubernetesPodOperator(
        task_id="say",
        name="say",
        namespace=cluster.namespace,
        image=cluster.python_image,
        cmds=["python3", "-c"],
        arguments=["print('from inside')"],
        on_finish_action="delete_pod",
    )
    ti = MagicMock(dag_id="d", run_id="r", task_id="say", map_index=-1, try_number=1)
    ti.xcom_pull.return_value = None
    operator.execute({"ti": ti, "run_id": "r", "dag": MagicMock(dag_id="d")})
    assert "from inside" in "".join(capfd.readouterr())
    wait_for(lambda: not cluster.core.list_namespaced_pod(cluster.namespace).items, 20, "the pod to go")


def test_a_watch_tells_every_change_and_ends_with_410_after_a_restart(cluster: Cluster, loopback: Loopback):
    core = cluster.core
    version = core.list_namespaced_pod(cluster.namespace).metadata.resource_version
    core.create_namespaced_pod(cluster.namespace, cluster.manifest("w", "print(1)"))
    seen = []
    for event in watch.Watch().stream(
        core.list_namespaced_pod, cluster.namespace, resource_version=version, timeout_seconds=20
    ):
        seen.append((event["type"], event["object"].status.phase))
        if event["object"].status.phase == "Succeeded":
            break
    assert seen[0] == ("ADDED", "Pending")
    assert seen[-1] == ("MODIFIED", "Succeeded")
    loopback.stop_api()
    loopback.start_api()
    with pytest.raises(client.ApiException) as gone:
        for _ in watch.Watch().stream(
            cluster.core.list_namespaced_pod, cluster.namespace, resource_version=version, timeout_seconds=5
        ):
            pass
    assert gone.value.status == 410
    assert cluster.pod("w") is not None


async def test_the_asynchronous_client_watches_too(cluster: Cluster):
    import asyncio

    from kubernetes_asyncio import client as async_client
    from kubernetes_asyncio import config, watch

    await config.load_kube_config(str(cluster.kubeconfig), context="admin" if cluster.loopback else None)
    async with async_client.ApiClient() as api:
        core = async_client.CoreV1Api(api)
        await asyncio.to_thread(
            cluster.core.create_namespaced_pod, cluster.namespace, cluster.manifest("a", "print(1)")
        )
        async with watch.Watch() as watching:
            async for event in watching.stream(
                core.list_namespaced_pod,
                cluster.namespace,
                field_selector="metadata.name=a",
                timeout_seconds=20,
            ):
                if event["object"].status.phase == "Succeeded":
                    break
        assert (await core.read_namespaced_pod_log("a", cluster.namespace)).strip() == "1"


def test_names_are_taken_once_and_a_stale_change_is_refused(cluster: Cluster):
    body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}, "data": {"a": "1"}}
    made = cluster.core.create_namespaced_config_map(cluster.namespace, body)
    with pytest.raises(client.ApiException) as taken:
        cluster.core.create_namespaced_config_map(cluster.namespace, body)
    assert (taken.value.status, '"reason":"AlreadyExists"' in taken.value.body) == (409, True)
    cluster.core.patch_namespaced_config_map("c", cluster.namespace, {"data": {"a": "2"}})
    with pytest.raises(client.ApiException) as stale:
        cluster.core.replace_namespaced_config_map("c", cluster.namespace, made)
    assert stale.value.status == 409
    cluster.core.delete_namespaced_config_map("c", cluster.namespace)


def test_what_an_owner_owned_goes_with_it_and_an_absent_owner_owns_nothing_for_long(cluster: Cluster):
    lease = {
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {"name": "owner"},
        "spec": {},
    }
    owner = cluster.coordination.create_namespaced_lease(cluster.namespace, lease)
    reference = {
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "name": "owner",
        "uid": owner.metadata.uid,
    }
    body = cluster.manifest("owned", "import time; time.sleep(600)", terminationGracePeriodSeconds=1)
    body["metadata"]["ownerReferences"] = [reference]
    cluster.core.create_namespaced_pod(cluster.namespace, body)
    cluster.wait_for_phase("owned", "Running")
    cluster.coordination.delete_namespaced_lease("owner", cluster.namespace)
    wait_for(lambda: cluster.pod("owned") is None, 60, "the owned pod to be collected")
    cluster.core.create_namespaced_pod(cluster.namespace, body)
    wait_for(lambda: cluster.pod("owned") is None, 60, "the pod of an absent owner to be collected")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"restartPolcy": "Never"}, 'unknown field "spec.restartPolcy"'),
        ({"activeDeadlineSeconds": "60"}, "cannot unmarshal str"),
        ({"restartPolicy": "Sometimes"}, "Unsupported value"),
        ({"volumes": [{"emptyDir": {}}]}, "spec.volumes[0].name: Required value"),
        ({"container": {"resources": {"limits": {"cpu": "lots"}}}}, "quantities must match"),
        ({"container": {"volumeMounts": [{"name": "x", "mountPath": "/x"}]}}, 'Not found: "x"'),
    ],
)
def test_an_object_that_breaks_its_schema_is_refused(
    loopback: Loopback, cluster: Cluster, change: Any, said: str
):
    with pytest.raises(client.ApiException) as refused:
        cluster.core.create_namespaced_pod(
            cluster.namespace, cluster.manifest("p", "", **change), field_validation="Strict"
        )
    assert said in refused.value.body.replace('\\"', '"')


def test_a_token_is_held_to_its_role_and_a_quota_to_its_number(cluster: Cluster, loopback: Loopback):
    rule = {"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]}
    loopback.obey([{"metadata": {"namespace": cluster.namespace}, "rules": [rule]}])
    from kubernetes import config

    airflow = client.CoreV1Api(config.new_client_from_config(str(cluster.kubeconfig)))
    assert airflow.list_namespaced_pod(cluster.namespace).items == []
    with pytest.raises(client.ApiException, match=r'cannot create resource .*"pods'):
        airflow.create_namespaced_pod(cluster.namespace, cluster.manifest("p", ""))
    loopback.api.access.roles.pop(TOKEN)
    quota = {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "q"},
        "spec": {"hard": {"pods": "0"}},
    }
    cluster.core.create_namespaced_resource_quota(cluster.namespace, quota)
    with pytest.raises(client.ApiException, match="exceeded quota: q"):
        cluster.core.create_namespaced_pod(cluster.namespace, cluster.manifest("p", ""))


@pytest.mark.parametrize(
    ("name", "spec", "phase", "reason"),
    [
        ("no-image", {"container": {"image": "registry.invalid/none:1"}}, "Pending", "ImagePullBackOff"),
        ("bad-image", {"container": {"image": "Not An Image"}}, "Pending", "InvalidImageName"),
        (
            "no-secret",
            {"container": {"env": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}]}},
            "Pending",
            "CreateContainerConfigError",
        ),
        ("crashing", {"restartPolicy": "Always"}, "Running", "CrashLoopBackOff"),
        (
            "greedy",
            {"container": {"resources": {"limits": {"memory": "60Mi"}}}},
            "Failed",
            "OOMKilled",
        ),
    ],
)
def test_the_kubelet_tells_a_containers_reason(
    cluster: Cluster, name: str, spec: Any, phase: str, reason: str
):
    script = "b = bytearray(200_000_000); import time; time.sleep(60)" if name == "greedy" else "exit(1)"
    cluster.core.create_namespaced_pod(cluster.namespace, cluster.manifest(name, script, **spec))

    def told() -> bool:
        found = cluster.pod(name)
        assert found is not None
        for status in found["status"].get("containerStatuses") or ():
            state = status["state"].get("waiting") or status["state"].get("terminated") or {}
            if state.get("reason") == reason and found["status"]["phase"] == phase:
                return True
        return False

    wait_for(told, 60, f"{name} to say {reason}")
    cluster.core.delete_namespaced_pod(name, cluster.namespace, grace_period_seconds=0)


def test_a_pod_that_fits_nowhere_says_so_in_the_schedulers_words(cluster: Cluster):
    wanted = {"resources": {"limits": {"nvidia.com/gpu": "64"}}}
    cluster.core.create_namespaced_pod(cluster.namespace, cluster.manifest("big", "", container=wanted))

    def told() -> str | None:
        found = cluster.pod("big")
        assert found is not None
        conditions = found["status"].get("conditions") or ()
        return next((c["message"] for c in conditions if c.get("reason") == "Unschedulable"), None)

    assert "Insufficient nvidia.com/gpu" in wait_for(told, 30, "the scheduler's words")
    cluster.core.delete_namespaced_pod("big", cluster.namespace, grace_period_seconds=0)


def test_a_pod_that_ignores_sigterm_is_killed_when_its_grace_is_over(cluster: Cluster):
    script = (
        "import signal, time; signal.signal(15, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"
    )
    body = cluster.manifest("deaf", script, terminationGracePeriodSeconds=1)
    cluster.core.create_namespaced_pod(cluster.namespace, body)
    cluster.wait_for_phase("deaf", "Running")
    # Only then does it ignore the signal.
    wait_for(
        lambda: "up" in cluster.core.read_namespaced_pod_log("deaf", cluster.namespace), 30, "its output"
    )
    began = time.monotonic()
    cluster.core.delete_namespaced_pod("deaf", cluster.namespace)
    wait_for(lambda: cluster.pod("deaf") is None, 30, "the pod to go")
    assert time.monotonic() - began >= 1
