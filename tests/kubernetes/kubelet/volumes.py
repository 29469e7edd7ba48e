"""Volumes as folders, and the environment of a container."""

from __future__ import annotations

import base64
import re
from pathlib import Path
from typing import Any

from tests.kubernetes.kubelet.client import ApiClient, Object

_VARIABLE = re.compile(r"\$\$|\$\(([A-Za-z_][A-Za-z0-9_.-]*)\)")
_ANNOTATION = re.compile(r"metadata\.(labels|annotations)\['(.+)'\]")


class MissingError(Exception):
    """An object that the pod refers to is not there."""


class PodFolder:
    """The files of one pod.

    :param root: folder of this pod.
    :param shared: folder of what outlives it (claims).
    """

    def __init__(self, api: ApiClient, pod: Object, root: Path, shared: Path) -> None:
        self._api = api
        self._pod = pod
        self._root = root
        self._shared = shared
        self._folders: dict[str, Path | None] = {}

    async def make_volumes(self) -> None:
        """Make every volume. Raises :class:`MissingError`."""
        for volume in self._pod["spec"].get("volumes") or ():
            self._folders[volume["name"]] = await self._make(volume)

    async def _make(self, volume: Object) -> Path | None:
        if "hostPath" in volume:
            return Path(volume["hostPath"]["path"])
        if "persistentVolumeClaim" in volume:
            folder = self._shared / volume["persistentVolumeClaim"]["claimName"]
        elif (volume.get("emptyDir") or {}).get("medium") == "Memory":
            return None  # shared memory is the machine's
        else:
            folder = self._root / "volumes" / volume["name"]
        folder.mkdir(parents=True, exist_ok=True)
        for kind, reference in (("secrets", "secretName"), ("configmaps", "name")):
            source = volume.get("secret" if kind == "secrets" else "configMap")
            if source:
                data = await self._data(kind, source[reference])
                for key, content in data.items():
                    path = folder / key
                    path.write_bytes(content)
                    path.chmod(0o400)
        return folder

    def placed(self, container: Object, text: str) -> str:
        """``text`` with every mount path of the container replaced by the volume's folder."""
        mounts = sorted(container.get("volumeMounts") or (), key=lambda mount: -len(mount["mountPath"]))
        for mount in mounts:
            folder = self._folders.get(mount["name"])
            if folder is not None:
                inside = folder / mount["subPath"] if mount.get("subPath") else folder
                text = re.sub(rf"(?<![\w/]){re.escape(mount['mountPath'])}(?=/|$|\W)", str(inside), text)
        return text

    async def environment(self, container: Object, base: dict[str, str]) -> dict[str, str]:
        """The container's variables. Raises :class:`MissingError`."""
        env = dict(base) | {"HOSTNAME": self._pod["metadata"]["name"]}
        for source in container.get("envFrom") or ():
            for field, kind in (("configMapRef", "configmaps"), ("secretRef", "secrets")):
                if field in source:
                    data = await self._data(kind, source[field]["name"])
                    env |= {key: content.decode() for key, content in data.items()}
        for variable in container.get("env") or ():
            value = await self._value(variable, env)
            env[variable["name"]] = self.placed(container, value)
        return env

    async def _value(self, variable: Object, env: dict[str, str]) -> str:
        source: Object = variable.get("valueFrom") or {}
        for field, kind in (("configMapKeyRef", "configmaps"), ("secretKeyRef", "secrets")):
            if field in source:
                data = await self._data(kind, source[field]["name"])
                key = source[field]["key"]
                if key not in data:
                    raise MissingError(f"couldn't find key {key} in {kind[:-1]} {source[field]['name']}")
                return data[key].decode()
        if "fieldRef" in source:
            return self._field(source["fieldRef"]["fieldPath"])
        return expand(variable.get("value") or "", env)

    def _field(self, path: str) -> str:
        if match := _ANNOTATION.fullmatch(path):
            return str((self._pod["metadata"].get(match[1]) or {}).get(match[2], ""))
        if path in {"status.podIP", "status.hostIP"}:
            return "127.0.0.1"
        here: Any = self._pod
        for word in path.split("."):
            here = here[word]
        return str(here)

    async def _data(self, kind: str, name: str) -> dict[str, bytes]:
        found = await self._api.ask(
            "GET", f"/api/v1/namespaces/{self._pod['metadata']['namespace']}/{kind}/{name}"
        )
        if found is None:
            raise MissingError(f'{kind[:-1]} "{name}" not found')
        data = found.get("data") or {}
        if kind == "secrets":
            return {key: base64.b64decode(text) for key, text in data.items()}
        return {key: text.encode() for key, text in data.items()}


def expand(text: str, env: dict[str, str]) -> str:
    """``$(NAME)`` as Kubernetes expands it; an unknown one stays as it is."""
    return _VARIABLE.sub(lambda m: "$" if m[0] == "$$" else env.get(m[1], m[0]), text)
