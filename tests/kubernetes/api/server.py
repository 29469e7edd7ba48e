"""The HTTP side: REST verbs, watches, dry runs, pod logs; stops and starts with its state kept."""

from __future__ import annotations

import asyncio
import copy
import json
import random
import string
from collections.abc import Callable
from typing import Any

import aiohttp
from aiohttp import web

from tests.kubernetes.api import kinds, patch, schema
from tests.kubernetes.api.access import Access
from tests.kubernetes.api.admission import admit
from tests.kubernetes.api.kinds import Kind, Target, custom_kinds, parse_path
from tests.kubernetes.api.select import by_fields, by_labels
from tests.kubernetes.api.status import ApiFailure, not_found
from tests.kubernetes.api.store import Key, Object, Store, runs_on_node

LogSource = Callable[[web.Request, Target, Object], Any]
_BOOKMARK_S = 1.0
_TRUE = ("true", "True", "1")


class ApiServer:
    """A Kubernetes API on loopback.

    :param logs: answers ``pods/log``; the kubelet sets it.
    """

    def __init__(self, port: int) -> None:
        self.port = port
        self.store = Store()
        self.access = Access()
        self.logs: LogSource | None = None
        self.requests: list[str] = []
        self._runner: web.AppRunner | None = None
        self._up = False
        for name in ("default", "tests", "other"):
            self.store.add(
                ("", "namespaces", "", name),
                {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}},
            )

    async def start(self) -> None:
        """Listen."""
        app = web.Application(client_max_size=4 << 20)
        app.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1, access_log=None)  # 0 would be no limit
        await self._runner.setup()
        self._up = True
        await web.TCPSite(self._runner, "127.0.0.1", self.port).start()

    async def stop(self) -> None:
        """End every connection and listen no more; a later start goes on with the same objects."""
        self._up = False
        self.store.wake()
        if self._runner:
            await self._runner.cleanup()
        self.store.forget_history()

    @property
    def kinds(self) -> list[Kind]:
        """Built in and defined ones."""
        defined = [
            kind
            for key, found in self.store.objects.items()
            if key[1] == "customresourcedefinitions"
            for kind in custom_kinds(found)
        ]
        return [*kinds.BUILT_IN, *defined]

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(f"{request.method} {request.path_qs}")
        if request.path in {"/version", "/version/"}:
            return web.json_response({"major": "1", "minor": "36", "gitVersion": "v1.36.0"})
        try:
            return await self._answer(request)
        except ApiFailure as failure:
            return web.json_response(failure.body, status=failure.code)

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        target = parse_path(request.path, self.kinds)
        watching = request.query.get("watch") in _TRUE
        token = request.headers.get("Authorization", "").removeprefix("Bearer ") or None
        self.access.require(token, _verb(request.method, target, watching), target)
        if request.method == "GET":
            return await self._read(request, target, watching)
        text = await request.text()
        body: Object = json.loads(text) if text else {}
        if request.method == "POST":
            return self._create(request, target, body)
        if request.method == "DELETE":
            return self._delete(request, target, body)
        return self._change(request, target, body)

    async def _read(self, request: web.Request, target: Target, watching: bool) -> web.StreamResponse:
        if target.name and not watching:
            found = self.store.find(target.key)
            if target.part == "log":
                assert self.logs is not None, "no kubelet runs"
                answer: web.StreamResponse = await self.logs(request, target, found)
                return answer
            return web.json_response(found)
        matches = _matcher(request, target)
        if watching:
            return await self._watch(request, matches)
        items = [copy.deepcopy(o) for key, o in sorted(self.store.objects.items()) if matches(key, o)]
        return web.json_response(
            {
                "kind": f"{target.kind.name}List",
                "apiVersion": target.kind.api_version,
                "metadata": {"resourceVersion": str(self.store.version)},
                "items": items,
            }
        )

    async def _watch(
        self, request: web.Request, matches: Callable[[Key, Object], bool]
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        since = request.query.get("resourceVersion") or "0"
        if since == "0":
            since = str(self.store.version)
            for key, found in sorted(self.store.objects.items()):
                if matches(key, found):
                    await _tell(response, "ADDED", found)
        seconds = float(request.query.get("timeoutSeconds") or 300)
        bookmarks = request.query.get("allowWatchBookmarks") in _TRUE
        sending = asyncio.ensure_future(self._send_changes(response, int(since), matches))
        telling = asyncio.ensure_future(self._send_bookmarks(response)) if bookmarks else None
        try:
            await asyncio.wait_for(sending, seconds)
        except (asyncio.TimeoutError, ConnectionError, aiohttp.ClientError):
            pass
        except ApiFailure as failure:
            await _tell(response, "ERROR", failure.body)
        finally:
            if telling:
                telling.cancel()
        return response

    async def _send_changes(
        self, response: web.StreamResponse, since: int, matches: Callable[[Key, Object], bool]
    ) -> None:
        async for kind, found in self.store.changes(since, matches, lambda: not self._up):
            await _tell(response, kind, found)

    async def _send_bookmarks(self, response: web.StreamResponse) -> None:
        while True:
            await asyncio.sleep(_BOOKMARK_S)
            version = {"metadata": {"resourceVersion": str(self.store.version)}}
            await _tell(response, "BOOKMARK", {"kind": "Pod", "apiVersion": "v1", **version})

    def _create(self, request: web.Request, target: Target, body: Object) -> web.Response:
        meta = body.setdefault("metadata", {})
        if target.kind.namespaced:
            if meta.setdefault("namespace", target.namespace) != target.namespace:
                raise ApiFailure(400, "BadRequest", "the namespace of the object does not match the request")
            if ("", "namespaces", "", target.namespace) not in self.store.objects:
                raise not_found("namespaces", target.namespace)
        if not meta.get("name") and meta.get("generateName"):
            letters = random.choices(string.ascii_lowercase + string.digits, k=5)
            meta["name"] = meta["generateName"] + "".join(letters)
        schema.check(target.kind, body)
        admit(self.store, target.kind, body)
        key = (*target.key[:3], meta["name"])
        if request.query.get("dryRun"):
            return web.json_response(body, status=201)
        return web.json_response(self.store.add(key, body), status=201)

    def _change(self, request: web.Request, target: Target, body: Object) -> web.Response:
        old = self.store.find(target.key)
        if request.method == "PUT":
            new = copy.deepcopy(body)
        elif request.content_type == "application/strategic-merge-patch+json":
            if not target.kind.model:
                raise ApiFailure(415, "UnsupportedMediaType", "strategic merge patch of a custom resource")
            new = copy.deepcopy(patch.strategic_merge(old, body))
        elif request.content_type == "application/merge-patch+json":
            new = copy.deepcopy(patch.merge(old, body))
        else:
            raise ApiFailure(415, "UnsupportedMediaType", f"{request.content_type} is not supported")
        new.setdefault("apiVersion", old["apiVersion"])
        new.setdefault("kind", old["kind"])
        if target.part == "status":
            new = {**copy.deepcopy(old), "metadata": new["metadata"], "status": new.get("status")}
        elif target.kind.has_status and "status" in old:
            new["status"] = copy.deepcopy(old["status"])
        elif target.kind.has_status:
            new.pop("status", None)
        schema.check(target.kind, new)
        return web.json_response(self.store.change(target.key, new))

    def _delete(self, request: web.Request, target: Target, body: Object) -> web.Response:
        if not target.name:
            raise ApiFailure(405, "MethodNotAllowed", "deletecollection is not needed here")
        options = dict(body)
        if "gracePeriodSeconds" in request.query:
            options["gracePeriodSeconds"] = int(request.query["gracePeriodSeconds"])
        found = self.store.find(target.key)
        gone = self.store.delete(target.key, options, runs_on_node=runs_on_node(target.key, found))
        return web.json_response(gone)


def _verb(method: str, target: Target, watching: bool) -> str:
    if method == "GET":
        return "watch" if watching else "get" if target.name else "list"
    return {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}[method]


def _matcher(request: web.Request, target: Target) -> Callable[[Key, Object], bool]:
    labels = by_labels(request.query.get("labelSelector"))
    fields = by_fields(request.query.get("fieldSelector"))
    group, plural, namespace, _ = target.key

    def matches(key: Key, found: Object) -> bool:
        here = key[:2] == (group, plural) and namespace in {"", key[2]}
        return here and labels(found) and fields(found)

    return matches


async def _tell(response: web.StreamResponse, kind: str, found: Object) -> None:
    await response.write(json.dumps({"type": kind, "object": found}).encode() + b"\n")
