"""What a pod refers to: Secrets, ConfigMaps, its own fields and resources; and its environment."""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from tests.loopback_cluster.api.values import amount
from tests.loopback_cluster.kubelet.client import ApiClient, Object

_VARIABLE = re.compile(r"\$\$|\$\(([-._a-zA-Z][-._a-zA-Z0-9]*)\)")
_ENTRY = re.compile(r"metadata\.(labels|annotations)\['(.+)'\]")
_PLURALS = {"secret": "secrets", "configMap": "configmaps"}
_OWN_ADDRESS = "127.0.0.1"


class MissingError(Exception):
    """An object that the pod refers to is not there."""


class References:
    """Looks up what one pod refers to."""

    def __init__(self, api: ApiClient, pod: Object) -> None:
        self._api = api
        self._pod = pod
        self._namespace: str = pod["metadata"]["namespace"]

    async def data(self, kind: str, name: str, *, optional: bool = False) -> dict[str, bytes]:
        """The entries of a ``secret`` or ``configMap``. Raises :class:`MissingError`."""
        path = f"/api/v1/namespaces/{self._namespace}/{_PLURALS[kind]}/{name}"
        found = await self._api.ask("GET", path)
        if found is None:
            if optional:
                return {}
            raise MissingError(f'{kind.lower()} "{name}" not found')
        data = found.get("data") or {}
        if kind == "secret":
            return {key: base64.b64decode(text) for key, text in data.items()}
        binary = {key: base64.b64decode(text) for key, text in (found.get("binaryData") or {}).items()}
        return binary | {key: text.encode() for key, text in data.items()}

    def field(self, path: str) -> str:
        """A field of the pod, as the downward API gives it."""
        if match := _ENTRY.fullmatch(path):
            return str((self._pod["metadata"].get(match[1]) or {}).get(match[2], ""))
        if path in {"status.podIP", "status.hostIP", "status.podIPs", "status.hostIPs"}:
            return _OWN_ADDRESS
        here: Any = self._pod
        for word in path.split("."):
            here = here[word]
        return str(here)

    def resource(self, reference: Object, container: Object) -> str:
        """A container's limit or request in units of the divisor, rounded up."""
        named = reference.get("containerName")
        holder = next((c for c in self._pod["spec"]["containers"] if c["name"] == named), container)
        kind, _, name = reference["resource"].partition(".")
        found = amount((holder.get("resources", {}).get(kind) or {}).get(name, "0"))
        return str(math.ceil(found / (amount(reference.get("divisor") or "1") or 1)))

    async def environment(
        self, container: Object, base: Mapping[str, str], placed: Callable[[str], str]
    ) -> dict[str, str]:
        """The container's variables. Raises :class:`MissingError`.

        :param base: what the image and the node set.
        :param placed: puts volumes' folders in the place of mount paths.
        """
        env = dict(base) | {"HOSTNAME": self._pod["metadata"]["name"]}
        if self._pod["spec"].get("enableServiceLinks", True):
            env |= await self._service_links()
        for source in container.get("envFrom") or ():
            for name, kind in (("configMapRef", "configMap"), ("secretRef", "secret")):
                if name in source:
                    wanted = source[name]
                    data = await self.data(kind, wanted["name"], optional=bool(wanted.get("optional")))
                    prefix = source.get("prefix") or ""
                    env |= {prefix + key: placed(content.decode()) for key, content in data.items()}
        for variable in container.get("env") or ():
            value = await self._value(variable, env, container)
            if value is not None:
                env[variable["name"]] = placed(value)
        return env

    async def _service_links(self) -> dict[str, str]:
        """The variables of every Service of the namespace: a Service named ``vllm`` sets ``VLLM_PORT``."""
        listed = await self._api.ask("GET", f"/api/v1/namespaces/{self._namespace}/services")
        env = {}
        for service in (listed or {"items": []})["items"]:
            address = service["spec"].get("clusterIP", "None")
            ports = service["spec"].get("ports") or []
            if address == "None" or not ports:
                continue
            name = service["metadata"]["name"].upper().replace("-", "_")
            first = ports[0]["port"]
            env[f"{name}_SERVICE_HOST"] = address
            env[f"{name}_SERVICE_PORT"] = str(first)
            env[f"{name}_PORT"] = f"tcp://{address}:{first}"
            for port in ports:
                env[f"{name}_PORT_{port['port']}_TCP"] = f"tcp://{address}:{port['port']}"
        return env

    async def _value(self, variable: Object, env: dict[str, str], container: Object) -> str | None:
        source: Object = variable.get("valueFrom") or {}
        for field, kind in (("configMapKeyRef", "configMap"), ("secretKeyRef", "secret")):
            if source.get(field):
                wanted = source[field]
                data = await self.data(kind, wanted["name"], optional=bool(wanted.get("optional")))
                if wanted["key"] in data:
                    return data[wanted["key"]].decode()
                if wanted.get("optional"):
                    return None
                whole = f"{self._namespace}/{wanted['name']}"
                raise MissingError(
                    f"couldn't find key {wanted['key']} in {kind[0].upper()}{kind[1:]} {whole}"
                )
        if source.get("fieldRef"):
            return self.field(source["fieldRef"]["fieldPath"])
        if source.get("resourceFieldRef"):
            return self.resource(source["resourceFieldRef"], container)
        return expand(variable.get("value") or "", env)


def expand(text: str, env: Mapping[str, str]) -> str:
    """``$(NAME)`` as Kubernetes expands it; an unknown one stays as it is."""
    return _VARIABLE.sub(lambda m: "$" if m[0] == "$$" else env.get(m[1], m[0]), text)
