"""One pod on this kubelet, from its first volume to its last status."""

from __future__ import annotations

import asyncio
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from tests.kubernetes.api.store import now
from tests.kubernetes.kubelet.client import Object
from tests.kubernetes.kubelet.container import Container
from tests.kubernetes.kubelet.volumes import MissingError, PodFolder, expand

if TYPE_CHECKING:
    from tests.kubernetes.kubelet.kubelet import Kubelet

_IMAGE = re.compile(r"[a-z0-9]([a-z0-9._/:@-]*[A-Za-z0-9])?")
_FIRST_BACK_OFF_S = 0.5  # the real one's is 10 s
_RETRY_S = 0.5


class PodWorker:
    """Runs a pod that is bound to the kubelet's node."""

    def __init__(self, kubelet: Kubelet, pod: Object) -> None:
        self.kubelet = kubelet
        self.pod = pod
        self.uid: str = pod["metadata"]["uid"]
        self._over = False
        self.reason: str | None = None
        self.message = ""
        self.ending = asyncio.Event()
        self._root: Path = kubelet.root / self.uid
        self._root.mkdir()
        self._dirty = asyncio.Event()
        self._began = now()
        spec = pod["spec"]
        self.init = [Container(c, self._root, self._dirty.set) for c in spec.get("initContainers") or ()]
        self.main = [Container(c, self._root, self._dirty.set) for c in spec["containers"]]
        self._folder = PodFolder(kubelet.api, pod, self._root, kubelet.root / "claims")

    @property
    def path(self) -> str:
        """The pod's path in the API."""
        meta = self.pod["metadata"]
        return f"/api/v1/namespaces/{meta['namespace']}/pods/{meta['name']}"

    @property
    def phase(self) -> str:
        """As the real kubelet reads it off the containers."""
        if self._over:
            bad = self.reason or any(c.exit_code != 0 for c in [*self.init, *self.main])
            return "Failed" if bad else "Succeeded"
        waiting = any("waiting" in c.state and not c.last_state for c in self.main)
        return "Pending" if waiting or any(c.exit_code != 0 for c in self.init) else "Running"

    async def run(self) -> None:
        """Until the pod is deleted."""
        telling = asyncio.create_task(self._tell_changes())
        body = asyncio.create_task(self._run_containers())
        ending = asyncio.create_task(self.ending.wait())
        limit = self.pod["spec"].get("activeDeadlineSeconds")
        done, _ = await asyncio.wait({body, ending}, timeout=limit, return_when=asyncio.FIRST_COMPLETED)
        if not done:
            self.end("DeadlineExceeded", "Pod was active on the node longer than the specified deadline")
        if not body.done():
            await self._stop()
            await body
        self._over = True
        telling.cancel()
        await self._tell()
        while not self.pod["metadata"].get("deletionTimestamp"):
            await self.kubelet.changed(self.uid)
        ending.cancel()
        options: Object = {"gracePeriodSeconds": 0, "preconditions": {"uid": self.uid}}
        await self.kubelet.api.ask("DELETE", self.path, options)
        shutil.rmtree(self._root, ignore_errors=True)

    def end(self, reason: str, message: str) -> None:
        """End it for a reason of the node's own, such as an eviction."""
        self.reason, self.message = reason, message
        self.ending.set()

    def kill(self) -> None:
        """SIGKILL to everything."""
        for container in [*self.init, *self.main]:
            container.kill()

    def container(self, name: str | None) -> Container:
        """The container of that name, or the first."""
        everyone = [*self.main, *self.init]
        return next((c for c in everyone if c.name == name), everyone[0])

    async def _stop(self) -> None:
        meta = self.pod["metadata"]
        grace = meta.get("deletionGracePeriodSeconds")
        seconds = self.pod["spec"]["terminationGracePeriodSeconds"] if grace is None else grace
        await asyncio.gather(*(c.stop(seconds) for c in [*self.init, *self.main]))

    async def _run_containers(self) -> None:
        while not await self._volumes_are_made():
            if await self._ends_within(_RETRY_S):
                return
        policy = self.pod["spec"]["restartPolicy"]
        for container in self.init:
            # Init containers that end well are not run again, whatever the pod's policy.
            if await self._run(container, "Never" if policy == "Never" else "OnFailure"):
                return
        await asyncio.gather(*(self._run(c, policy) for c in self.main))

    async def _volumes_are_made(self) -> bool:
        try:
            await self._folder.make_volumes()
        except MissingError as missing:
            await self.kubelet.event(self.pod, "FailedMount", f"MountVolume.SetUp failed: {missing}")
            return False
        return True

    async def _run(self, container: Container, policy: str) -> int:
        back_off = _FIRST_BACK_OFF_S
        while not self.ending.is_set():
            prepared = await self._prepare(container)
            if prepared is None:
                if await self._ends_within(_RETRY_S):
                    break
                continue
            code = await container.run(*prepared)
            if self.ending.is_set() or policy == "Never" or (policy == "OnFailure" and code == 0):
                return code
            container.last_state = container.state
            name = f"{container.name} pod={self.pod['metadata']['name']}"
            container.wait_for(
                "CrashLoopBackOff", f"back-off {back_off:g}s restarting failed container={name}"
            )
            container.restarts += 1
            if await self._ends_within(back_off):
                break
            back_off *= 2
        return container.exit_code if container.exit_code is not None else 137

    async def _prepare(self, container: Container) -> tuple[list[str], dict[str, str]] | None:
        """Command and environment; None, with the reason told, where one cannot be made yet."""
        image = container.spec["image"]
        if not _IMAGE.fullmatch(image):
            container.wait_for("InvalidImageName", f'Failed to apply default image tag "{image}"')
            return None
        if image not in self.kubelet.images:
            said = f'Back-off pulling image "{image}"'
            refused = f'failed to resolve reference "{image}": pull access denied or not found'
            first = container.state.get("waiting", {}).get("reason") == "ContainerCreating"
            container.wait_for("ErrImagePull" if first else "ImagePullBackOff", refused if first else said)
            await self.kubelet.event(self.pod, "Failed", f'Failed to pull image "{image}": {refused}')
            return None
        try:
            env = await self._folder.environment(container.spec, self.kubelet.images[image])
        except MissingError as missing:
            container.wait_for("CreateContainerConfigError", str(missing))
            await self.kubelet.event(self.pod, "Failed", f"Error: {missing}")
            return None
        words = [*(container.spec.get("command") or ()), *(container.spec.get("args") or ())]
        argv = [self._folder.placed(container.spec, expand(word, env)) for word in words]
        found = shutil.which(argv[0], path=env.get("PATH"))
        return [found or argv[0], *argv[1:]], env

    async def _ends_within(self, seconds: float) -> bool:
        try:
            await asyncio.wait_for(self.ending.wait(), seconds)
        except asyncio.TimeoutError:
            return False
        return True

    async def _tell_changes(self) -> None:
        while True:
            await self._tell()
            await self._dirty.wait()
            self._dirty.clear()

    async def _tell(self) -> None:
        if self.kubelet.lost:
            return
        ready = self.phase == "Running" and all(c.ready for c in self.main)
        initialized = all(c.exit_code == 0 for c in self.init)
        conditions = [
            {"type": kind, "status": "True" if holds else "False", "lastTransitionTime": now()}
            for kind, holds in (
                ("PodScheduled", True),
                ("Initialized", initialized),
                ("ContainersReady", ready),
                ("Ready", ready),
            )
        ]
        status: Object = {
            "phase": self.phase,
            "conditions": conditions,
            "hostIP": "127.0.0.1",
            "podIP": "127.0.0.1",
            "podIPs": [{"ip": "127.0.0.1"}],
            "startTime": self._began,
            "initContainerStatuses": [c.status() for c in self.init],
            "containerStatuses": [c.status() for c in self.main],
        }
        if self.reason:
            status |= {"reason": self.reason, "message": self.message}
        await self.kubelet.api.ask(
            "PATCH", f"{self.path}/status", {"metadata": {"uid": self.uid}, "status": status}
        )
