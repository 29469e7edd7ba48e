"""What stand-in controllers share: they look again and again, and bring things to what is asked for."""

from __future__ import annotations

import abc
import asyncio
import contextlib
import datetime
from pathlib import Path
from typing import Any

import aiohttp
from kubernetes_asyncio import client, config  # noqa: TID253

Object = dict[str, Any]
_POLL_S = 0.25
_ESTABLISHED_S = 20.0
STAND_IN_LABEL = "airflow-arcadia/test-stand-in"
"""On a definition that a stand-in made: whoever finds one without it has found an operator's own."""
_PASSING = (404, 409, 410, 500, 503, 504)
"""What the next look may put right."""


class Controller(abc.ABC):
    """A controller of one custom resource in one namespace.

    :cvar definition: the CustomResourceDefinition.
    :param kubeconfig: of the cluster.
    :param context: of the kubeconfig; its current one when None.
    """

    definition: Object

    def __init__(self, kubeconfig: Path, namespace: str, context: str | None = None) -> None:
        self._kubeconfig = kubeconfig
        self._context = context
        self.namespace = namespace
        spec = self.definition["spec"]
        version = f"{spec['group']}/{spec['versions'][0]['name']}"
        self.path = f"/apis/{version}/namespaces/{namespace}/{spec['names']['plural']}"

    @abc.abstractmethod
    async def reconcile(self, found: Object) -> Object:
        """Make what is missing; returns the status. Raises ApiException for what the API refuses."""

    @abc.abstractmethod
    def refused(self, found: Object, why: str) -> Object:
        """The status that tells what the API refused."""

    async def run(self) -> None:
        """Until cancelled."""
        configuration = client.Configuration()
        await config.load_kube_config(
            str(self._kubeconfig), context=self._context, client_configuration=configuration
        )
        async with client.ApiClient(configuration) as self._client:
            await self._install()
            while True:
                # A server that is away, and objects that changed or went in between: look again.
                with contextlib.suppress(aiohttp.ClientError, asyncio.TimeoutError):
                    await self._look()
                await asyncio.sleep(_POLL_S)

    async def _install(self) -> None:
        """Define the resource, and wait until it is served."""
        name = self.definition["metadata"]["name"]
        path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
        if await self.get(f"{path}/{name}") is None:
            metadata = {**self.definition["metadata"], "labels": {STAND_IN_LABEL: "true"}}
            await self.ask("POST", path, {**self.definition, "metadata": metadata})
        deadline = asyncio.get_running_loop().time() + _ESTABLISHED_S
        while await self.get(self.path) is None:
            assert asyncio.get_running_loop().time() < deadline, f"{name} is not served"
            await asyncio.sleep(_POLL_S)

    async def _look(self) -> None:
        listed = await self.get(self.path)
        for item in (listed or {"items": []})["items"]:
            # It may have changed while those before it were acted on.
            found = await self.get(f"{self.path}/{item['metadata']['name']}")
            if found is None or found["metadata"].get("deletionTimestamp"):
                continue
            try:
                status = await self.reconcile(found)
            except client.ApiException as error:
                if error.status in _PASSING:
                    continue
                status = self.refused(found, str(error.body))
            await self._tell(found, status)

    async def _tell(self, found: Object, status: Object) -> None:
        if status == found.get("status"):
            return
        with contextlib.suppress(client.ApiException):
            path = f"{self.path}/{found['metadata']['name']}/status"
            await self.ask("PUT", path, {**found, "status": status})

    async def get(self, path: str, **query: str) -> Object | None:
        """What is there; None for 404."""
        try:
            return await self.ask("GET", path, None, **query)
        except client.ApiException as error:
            if error.status == 404:
                return None
            raise

    async def ask(self, method: str, path: str, body: Object | None = None, **query: str) -> Object:
        """The answer. Raises ApiException."""
        answer: Object = await self._client.call_api(
            path,
            method,
            query_params=list(query.items()),
            header_params={"Accept": "application/json", "Content-Type": "application/json"},
            body=body,
            auth_settings=["BearerToken"],
            response_types_map={200: "object", 201: "object", 202: "object"},
            _return_http_data_only=True,
            _request_timeout=10,
        )
        return answer

    async def pods(self, labels: str) -> list[Object]:
        """Pods of the namespace that carry these labels, the oldest first."""
        listed = await self.ask("GET", f"/api/v1/namespaces/{self.namespace}/pods", labelSelector=labels)
        found: list[Object] = listed["items"]
        return sorted(found, key=lambda pod: (pod["metadata"]["creationTimestamp"], pod["metadata"]["name"]))

    async def make(self, plural: str, new: Object) -> Object:
        """Create it unless its name is taken; what is there."""
        path = f"/api/v1/namespaces/{self.namespace}/{plural}"
        if name := new["metadata"].get("name"):
            there = await self.get(f"{path}/{name}")
            if there is not None:
                return there
        return await self.ask("POST", path, new)

    async def delete(self, pod: Object) -> None:
        """Delete a pod that does not go already."""
        if not pod["metadata"].get("deletionTimestamp"):
            name = pod["metadata"]["name"]
            await self.ask("DELETE", f"/api/v1/namespaces/{self.namespace}/pods/{name}")


def owner(found: Object) -> Object:
    """A controller's reference to what it acts on."""
    return {
        "apiVersion": found["apiVersion"],
        "kind": found["kind"],
        "name": found["metadata"]["name"],
        "uid": found["metadata"]["uid"],
        "controller": True,
        "blockOwnerDeletion": True,
    }


def with_times(new: list[Object], old: list[Object]) -> list[Object]:
    """Conditions with the time of their last change of status."""
    before = {condition["type"]: condition for condition in old}
    moment = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    for condition in new:
        was = before.get(condition["type"], {})
        same = was.get("status") == condition["status"] and was.get("reason") == condition["reason"]
        condition["lastTransitionTime"] = was["lastTransitionTime"] if same else moment
    return new


def is_ready(pod: Object) -> bool:
    """Whether the pod says that it is ready."""
    conditions = (pod.get("status") or {}).get("conditions") or ()
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)


def definition(group: str, version: str, kind: str, plural: str, spec: Object) -> Object:
    """A CustomResourceDefinition with a status that is written by itself.

    :param spec: schema of the object's spec.
    """
    free = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    schema = {"type": "object", "properties": {"spec": spec, "status": free}}
    served = {"name": version, "served": True, "storage": True, "subresources": {"status": {}}}
    names = {"plural": plural, "singular": kind.lower(), "kind": kind, "listKind": f"{kind}List"}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{group}"},
        "spec": {
            "group": group,
            "scope": "Namespaced",
            "names": names,
            "versions": [{**served, "schema": {"openAPIV3Schema": schema}}],
        },
    }
