"""Requests to a Kubernetes API server, on the client that Airflow's cncf-kubernetes provider makes.

Objects go in and out as JSON, custom resources like built-in ones. A server that is away for a while is
asked again; what it says in the end becomes one of :mod:`airflow_arcadia.kubernetes.errors`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any, TypeVar

import aiohttp

from airflow_arcadia.kubernetes.errors import (
    VERBS,
    KubernetesAbsentError,
    KubernetesConflictError,
    KubernetesError,
    KubernetesExpiredError,
    KubernetesForbiddenError,
    KubernetesUnreachableError,
    refused,
    unreachable,
)
from airflow_arcadia.kubernetes.kinds import POD, REVIEW, Kind, Object
from airflow_arcadia.kubernetes.rights import MissingRights

T = TypeVar("T")
Connect = Callable[[], AbstractAsyncContextManager[Any]]
"""Opens a ``kubernetes_asyncio.client.ApiClient``."""

PATIENCE_S = 90.0
"""How long an API server may be away before a request fails: a restart of the control plane."""
_REQUEST_S = 15.0
_WATCH_S = 60  # the server ends a watch after this, so that a connection that died unseen is found
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 2.0
_MERGE_PATCH = "application/merge-patch+json"
_JSON = "application/json"


class KubernetesApi:
    """One namespace of one cluster.

    :param connect: opens a client; every session has its own, so that it fits whatever loop runs it.
    :param namespace: where everything is.
    :param patience_s: seconds an API server may be away before a request fails.
    """

    def __init__(self, connect: Connect, namespace: str, patience_s: float = PATIENCE_S) -> None:
        self._connect = connect
        self.namespace = namespace
        self.patience_s = patience_s

    @contextlib.asynccontextmanager
    async def session(self) -> AsyncIterator[Session]:
        """Requests that share one client."""
        async with self._connect() as client:
            yield Session(client, self.namespace, self.patience_s)

    def with_patience(self, patience_s: float) -> KubernetesApi:
        """The same namespace, asked for at most that long where the API server is away."""
        return KubernetesApi(self._connect, self.namespace, patience_s)

    def run(self, work: Callable[[Session], Coroutine[Any, Any, T]]) -> T:
        """Run ``work`` with a session of its own, from code that is not asynchronous."""

        async def inside() -> T:
            async with self.session() as session:
                return await work(session)

        return asyncio.run(inside())


class Session:
    """Requests on one client. All raise errors of :mod:`airflow_arcadia.kubernetes.errors`."""

    def __init__(self, client: Any, namespace: str, patience_s: float) -> None:
        self._client = client
        self.namespace = namespace
        self.patience_s = patience_s
        self._rights = MissingRights()

    async def get(self, kind: Kind, name: str) -> Object | None:
        """The object, or None when the server says that there is none."""
        try:
            return await self._request("GET", kind, name)
        except KubernetesAbsentError:
            return None

    async def find(self, kind: Kind, labels: str = "", fields: str = "") -> list[Object]:
        """The objects that both selectors choose."""
        return list((await self._list(kind, labels, fields))["items"])

    async def create(self, kind: Kind, body: Mapping[str, Any]) -> Object:
        """Create the object and return it. Raises :class:`KubernetesConflictError` when the name is taken."""
        # Strict: a misspelt field is refused instead of dropped in silence.
        query = [("fieldValidation", "Strict")]
        return await self._request("POST", kind, body=body, query=query)

    async def replace(self, kind: Kind, body: Mapping[str, Any]) -> Object:
        """Replace the object and return it. Raises :class:`KubernetesConflictError` when it has changed."""
        return await self._request("PUT", kind, body["metadata"]["name"], body=body)

    async def patch(self, kind: Kind, name: str, body: Mapping[str, Any]) -> Object:
        """Change the object by a JSON merge patch and return it."""
        return await self._request("PATCH", kind, name, body=body, content_type=_MERGE_PATCH)

    async def delete(
        self, kind: Kind, name: str, *, uid: str | None = None, grace_s: float | None = None
    ) -> None:
        """Delete the object; idempotent.

        :param uid: only that object, not a later one of the same name.
        :param grace_s: seconds between SIGTERM and SIGKILL, for a pod; None leaves it to the pod.
        """
        body: dict[str, Any] = {"propagationPolicy": "Background"}
        if uid:
            body["preconditions"] = {"uid": uid}
        if grace_s is not None:
            body["gracePeriodSeconds"] = int(grace_s)
        # A conflict with the precondition: that object is gone, another has its name.
        gone = (KubernetesAbsentError, KubernetesConflictError) if uid else (KubernetesAbsentError,)
        with contextlib.suppress(*gone):
            await self._request("DELETE", kind, name, body=body)

    async def logs(self, pod: str, container: str, lines: int, *, previous: bool = False) -> list[str]:
        """The container's last log lines; none while it has no log."""
        query = [("container", container), ("tailLines", str(lines))]
        if previous:
            query.append(("previous", "true"))
        path = f"{POD.path(self.namespace, pod)}/log"
        status, body = await self._answer("GET", path, query=query)
        return body.splitlines() if status == 200 else []

    async def follow_log(self, pod: str, container: str, since: str | None = None) -> AsyncIterator[str]:
        """Log lines with their time stamps as they come, until the container or the connection ends.

        :param since: RFC 3339 time; earlier lines are left out.
        """
        query = [("container", container), ("follow", "true"), ("timestamps", "true")]
        if since:
            query.append(("sinceTime", since))
        async for line in self._stream(f"{POD.path(self.namespace, pod)}/log", query, POD, "get"):
            yield line.decode(errors="replace")

    async def changes(
        self, kind: Kind, labels: str = "", fields: str = ""
    ) -> AsyncGenerator[list[Object] | None, None]:
        """The chosen objects, now and after every change; None while they cannot be read.

        A watch, made anew when it ends, expires (410) or breaks. Raises what no waiting mends: a missing
        right, an unknown kind.
        """
        pause = _FIRST_PAUSE_S
        while True:
            try:
                answer = await self._list(kind, labels, fields, patience_s=0)
                found = {item["metadata"]["name"]: item for item in answer["items"]}
                yield list(found.values())
                pause = _FIRST_PAUSE_S
                version = answer["metadata"]["resourceVersion"]
                async for item, gone in self._watch(kind, labels, fields, version):
                    name = item["metadata"]["name"]
                    found.pop(name, None)
                    if not gone:
                        found[name] = item
                    yield list(found.values())
            except KubernetesExpiredError:
                continue
            except KubernetesForbiddenError as error:
                # Listing waits for its own right before it raises.
                if error.status != 403 or self._rights.believed("watch", kind):
                    raise
                await asyncio.sleep(_FIRST_PAUSE_S)
            except KubernetesUnreachableError:
                self._rights.forget()
                yield None
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE_S)

    async def review(self, path: str, body: Mapping[str, Any]) -> Object:
        """The answer to a review: an object that is posted to be answered and is not kept."""
        return await self._request("POST", REVIEW, body=body, path=path)

    async def serves(self, kind: Kind) -> bool:
        """Whether the cluster knows the kind in any namespace."""
        status, text = await self._answer("GET", f"/apis/{kind.api_version}" if kind.group else "/api/v1")
        if status == 404:
            return False
        if status != 200:
            raise refused(status, text, "list", kind, self.namespace)
        return any(item.get("name") == kind.plural for item in json.loads(text)["resources"])

    async def _watch(
        self, kind: Kind, labels: str, fields: str, version: str
    ) -> AsyncIterator[tuple[Object, bool]]:
        query = _selectors(labels, fields)
        query += [("watch", "true"), ("resourceVersion", version), ("timeoutSeconds", str(_WATCH_S))]
        async for line in self._stream(kind.path(self.namespace), query, kind, "watch"):
            event = json.loads(line)
            if event["type"] == "ERROR":
                raise refused(
                    int(event["object"].get("code", 500)), line.decode(), "watch", kind, self.namespace
                )
            if event["type"] != "BOOKMARK":
                yield event["object"], event["type"] == "DELETED"

    async def _list(self, kind: Kind, labels: str, fields: str, patience_s: float | None = None) -> Object:
        query = _selectors(labels, fields)
        return await self._request("GET", kind, query=query, verb="list", patience_s=patience_s)

    async def _stream(
        self, path: str, query: list[tuple[str, str]], kind: Kind, verb: str
    ) -> AsyncIterator[bytes]:
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=_REQUEST_S, sock_read=_WATCH_S + _REQUEST_S)
        rest = b""
        try:
            response = await self._call("GET", path, query=query, timeout=timeout)
            async with response:
                if response.status != 200:
                    raise refused(response.status, await response.text(), verb, kind, self.namespace)
                self._rights.granted(verb, kind)
                async for chunk in response.content.iter_any():
                    *lines, rest = (rest + chunk).split(b"\n")
                    for line in lines:
                        if line:
                            yield line
        except (aiohttp.ClientError, asyncio.TimeoutError, OSError) as error:
            raise unreachable(error) from error

    async def _request(
        self,
        method: str,
        kind: Kind,
        name: str | None = None,
        *,
        body: Mapping[str, Any] | None = None,
        query: list[tuple[str, str]] | None = None,
        content_type: str = _JSON,
        verb: str | None = None,
        patience_s: float | None = None,
        path: str | None = None,
    ) -> Object:
        path, verb = path or kind.path(self.namespace, name), verb or VERBS[method]
        patience_s = self.patience_s if patience_s is None else patience_s
        deadline, pause = time.monotonic() + patience_s, _FIRST_PAUSE_S
        while True:
            error: KubernetesError
            try:
                status, text = await self._answer(method, path, body, query, content_type)
                if 200 <= status < 300:
                    self._rights.granted(verb, kind)
                    return dict(json.loads(text))
                error = refused(status, text, verb, kind, self.namespace, name)
            except KubernetesUnreachableError as away:
                error = away
            if not self._may_pass(error, verb, kind, time.monotonic() + pause > deadline):
                raise error
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_S)

    def _may_pass(self, error: KubernetesError, verb: str, kind: Kind, out_of_time: bool) -> bool:
        """Whether to ask again after this error."""
        if isinstance(error, KubernetesUnreachableError):
            self._rights.forget()
            return not out_of_time
        missing = isinstance(error, KubernetesForbiddenError) and error.status == 403
        return missing and not self._rights.believed(verb, kind)

    async def _answer(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        query: list[tuple[str, str]] | None = None,
        content_type: str = _JSON,
    ) -> tuple[int, str]:
        timeout = aiohttp.ClientTimeout(total=_REQUEST_S)
        try:
            response = await self._call(
                method, path, query=query, body=body, content_type=content_type, timeout=timeout
            )
            async with response:
                return response.status, await response.text(errors="replace")
        except (aiohttp.ClientError, asyncio.TimeoutError, OSError) as error:
            raise unreachable(error) from error

    def _call(
        self,
        method: str,
        path: str,
        *,
        timeout: aiohttp.ClientTimeout,
        query: list[tuple[str, str]] | None = None,
        body: Mapping[str, Any] | None = None,
        content_type: str = _JSON,
    ) -> Awaitable[aiohttp.ClientResponse]:
        """The client's own low-level request: it knows the server, the credentials and the certificates."""
        called: Awaitable[aiohttp.ClientResponse] = self._client.call_api(
            path,
            method,
            query_params=query or [],
            header_params={"Accept": "*/*", "Content-Type": content_type},
            body=body,
            auth_settings=["BearerToken"],
            _preload_content=False,
            _request_timeout=timeout,
        )
        return called


def _selectors(labels: str, fields: str) -> list[tuple[str, str]]:
    query = [("labelSelector", labels)] if labels else []
    return [*query, ("fieldSelector", fields)] if fields else query
