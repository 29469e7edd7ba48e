"""Volumes as folders, and where a container finds them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

from tests.loopback_cluster.kubelet.client import Object
from tests.loopback_cluster.kubelet.images import Image
from tests.loopback_cluster.kubelet.references import MissingError, References

_PLAIN = {"emptyDir", "ephemeral"}
_SHARED_MEMORY = "/dev/shm"
_TOKEN = "token-of-the-loopback"


class PodFolder:
    """The files of one pod.

    :param root: folder of this pod.
    :param claims: folder of the namespace's claims, which outlive pods.
    """

    def __init__(
        self, references: References, pod: Object, root: Path, claims: Path, images: Mapping[str, Image]
    ) -> None:
        self._references = references
        self._pod = pod
        self._root = root
        self._claims = claims
        self._images = images
        self._folders: dict[str, Path] = {}

    async def make_volumes(self) -> None:
        """Make every volume. Raises :class:`MissingError`."""
        for volume in self._pod["spec"].get("volumes") or ():
            try:
                self._folders[volume["name"]] = await self._make(volume)
            except MissingError as error:
                raise MissingError(
                    f'MountVolume.SetUp failed for volume "{volume["name"]}" : {error}'
                ) from None

    async def _make(self, volume: Object) -> Path:
        if "hostPath" in volume:
            return _on_host(volume["hostPath"])
        if "persistentVolumeClaim" in volume:
            claim: str = volume["persistentVolumeClaim"]["claimName"]
            folder = self._claims / claim
            folder.mkdir(parents=True, exist_ok=True)
            return folder
        if "image" in volume:
            image = self._images.get(volume["image"]["reference"])
            files = image.files if image else None
            if files is None:
                raise MissingError(f'failed to pull image "{volume["image"]["reference"]}": not found')
            return files
        name: str = volume["name"]
        folder = self._root / "volumes" / name
        folder.mkdir(parents=True, exist_ok=True)
        if not _PLAIN & set(volume):
            await self._fill(folder, volume)
        return folder

    async def _fill(self, folder: Path, volume: Object) -> None:
        projected = volume.get("projected")
        mode = 0o644
        for source in (projected or {}).get("sources") or [volume]:
            given = next(value for key, value in source.items() if key != "name")
            mode = (projected or given).get("defaultMode") or mode
            for path, content in (await self._files(source)).items():
                file = folder / path
                file.parent.mkdir(parents=True, exist_ok=True)
                file.unlink(missing_ok=True)
                file.write_bytes(content)
                file.chmod(mode)

    async def _files(self, source: Object) -> dict[str, bytes]:
        """Path → content of one source of a projected volume, or of a volume of that kind."""
        if "serviceAccountToken" in source:
            return {source["serviceAccountToken"]["path"]: _TOKEN.encode()}
        if "downwardAPI" in source:
            items = source["downwardAPI"].get("items") or ()
            return {item["path"]: self._downward(item).encode() for item in items}
        kind = "secret" if "secret" in source else "configMap"
        given = source[kind]
        name = given.get("secretName") or given.get("name")
        data = await self._references.data(kind, name, optional=bool(given.get("optional")))
        if not given.get("items"):
            return data
        wanted = {item["key"]: item["path"] for item in given["items"]}
        for key in set(wanted) - set(data):
            if not given.get("optional"):
                raise MissingError(f"references non-existent {kind.lower()} key: {key}")
        return {path: data[key] for key, path in wanted.items() if key in data}

    def _downward(self, item: Object) -> str:
        if "fieldRef" not in item:
            return self._references.resource(item["resourceFieldRef"], self._pod["spec"]["containers"][0])
        path = item["fieldRef"]["fieldPath"]
        if path in {"metadata.labels", "metadata.annotations"}:
            found = self._pod["metadata"].get(path.partition(".")[2]) or {}
            return "\n".join(f"{key}={json.dumps(value)}" for key, value in sorted(found.items()))
        return self._references.field(path)

    def end_message(self, container: Object) -> Path:
        """Where the container may leave its last words."""
        return self._root / f"{container['name']}.termination-log"

    def placed(self, container: Object, text: str) -> str:
        """``text`` with every mount path of the container replaced by the volume's folder."""
        places = {container["terminationMessagePath"]: str(self.end_message(container))}
        for mount in container.get("volumeMounts") or ():
            path = mount["mountPath"].rstrip("/")
            folder = self._folders.get(mount["name"])
            if folder is not None and path not in {"", _SHARED_MEMORY}:
                places[path] = str(folder / (mount.get("subPath") or ""))
        # The longest first: one mount may lie within another.
        paths = "|".join(re.escape(path) for path in sorted(places, key=len, reverse=True))
        return re.sub(rf"(?<![\w/.-])({paths})(?![\w.-])", lambda match: places[match[1]], text)


def _on_host(source: Object) -> Path:
    path = Path(source["path"])
    kind = source.get("type") or ""
    if kind in {"DirectoryOrCreate", ""} and not path.exists():
        path.mkdir(parents=True)
    elif kind == "Directory" and not path.is_dir():
        raise MissingError(f"hostPath type check failed: {path} is not a directory")
    elif kind == "File" and not path.is_file():
        raise MissingError(f"hostPath type check failed: {path} is not a file")
    return path
