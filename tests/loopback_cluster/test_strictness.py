"""What a real API server refuses is refused, and what it completes is completed."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from typing import Any

import pytest
from kubernetes import client  # noqa: TID253

from tests.conftest import wait_for
from tests.loopback_cluster.cluster import Cluster, Loopback
from tests.loopback_cluster.kubelet.client import ApiClient
from tests.loopback_cluster.kubelet.events import Recorder

LEASE = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "l"}}


def object_of(kind: str, name: str, **fields: Any) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": kind, "metadata": {"name": name}, **fields}


def space(prefix: str, labels: dict[str, str]) -> dict[str, Any]:
    """A namespace with a name of its own."""
    return {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"generateName": prefix, "labels": labels},
    }


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        (
            {"container": {"env": [{"name": "A=B", "value": "1"}]}},
            "a valid environment variable name must consist only of printable ASCII",
        ),
        ({"container": {"env": [{"name": "A", "value": 1}]}}, "cannot unmarshal number into Go struct field"),
        ({"container": {"ports": [{"containerPort": 1, "name": "http"}] * 2}}, 'Duplicate value: "http"'),
        (
            {"container": {"ports": [{"containerPort": 1, "name": "Too_Long_A_Name"}]}},
            "must contain only alpha-numeric characters",
        ),
        ({"container": {"image": ""}}, "image: Required value"),
        (
            {"container": {"resources": {"requests": {"cpu": "2"}, "limits": {"cpu": "1"}}}},
            "less than or equal",
        ),
        ({"container": {"resources": {"requests": {"nvidia.com/gpu": "1"}}}}, "Limit must be set"),
        ({"container": {"resources": {"limits": {"nvidia.com/gpu": "0.5"}}}}, "must be an integer"),
        ({"container": {"livenessProbe": {"periodSeconds": 1}}}, "must specify a handler type"),
        (
            {"container": {"startupProbe": {"tcpSocket": {"port": 1}, "successThreshold": 2}}},
            "successThreshold",
        ),
        ({"activeDeadlineSeconds": 0}, "must be between 1 and"),
        ({"tolerations": [{"operator": "Exists", "value": "x", "key": "k"}]}, "value must be empty"),
        ({"nodeSelector": {"gpu": "x" * 64}}, "no more than 63 bytes"),
        ({"volumes": [{"name": "v", "emptyDir": {}, "hostPath": {"path": "/x"}}]}, "more than 1 volume type"),
        ({"volumes": [{"name": "v", "emptyDir": {}}] * 2}, 'Duplicate value: "v"'),
        ({"serviceAccountName": "nobody"}, 'serviceaccount \\"nobody\\" not found'),
        ({"priorityClassName": "urgent"}, "no PriorityClass with name urgent was found"),
    ],
)
def test_a_pod_that_breaks_a_rule_is_refused(cluster: Cluster, spec: dict[str, Any], said: str):
    with pytest.raises(client.ApiException) as refused:
        cluster.core.create_namespaced_pod(cluster.namespace, cluster.manifest("p", "", **spec))
    assert said in refused.value.body or said in refused.value.body.replace('\\"', '"')


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (object_of("Secret", "s", data={"key": "not base64!"}), "illegal base64 data"),
        (object_of("Secret", "s", stringData={"a key": "x"}), "valid config key"),
        (object_of("Secret", "Name_Of"), "lowercase RFC 1123 subdomain"),
        (object_of("Secret", "s", metadata={"name": "s", "labels": {"a": "x" * 64}}), "63 bytes"),
        (
            object_of("Secret", "s", metadata={"name": "s", "labels": {"a": "manual__2026:00"}}),
            "Invalid value",
        ),
        (
            object_of("Secret", "s", metadata={"name": "s", "ownerReferences": [{"kind": "Lease"}]}),
            'Invalid value: \\"\\": must not be empty',
        ),
        (
            object_of("Secret", "s", metadata={"name": "s", "namespace": "other"}),
            "does not match the namespace",
        ),
        (object_of("Secret", "s", metadata={}), "name or generateName is required"),
        (object_of("Service", "a_s", spec={"ports": [{"port": 1}]}), "lowercase RFC 1123 label"),
        (object_of("Service", "s", spec={"ports": [{"port": 1}, {"port": 2}]}), "name: Required value"),
        (object_of("Service", "s", spec={"ports": [{"port": 70000}]}), "between 1 and 65535"),
    ],
)
def test_an_object_that_breaks_a_rule_is_refused(cluster: Cluster, body: dict[str, Any], said: str):
    core = cluster.core
    create = {"Secret": core.create_namespaced_secret, "Service": core.create_namespaced_service}
    with pytest.raises(client.ApiException) as refused:
        create[body["kind"]](cluster.namespace, body)
    assert said in refused.value.body


def test_a_services_name_may_begin_with_a_digit(cluster: Cluster):
    cluster.core.create_namespaced_service(
        cluster.namespace, object_of("Service", "9s", spec={"ports": [{"port": 1}]})
    )


def test_a_lease_takes_micro_times_and_no_blind_updates(cluster: Cluster):
    api, namespace = cluster.coordination, cluster.namespace
    whole = datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone.utc)
    with pytest.raises(client.ApiException, match=r"000000Z07:00"):
        # The client leaves the microseconds out where they are zero, and the server refuses that.
        api.create_namespaced_lease(namespace, {**LEASE, "spec": {"renewTime": whole}})
    spec = {"renewTime": "2026-01-01T02:00:00.000000+02:00", "leaseDurationSeconds": 60}
    made = api.create_namespaced_lease(namespace, {**LEASE, "spec": spec})
    assert made.spec.renew_time == whole
    first = api.api_client.sanitize_for_serialization(made)
    fresh = {**LEASE, "spec": {**spec, "holderIdentity": "a"}}
    with pytest.raises(client.ApiException, match="must be specified for an update"):
        api.replace_namespaced_lease("l", namespace, fresh)
    version = first["metadata"]["resourceVersion"]
    fresh["metadata"] = {"name": "l", "resourceVersion": version}
    api.replace_namespaced_lease("l", namespace, fresh)
    with pytest.raises(client.ApiException) as stale:
        api.replace_namespaced_lease("l", namespace, fresh)
    assert (stale.value.status, "has been modified" in stale.value.body) == (409, True)
    with pytest.raises(client.ApiException, match="must be greater than 0"):
        api.patch_namespaced_lease("l", namespace, {"spec": {"leaseDurationSeconds": 0}})


def test_a_secrets_text_is_merged_into_its_data(cluster: Cluster):
    body = object_of("Secret", "s", stringData={"b": "text"}, data={"a": "eA=="})
    made = cluster.core.create_namespaced_secret(cluster.namespace, body)
    assert (made.data, made.type, made.string_data) == ({"a": "eA==", "b": "dGV4dA=="}, "Opaque", None)


def test_a_pod_is_completed_as_a_real_server_completes_it(cluster: Cluster):
    made = cluster.core.create_namespaced_pod(cluster.namespace, cluster.manifest("p", ""))
    spec = made.spec
    assert spec.service_account_name == "default"
    assert {t.toleration_seconds for t in spec.tolerations} == {300}
    assert spec.volumes[0].name.startswith("kube-api-access-")
    assert spec.containers[0].image_pull_policy == "IfNotPresent"
    quiet = cluster.manifest("q", "", automountServiceAccountToken=False)
    assert cluster.core.create_namespaced_pod(cluster.namespace, quiet).spec.volumes is None
    with pytest.raises(client.ApiException, match="pod updates may not change fields"):
        cluster.core.patch_namespaced_pod("q", cluster.namespace, {"spec": {"hostname": "x"}})


def test_a_dry_run_leaves_nothing(cluster: Cluster):
    cluster.core.create_namespaced_pod(cluster.namespace, cluster.manifest("p", ""), dry_run="All")
    assert cluster.pod("p") is None


def test_a_namespace_that_enforces_a_level_refuses_what_is_below_it(cluster: Cluster):
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    made = cluster.core.create_namespace(space("enforced-", labels))
    name = made.metadata.name
    with pytest.raises(client.ApiException, match="violates PodSecurity") as refused:
        cluster.core.create_namespaced_pod(name, cluster.manifest("p", ""))
    for wanted in ("allowPrivilegeEscalation", "capabilities", "runAsNonRoot", "seccompProfile"):
        assert wanted in refused.value.body
    safe = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    context = {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    body = cluster.manifest("p", "", container={"securityContext": safe}, securityContext=context)
    wait_for(lambda: cluster.core.list_namespaced_service_account(name).items, 20, "its service account")
    cluster.core.create_namespaced_pod(name, body)
    cluster.core.delete_namespace(name)


async def test_a_controller_outlives_a_namespace_that_is_deleted_under_it(
    cluster: Cluster, loopback: Loopback
):
    """A scheduler that tells of a pod it has just bound finds the namespace going."""
    name = cluster.core.create_namespace(space("going-", {})).metadata.name
    held = object_of("ConfigMap", "held")
    held["metadata"]["finalizers"] = ["tests.example/hold"]
    cluster.core.create_namespaced_config_map(name, held)
    cluster.core.delete_namespace(name)
    api = ApiClient(loopback.url)
    try:
        pod = {"metadata": {"name": "p", "namespace": name, "uid": "1"}}
        await Recorder(api, "scheduler").tell(pod, "Scheduled", "bound", "Normal")
    finally:
        await api.close()
    assert not cluster.core.list_namespaced_event(name).items
    cluster.core.patch_namespaced_config_map("held", name, {"metadata": {"finalizers": None}})


def test_a_namespace_goes_with_all_that_is_in_it_and_takes_nothing_new_meanwhile(cluster: Cluster):
    core = cluster.core
    name = core.create_namespace(space("gone-", {})).metadata.name
    held = object_of("ConfigMap", "held")
    held["metadata"]["finalizers"] = ["tests.example/hold"]
    core.create_namespaced_config_map(name, held)
    core.create_namespaced_config_map(name, object_of("ConfigMap", "free"))
    core.delete_namespace(name)
    with pytest.raises(client.ApiException, match="because it is being terminated"):
        core.create_namespaced_config_map(name, object_of("ConfigMap", "late"))

    def left() -> list[str]:
        names = [item.metadata.name for item in core.list_namespaced_config_map(name).items]
        return [kept for kept in names if kept in {"held", "free"}]

    wait_for(lambda: left() == ["held"], 30, "all but what is held to go")
    core.patch_namespaced_config_map("held", name, {"metadata": {"finalizers": None}})
    wait_for(lambda: name not in {n.metadata.name for n in core.list_namespace().items}, 30, "its end")


@pytest.fixture
def toys(cluster: Cluster) -> Iterator[Cluster]:
    """A cluster with a custom resource ``toys.example.org``."""
    spec = {
        "type": "object",
        "required": ["size"],
        "properties": {
            "size": {"type": "integer", "maximum": 3},
            "kind": {"type": "string", "enum": ["a", "b"], "default": "a"},
            "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
        },
    }
    status = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    schema = {"type": "object", "properties": {"spec": spec, "status": status}}
    version = {"name": "v1", "served": True, "storage": True, "subresources": {"status": {}}}
    names = {"plural": "toys", "singular": "toy", "kind": "Toy", "listKind": "ToyList"}
    body = {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": "toys.example.org"},
        "spec": {
            "group": "example.org",
            "scope": "Namespaced",
            "names": names,
            "versions": [{**version, "schema": {"openAPIV3Schema": schema}}],
        },
    }
    extensions = client.ApiextensionsV1Api(cluster.core.api_client)
    extensions.create_custom_resource_definition(body)
    yield cluster
    extensions.delete_custom_resource_definition("toys.example.org")


def toy(name: str, **spec: Any) -> dict[str, Any]:
    return {"apiVersion": "example.org/v1", "kind": "Toy", "metadata": {"name": name}, "spec": spec}


def test_a_custom_resource_is_held_to_its_schema(toys: Cluster):
    where = ("example.org", "v1", toys.namespace, "toys")

    def create(body: dict[str, Any], **query: Any) -> dict[str, Any]:
        made: dict[str, Any] = toys.custom.create_namespaced_custom_object(*where, body, **query)
        return made

    wait_for(lambda: toys.custom.list_namespaced_custom_object(*where) is not None, 10, "the resource")
    for body, said in (
        (toy("t"), "spec.size: Required value"),
        (toy("t", size="1"), "must be of type integer"),
        (toy("t", size=4), "less than or equal to 3"),
        (toy("t", size=1, kind="c"), "Unsupported value"),
    ):
        with pytest.raises(client.ApiException) as refused:
            create(body)
        assert said in refused.value.body
    odd = toy("t", size=1, colour="red", free={"any": 1})
    with pytest.raises(client.ApiException, match=r'unknown field ."spec.colour'):
        create(odd, field_validation="Strict")
    made = create(odd)
    assert made["spec"] == {"size": 1, "kind": "a", "free": {"any": 1}}
    assert made["metadata"]["generation"] == 1
    toys.custom.patch_namespaced_custom_object_status(*where, "t", {"status": {"ready": True}})
    toys.custom.patch_namespaced_custom_object(*where, "t", {"spec": {"size": 2}, "status": {"ready": False}})
    found = toys.custom.get_namespaced_custom_object(*where, "t")
    assert (found["status"], found["metadata"]["generation"]) == ({"ready": True}, 2)
    toys.custom.delete_collection_namespaced_custom_object(*where)
    assert toys.custom.list_namespaced_custom_object(*where)["items"] == []
