"""The HTTP side: REST verbs, dry runs, bindings; stops and starts with its state kept."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import json
import random
import re
import string
from collections.abc import Callable
from functools import partial
from typing import Any

from aiohttp import web

from tests.loopback_cluster.api import collector, kinds, patch, schema
from tests.loopback_cluster.api.access import Access
from tests.loopback_cluster.api.admission import Admission
from tests.loopback_cluster.api.kinds import Kind, Target, custom_kinds, parse_path
from tests.loopback_cluster.api.pod_rules import require_pod_update
from tests.loopback_cluster.api.select import by_fields, by_labels
from tests.loopback_cluster.api.status import ApiFailure, invalid, not_found, not_found_path
from tests.loopback_cluster.api.store import Key, Object, Store
from tests.loopback_cluster.api.watching import Watch

LogSource = Callable[[web.Request, Target, Object], Any]
_TRUE = ("true", "True", "1")
_GENERATED = string.ascii_lowercase + string.digits
_RETURNED_WHEN_DELETED = {"pods", "services", "persistentvolumeclaims", "serviceaccounts"}
_LONGEST_PREFIX = 58  # of a generated name, so that five letters still fit


class ApiServer:
    """A Kubernetes API on loopback.

    :param logs: answers ``pods/log``; the kubelet sets it.
    :ivar field_validation: what happens to unknown fields of requests that do not say it themselves:
        ``Warn``, as real servers have it, and ``Ignore`` drop them (without a warning here); ``Strict``
        refuses them.
    """

    def __init__(self, port: int) -> None:
        self.port = port
        self.store = Store()
        self.access = Access()
        self.admission = Admission(self.store)
        self.logs: LogSource | None = None
        self.field_validation = "Warn"
        self.requests: list[str] = []
        self._runner: web.AppRunner | None = None
        self._collecting: asyncio.Task[None] | None = None
        self._up = False
        for name in ("default", "tests", "other"):
            self.admission.make_namespace(name)

    async def start(self) -> None:
        """Listen."""
        app = web.Application(client_max_size=4 << 20)
        app.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1, access_log=None)  # 0 would be no limit
        await self._runner.setup()
        self._up = True
        self._collecting = asyncio.create_task(collector.run(self.store))
        await web.TCPSite(self._runner, "127.0.0.1", self.port).start()

    async def stop(self) -> None:
        """End every connection and listen no more; a later start goes on with the same objects."""
        self._up = False
        self.store.wake()
        if self._collecting:
            self._collecting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._collecting
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
            return _json({"major": "1", "minor": "36", "gitVersion": "v1.36.0"})
        if request.path in {"/healthz", "/livez", "/readyz"}:
            return web.Response(text="ok")
        try:
            if request.path == "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews":
                return await self._review(request)
            if request.method == "GET" and (group := re.fullmatch(r"/apis/([^/]+/[^/]+)", request.path)):
                return self._resources(group[1])
            return await self._answer(request)
        except ApiFailure as failure:
            return _json(failure.body, status=failure.code)

    async def _review(self, request: web.Request) -> web.Response:
        """SelfSubjectAccessReview: every authenticated user may ask what it may do."""
        body = await request.json()
        asked = body["spec"]["resourceAttributes"]
        token = request.headers.get("Authorization", "").removeprefix("Bearer ") or None
        kind = Kind(asked["group"], "v1", asked["resource"], asked["resource"])
        target = Target(kind, asked["namespace"], asked.get("name"), asked.get("subresource") or None)
        allowed = self.access.allows(token, asked["verb"], target)
        return web.json_response({**body, "status": {"allowed": allowed}}, status=201)

    def _resources(self, group_version: str) -> web.Response:
        """Discovery of one group and version."""
        found = [kind for kind in self.kinds if kind.api_version == group_version]
        if not found:
            raise not_found_path()
        resources = [{"name": k.plural, "kind": k.name, "namespaced": k.namespaced} for k in found]
        return web.json_response(
            {"kind": "APIResourceList", "groupVersion": group_version, "resources": resources}
        )

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        target = parse_path(request.path, self.kinds)
        watching = request.query.get("watch") in _TRUE
        token = request.headers.get("Authorization", "").removeprefix("Bearer ") or None
        self.access.require(token, _verb(request.method, target, watching), target)
        if request.method == "GET":
            return await self._read(request, target, watching)
        text = await request.text()
        try:
            body: Object = json.loads(text) if text else {}
        except ValueError as error:
            raise ApiFailure(400, "BadRequest", f"the request body is not JSON: {error}") from error
        if request.method == "POST" and target.part == "binding":
            return self._bind(target, body)
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
            return _json(found)
        matches = _matcher(request, target)
        if watching:
            return await Watch(self.store, target.kind, matches, lambda: not self._up).serve(request)
        items = [copy.deepcopy(o) for key, o in sorted(self.store.objects.items()) if matches(key, o)]
        return _json(
            {
                "kind": f"{target.kind.name}List",
                "apiVersion": target.kind.api_version,
                "metadata": {"resourceVersion": str(self.store.version)},
                "items": items,
            }
        )

    def _create(self, request: web.Request, target: Target, body: Object) -> web.Response:
        meta = body.setdefault("metadata", {})
        if meta.get("resourceVersion"):
            raise ApiFailure(
                500, "InternalError", "resourceVersion should not be set on objects to be created"
            )
        if target.kind.namespaced:
            self._place(target, meta)
        if not meta.get("name") and meta.get("generateName"):
            letters = random.choices(_GENERATED, k=5)
            meta["name"] = meta["generateName"][:_LONGEST_PREFIX] + "".join(letters)
        self._check(request, target.kind, body)
        self.admission.admit(target.kind, body)
        key = (*target.key[:3], meta["name"])
        if request.query.get("dryRun"):
            if key in self.store.objects:
                raise ApiFailure(409, "AlreadyExists", f'{key[1]} "{key[3]}" already exists')
            return _json(body, status=201)
        if target.kind.plural == "namespaces":
            return _json(self.admission.make_namespace(meta["name"], meta.get("labels") or {}), status=201)
        return _json(self.store.add(key, body), status=201)

    def _place(self, target: Target, meta: Object) -> None:
        if meta.setdefault("namespace", target.namespace) != target.namespace:
            why = "the namespace of the provided object does not match the namespace sent on the request"
            raise ApiFailure(400, "BadRequest", why)
        space = self.store.objects.get(("", "namespaces", "", target.namespace))
        if space is None:
            raise not_found("namespaces", target.namespace)
        if space["metadata"].get("deletionTimestamp"):
            what = f'{target.kind.plural} "{meta.get("name", "")}" is forbidden'
            why = f"unable to create new content in namespace {target.namespace}"
            raise ApiFailure(403, "Forbidden", f"{what}: {why} because it is being terminated")

    def _check(self, request: web.Request, kind: Kind, body: Object) -> None:
        asked = request.query.get("fieldValidation") or self.field_validation
        schema.check(kind, body, strict=asked == "Strict")

    def _change(self, request: web.Request, target: Target, body: Object) -> web.Response:
        old = self.store.find(target.key)
        new = self._changed(request, target, old, body)
        new.setdefault("apiVersion", old["apiVersion"])
        new.setdefault("kind", old["kind"])
        name = new.setdefault("metadata", {}).setdefault("name", target.name)
        if name != target.name:
            why = f"the name of the object ({name}) does not match the name on the URL ({target.name})"
            raise ApiFailure(400, "BadRequest", why)
        if target.part == "status":
            new = {**copy.deepcopy(old), "metadata": new["metadata"], "status": new.get("status")}
        elif target.kind.has_status and "status" in old:
            new["status"] = copy.deepcopy(old["status"])
        elif target.kind.has_status:
            new.pop("status", None)
        self._check(request, target.kind, new)
        self.admission.complete(target.kind, new)
        if target.kind.plural == "pods" and target.part is None:
            require_pod_update(old, new)
        if request.query.get("dryRun"):
            return _json(new)
        return _json(self.store.change(target.key, new))

    def _changed(self, request: web.Request, target: Target, old: Object, body: Any) -> Object:
        """The object as the request wants it."""
        if request.method == "PUT":
            if not target.kind.blind_update and not body.get("metadata", {}).get("resourceVersion"):
                why = "metadata.resourceVersion: Invalid value: 0x0: must be specified for an update"
                raise invalid(target.kind.name, str(target.name), why)
            new = copy.deepcopy(body)
        elif request.content_type == "application/json-patch+json":
            new = patch.json_patch(old, body)
        elif request.content_type == "application/merge-patch+json":
            new = copy.deepcopy(patch.merge(old, body))
        elif request.content_type == "application/strategic-merge-patch+json" and target.kind.model:
            new = copy.deepcopy(patch.strategic_merge(old, body))
        else:
            why = f"the body of the request was in an unknown format: {request.content_type}"
            raise ApiFailure(415, "UnsupportedMediaType", why)
        result: Object = new
        return result

    def _bind(self, target: Target, body: Object) -> web.Response:
        """What a scheduler does."""
        pod = copy.deepcopy(self.store.find(target.key))
        if pod["spec"].get("nodeName") or pod["metadata"].get("deletionTimestamp"):
            raise ApiFailure(409, "Conflict", f"pod {target.name} is already assigned or being deleted")
        pod["spec"]["nodeName"] = body["target"]["name"]
        self.store.change(target.key, pod)
        return _json({"kind": "Status", "apiVersion": "v1", "status": "Success"}, status=201)

    def _delete(self, request: web.Request, target: Target, body: Object) -> web.Response:
        options = dict(body)
        if "gracePeriodSeconds" in request.query:
            options["gracePeriodSeconds"] = int(request.query["gracePeriodSeconds"])
        if "propagationPolicy" in request.query:
            options["propagationPolicy"] = request.query["propagationPolicy"]
        if target.key[:2] == ("", "namespaces") and target.name:
            return _json(collector.terminate(self.store, target.key))
        if target.name:
            found = self.store.delete(target.key, options)
            if target.key in self.store.objects or target.kind.plural in _RETURNED_WHEN_DELETED:
                return _json(found)
            details = {"name": target.name, "kind": target.kind.plural, "uid": found["metadata"]["uid"]}
            status = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"}
            return _json({**status, "details": {**details, "group": target.kind.group}})
        matches = _matcher(request, target)
        gone = [key for key, found in self.store.objects.items() if matches(key, found)]
        items = [self.store.delete(key, options) for key in gone]
        return _json({"kind": f"{target.kind.name}List", "apiVersion": "v1", "items": items})


def _json(body: Any, status: int = 200) -> web.Response:
    """As a real server writes it: without spaces."""
    return web.json_response(body, status=status, dumps=partial(json.dumps, separators=(",", ":")))


def _verb(method: str, target: Target, watching: bool) -> str:
    if method == "GET":
        return "watch" if watching else "get" if target.name else "list"
    if method == "DELETE":
        return "delete" if target.name else "deletecollection"
    return {"POST": "create", "PUT": "update", "PATCH": "patch"}[method]


def _matcher(request: web.Request, target: Target) -> Callable[[Key, Object], bool]:
    labels = by_labels(request.query.get("labelSelector"))
    fields = by_fields(request.query.get("fieldSelector"))
    group, plural, namespace, _ = target.key

    def matches(key: Key, found: Object) -> bool:
        here = key[:2] == (group, plural) and namespace in {"", key[2]}
        return here and labels(found) and fields(found)

    return matches
