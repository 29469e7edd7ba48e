"""Events about pods, counted where they repeat."""

from __future__ import annotations

from tests.loopback_cluster.api.store import now
from tests.loopback_cluster.kubelet.client import ApiClient, Object


class Recorder:
    """Records events for one component.

    :param component: who tells, such as ``kubelet``.
    """

    def __init__(self, api: ApiClient, component: str, host: str = "") -> None:
        self._api = api
        self._source = {"component": component, **({"host": host} if host else {})}
        self._known: dict[tuple[str, str, str], Object] = {}

    async def tell(self, pod: Object, reason: str, message: str, kind: str = "Warning") -> None:
        """Record an event; one that was told before is counted."""
        meta = pod["metadata"]
        path = f"/api/v1/namespaces/{meta['namespace']}/events"
        key = (meta["uid"], reason, message)
        known = self._known.get(key)
        if known is not None:
            known["count"] += 1
            change = {"count": known["count"], "lastTimestamp": now()}
            await self._api.ask("PATCH", f"{path}/{known['metadata']['name']}", change)
            return
        about = {"apiVersion": "v1", "kind": "Pod", "name": meta["name"], "namespace": meta["namespace"]}
        made = await self._api.ask(
            "POST",
            path,
            {
                "apiVersion": "v1",
                "kind": "Event",
                "metadata": {"generateName": f"{meta['name']}."},
                "type": kind,
                "reason": reason,
                "message": message,
                "count": 1,
                "firstTimestamp": now(),
                "lastTimestamp": now(),
                "involvedObject": {**about, "uid": meta["uid"]},
                "source": self._source,
                "reportingComponent": self._source["component"],
                "reportingInstance": self._source.get("host", ""),
            },
        )
        if made is not None:
            self._known[key] = made
