"""What goes wrong in a cluster goes wrong in the loopback one, in the same order and words."""

from __future__ import annotations

from typing import Any

import pytest
from kubernetes import client, config  # noqa: TID253

from tests.conftest import wait_for
from tests.loopback_cluster.cluster import Cluster, Loopback

SLEEP = "import time; print('up', flush=True); time.sleep(600)"


def condition(cluster: Cluster, name: str, kind: str) -> dict[str, Any]:
    """A condition of the pod; empty when it has none of that kind."""
    pod = cluster.pod(name)
    assert pod is not None
    conditions = pod["status"].get("conditions") or ()
    return next((c for c in conditions if c["type"] == kind), {})


def reasons(cluster: Cluster, name: str) -> list[str]:
    """Of the pod's events, the oldest first."""
    selector = f"involvedObject.name={name}"
    events = cluster.core.list_namespaced_event(cluster.namespace, field_selector=selector).items
    return [event.reason for event in sorted(events, key=lambda e: int(e.metadata.resource_version))]


def airflow(cluster: Cluster) -> client.CoreV1Api:
    """The client with Airflow's token."""
    return client.CoreV1Api(config.new_client_from_config(str(cluster.kubeconfig)))


def gpus(count: int) -> dict[str, Any]:
    return {"resources": {"limits": {"nvidia.com/gpu": str(count)}}}


def test_a_lost_node_leaves_its_pods_running_in_name_until_they_are_marked(
    cluster: Cluster, loopback: Loopback
):
    cluster.run(cluster.manifest("lost", SLEEP), "Running")
    wait_for(lambda: condition(cluster, "lost", "Ready").get("status") == "True", 10, "the pod to be ready")
    pids = loopback.pids("lost")
    loopback.lose_node(evict_after_s=0.5)
    assert condition(cluster, "lost", "Ready")["status"] == "False"
    found = cluster.pod("lost")
    assert found is not None
    assert found["status"]["phase"] == "Running"
    assert found["status"]["containerStatuses"][0]["ready"] is True
    assert pids
    assert loopback.pids("lost") == []
    node = cluster.core.read_node("gpu-node-0")
    assert (node.status.conditions[0].status, node.spec.taints[0].key) == (
        "Unknown",
        "node.kubernetes.io/unreachable",
    )
    with pytest.raises(client.ApiException, match="no route to host"):
        cluster.log("lost")
    wait_for(lambda: (cluster.pod("lost") or {})["metadata"].get("deletionTimestamp"), 10, "the marking")
    assert condition(cluster, "lost", "DisruptionTarget")["reason"] == "DeletionByTaintManager"
    assert reasons(cluster, "lost")[-2:] == ["NodeNotReady", "TaintManagerEviction"]
    assert (cluster.pod("lost") or {})["status"]["phase"] == "Running"
    loopback.return_node()
    wait_for(lambda: cluster.pod("lost") is None, 10, "the returned node to let it go")
    cluster.run(cluster.manifest("next", "print(1)"))


def test_an_evicted_pod_has_failed_and_stays(cluster: Cluster, loopback: Loopback):
    cluster.run(cluster.manifest("evicted", SLEEP), "Running")
    loopback.evict("evicted")
    found = cluster.wait_for_phase("evicted", "Failed")
    assert found["status"]["reason"] == "Evicted"
    assert "low on resource: memory" in found["status"]["message"]
    assert condition(cluster, "evicted", "DisruptionTarget")["reason"] == "TerminationByKubelet"
    wait_for(lambda: "Evicted" in reasons(cluster, "evicted"), 5, "the event")


def test_a_pod_that_outlives_its_deadline_has_failed(cluster: Cluster):
    body = cluster.manifest("late", SLEEP, activeDeadlineSeconds=1, terminationGracePeriodSeconds=1)
    found = cluster.run(body, "Failed")
    assert found["status"]["reason"] == "DeadlineExceeded"
    # As PID 1 of a real container it has no default handler of SIGTERM, and is killed.
    assert found["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"] in {137, 143}


def test_a_second_pod_waits_until_the_first_gives_its_gpus_back(cluster: Cluster):
    cluster.run(
        cluster.manifest("first", SLEEP, container=gpus(2), terminationGracePeriodSeconds=1), "Running"
    )
    cluster.core.create_namespaced_pod(
        cluster.namespace, cluster.manifest("second", "print(1)", container=gpus(1))
    )
    wait_for(lambda: condition(cluster, "second", "PodScheduled"), 10, "the scheduler's words")
    assert "1 Insufficient nvidia.com/gpu" in condition(cluster, "second", "PodScheduled")["message"]
    assert "FailedScheduling" in reasons(cluster, "second")
    cluster.core.delete_namespaced_pod("first", cluster.namespace)
    cluster.wait_for_phase("second", "Succeeded")
    assert "reason" not in condition(cluster, "second", "PodScheduled"), "what was said before is taken back"


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"container": {"resources": {"requests": {"memory": "1Ti"}}}}, "Insufficient memory"),
        ({"nodeSelector": {"accelerator": "h100"}}, "didn't match Pod's node affinity/selector"),
        (
            {"volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "none"}}]},
            'persistentvolumeclaim "none" not found',
        ),
    ],
)
def test_the_scheduler_says_what_does_not_fit(cluster: Cluster, spec: dict[str, Any], said: str):
    cluster.core.create_namespaced_pod(cluster.namespace, cluster.manifest("p", "", **spec))
    wait_for(lambda: condition(cluster, "p", "PodScheduled"), 10, "the scheduler's words")
    assert said in condition(cluster, "p", "PodScheduled")["message"]


def test_a_pod_survives_an_api_server_that_is_away(cluster: Cluster, loopback: Loopback):
    cluster.run(cluster.manifest("steady", "import time; time.sleep(1.5); print('done')"), "Running")
    with loopback.api_away():
        with pytest.raises(Exception, match="refused"):
            cluster.core.list_namespaced_pod(cluster.namespace, _request_timeout=2)
        # It ends while nobody can be told.
        wait_for(lambda: not loopback.pids("steady"), 10, "the pod's process to end")
    cluster.wait_for_phase("steady", "Succeeded")
    assert cluster.log("steady").strip() == "done"


def test_a_server_that_starts_anew_denies_everything_until_it_has_read_its_roles(
    cluster: Cluster, loopback: Loopback
):
    core = airflow(cluster)
    core.list_namespaced_pod(cluster.namespace)
    with loopback.api_away():
        pass
    cluster.core.list_namespaced_pod(cluster.namespace)  # an administrator needs no role
    with pytest.raises(client.ApiException, match="cannot list resource") as refused:
        core.list_namespaced_pod(cluster.namespace)
    assert refused.value.status == 403
    wait_for(lambda: _may_list(core, cluster.namespace), 5, "the roles to be read")


def _may_list(core: client.CoreV1Api, namespace: str) -> bool:
    try:
        core.list_namespaced_pod(namespace)
    except client.ApiException:
        return False
    return True


def test_rights_are_held_to_the_roles_of_a_manifest_and_taken_away_one_by_one(
    cluster: Cluster, loopback: Loopback
):
    rules = [{"apiGroups": [""], "resources": ["pods", "pods/log"], "verbs": ["get", "list", "watch"]}]
    role = {"kind": "Role", "metadata": {"name": "airflow-arcadia", "namespace": "airflow"}, "rules": rules}
    account = {"kind": "ServiceAccount", "metadata": {"name": "airflow"}}
    loopback.obey([account, role])
    core = airflow(cluster)
    core.list_namespaced_pod(cluster.namespace)
    with pytest.raises(client.ApiException, match="cannot delete resource") as refused:
        core.delete_namespaced_pod("p", cluster.namespace)
    assert (refused.value.status, 'pods \\"p\\" is forbidden' in refused.value.body) == (403, True)
    with pytest.raises(client.ApiException, match="at the cluster scope"):
        core.list_pod_for_all_namespaces()
    assert ("delete", "", "pods") in loopback.api.access.used
    loopback.obey_all()
    loopback.deny("list", "pods")
    with pytest.raises(client.ApiException, match="cannot list resource"):
        core.list_namespaced_pod(cluster.namespace)
    core.list_namespaced_service(cluster.namespace)


def test_requests_fail_as_often_as_ordered(cluster: Cluster, loopback: Loopback):
    loopback.fail(503, verb="list", resource="pods", times=2)
    core = airflow(cluster)
    for _ in range(2):
        with pytest.raises(client.ApiException) as failed:
            core.list_namespaced_pod(cluster.namespace)
        assert failed.value.status == 503
    assert core.list_namespaced_pod(cluster.namespace).items == []


def test_a_quota_of_gpus_counts_what_pods_ask_for(cluster: Cluster):
    spec = {"hard": {"requests.nvidia.com/gpu": "1"}}
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "q"}, "spec": spec}
    cluster.core.create_namespaced_resource_quota(cluster.namespace, quota)
    with pytest.raises(client.ApiException, match=r"exceeded quota: q.*limited: requests.nvidia.com/gpu=1"):
        cluster.core.create_namespaced_pod(cluster.namespace, cluster.manifest("p", "", container=gpus(2)))
    cluster.run(cluster.manifest("q", "print(1)", container=gpus(1)))


def test_foreground_deletion_waits_for_what_is_owned(cluster: Cluster):
    lease = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "owner"}}
    owner = cluster.coordination.create_namespaced_lease(cluster.namespace, {**lease, "spec": {}})
    body = cluster.manifest("owned", SLEEP, terminationGracePeriodSeconds=1)
    body["metadata"]["ownerReferences"] = [
        {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "name": "owner",
            "uid": owner.metadata.uid,
            "blockOwnerDeletion": True,
        }
    ]
    cluster.run(body, "Running")
    cluster.coordination.delete_namespaced_lease("owner", cluster.namespace, propagation_policy="Foreground")
    found = cluster.coordination.read_namespaced_lease("owner", cluster.namespace)
    assert found.metadata.finalizers == ["foregroundDeletion"]

    def gone() -> bool:
        leases = cluster.coordination.list_namespaced_lease(cluster.namespace).items
        if not leases:
            assert cluster.pod("owned") is None, "the owner went before what it owned"
        return not leases

    wait_for(gone, 60, "the owner to go")
