"""One pod on this kubelet, from its first volume to its last status."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.loopback_cluster.api.store import now
from tests.loopback_cluster.kubelet import processes
from tests.loopback_cluster.kubelet.client import STRATEGIC_PATCH, Object
from tests.loopback_cluster.kubelet.container import Container, Run
from tests.loopback_cluster.kubelet.images import is_reference
from tests.loopback_cluster.kubelet.references import MissingError, References, expand
from tests.loopback_cluster.kubelet.status import conditions, phase
from tests.loopback_cluster.kubelet.volumes import PodFolder

if TYPE_CHECKING:
    from tests.loopback_cluster.kubelet.kubelet import Kubelet

_FIRST_BACK_OFF_S = 0.5  # the real one's is 10 s, and doubles to 5 min
_LONGEST_BACK_OFF_S = 4.0
_RETRY_S = 0.5


class PodWorker:
    """Runs a pod that is bound to the kubelet's node."""

    def __init__(self, kubelet: Kubelet, pod: Object) -> None:
        self.kubelet = kubelet
        self.pod = pod
        self.uid: str = pod["metadata"]["uid"]
        self.ending = asyncio.Event()
        self.reason: str | None = None
        self._message = ""
        self._over = False
        self._changed = asyncio.Event()
        self._conditions: list[Object] = []
        self._extra: list[Object] = []
        self._began = now()
        self._grace_s: float = pod["spec"]["terminationGracePeriodSeconds"]
        self._root: Path = kubelet.root / self.uid
        self._root.mkdir()
        spec = pod["spec"]
        self.init = [self._container(c) for c in spec.get("initContainers") or ()]
        self.main = [self._container(c) for c in spec["containers"]]
        self._references = References(kubelet.api, pod)
        claims = kubelet.claims(pod["metadata"]["namespace"])
        self._folder = PodFolder(self._references, pod, self._root, claims, kubelet.images)

    def _container(self, spec: Object) -> Container:
        hooks: Any = {"changed": self._changed.set, "tell": self._tell_event}
        return Container(spec, self._root, self.uid, grace_s=self._grace_s, **hooks)

    @property
    def path(self) -> str:
        """The pod's path in the API."""
        meta = self.pod["metadata"]
        return f"/api/v1/namespaces/{meta['namespace']}/pods/{meta['name']}"

    @property
    def phase(self) -> str:
        """As the API is told."""
        return phase(self.init, self.main, over=self._over, failed=self.reason is not None)

    async def run(self) -> None:
        """Until the pod is deleted."""
        telling = asyncio.create_task(self._tell_changes())
        body = asyncio.create_task(self._run_containers())
        ending = asyncio.create_task(self.ending.wait())
        limit = self.pod["spec"].get("activeDeadlineSeconds")
        try:
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
            options: Object = {"gracePeriodSeconds": 0, "preconditions": {"uid": self.uid}}
            await self.kubelet.api.ask("DELETE", self.path, options)
            shutil.rmtree(self._root, ignore_errors=True)
        finally:
            tasks = [telling, body, ending]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self.kill()

    def end(self, reason: str, message: str, condition: Object | None = None, grace_s: float = 30.0) -> None:
        """End it for a reason of the node's own, such as an eviction."""
        self.reason, self._message = reason, message
        self._extra = [{**condition, "lastTransitionTime": now()}] if condition else []
        self._grace_s = min(self._grace_s, grace_s)
        self._tell_event(reason, message)
        self.ending.set()

    def kill(self) -> None:
        """SIGKILL to everything."""
        processes.kill(self.uid)

    def container(self, name: str) -> Container | None:
        """The container of that name."""
        return next((c for c in [*self.main, *self.init] if c.name == name), None)

    def _tell_event(self, reason: str, message: str) -> None:
        kind = "Normal" if reason in {"Killing", "Pulled", "Started"} else "Warning"
        self.kubelet.spawn(self.kubelet.events.tell(self.pod, reason, message, kind))

    async def _stop(self) -> None:
        grace = self.pod["metadata"].get("deletionGracePeriodSeconds")
        seconds = self._grace_s if grace is None else grace
        if any(c.process and c.process.returncode is None for c in self.main):
            self._tell_event("Killing", f"Stopping container {self.main[0].name}")
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
        for container in self.main:
            if self.init and container.state.get("waiting", {}).get("reason") == "PodInitializing":
                container.wait_for("ContainerCreating")
        await asyncio.gather(*(self._run(c, policy) for c in self.main))

    async def _volumes_are_made(self) -> bool:
        try:
            await self._folder.make_volumes()
        except MissingError as missing:
            self._tell_event("FailedMount", str(missing))
            return False
        if self.init:
            for container in self.main:
                container.wait_for("PodInitializing")
        return True

    async def _run(self, container: Container, policy: str) -> int:
        back_off = _FIRST_BACK_OFF_S
        while not self.ending.is_set():
            how = await self._prepare(container)
            if how is None:
                if await self._ends_within(_RETRY_S):
                    break
                continue
            if not self.ending.is_set():
                self._tell_event("Started", f"Started container {container.name}")
                code = await container.run(how)
            if self.ending.is_set() or policy == "Never" or (policy == "OnFailure" and code == 0):
                return container.exit_code if container.exit_code is not None else 137
            container.last_state = container.state
            container.restarts += 1
            if container.restarts == 1:
                continue  # only what fails again is made to wait
            name = f"{container.name} pod={self.pod['metadata']['name']}"
            container.wait_for(
                "CrashLoopBackOff", f"back-off {back_off:g}s restarting failed container={name}"
            )
            self._tell_event("BackOff", f"Back-off restarting failed container {container.name} in pod")
            if await self._ends_within(back_off):
                break
            back_off = min(2 * back_off, _LONGEST_BACK_OFF_S)
        return container.exit_code if container.exit_code is not None else 137

    async def _prepare(self, container: Container) -> Run | None:
        """How to run it; None, with the reason told, where it cannot be run yet."""
        spec, name = container.spec, container.spec["image"]
        if not is_reference(name):
            why = "couldn't parse image name: invalid reference format"
            container.wait_for("InvalidImageName", f'Failed to apply default image tag "{name}": {why}')
            self._tell_event("InspectFailed", f'Failed to apply default image tag "{name}": {why}')
            return None
        image = self.kubelet.images.get(name)
        if image is None:
            self._cannot_pull(container, name)
            return None
        argv = [*(spec.get("command") or image.entrypoint), *(spec.get("args") or ())]
        if not argv:
            why = f'failed to generate container "{container.name}" spec: no command specified'
            container.wait_for("CreateContainerError", why)
            return None
        try:
            base = {**image.env, **self.kubelet.node_env}
            env = await self._references.environment(spec, base, lambda text: self._folder.placed(spec, text))
        except MissingError as missing:
            container.wait_for("CreateContainerConfigError", str(missing))
            self._tell_event("Failed", f"Error: {missing}")
            return None
        argv = [self._folder.placed(spec, expand(word, env)) for word in argv]
        found = shutil.which(argv[0], path=env.get("PATH"))
        cwd = self._folder.placed(spec, spec.get("workingDir") or str(self._root))
        Path(cwd).mkdir(parents=True, exist_ok=True)
        return Run([found or argv[0], *argv[1:]], env, cwd, self._folder.end_message(spec))

    def _cannot_pull(self, container: Container, image: str) -> None:
        if container.spec.get("imagePullPolicy") == "Never":
            why = f'Container image "{image}" is not present with pull policy of Never'
            container.wait_for("ErrImageNeverPull", why)
            self._tell_event("ErrImageNeverPull", why)
            return
        refused = f'failed to pull and unpack image "{image}": failed to resolve reference: not found'
        if "waiting" in container.state and container.state["waiting"]["reason"] in _NOT_TRIED:
            container.wait_for("ErrImagePull", refused)
        else:
            container.wait_for(
                "ImagePullBackOff", f'Back-off pulling image "{image}": ErrImagePull: {refused}'
            )
            self._tell_event("BackOff", f'Back-off pulling image "{image}"')
        self._tell_event("Failed", f'Failed to pull image "{image}": {refused}')

    async def _ends_within(self, seconds: float) -> bool:
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self.ending.wait(), seconds)
        return self.ending.is_set()

    async def _tell_changes(self) -> None:
        while True:
            self._changed.clear()
            await self._tell()
            await self._changed.wait()

    async def _tell(self) -> None:
        self._conditions = conditions(self.phase, self.init, self.main, self._conditions)
        status: Object = {
            "phase": self.phase,
            "conditions": [*self._conditions, *self._extra],
            "hostIP": "127.0.0.1",
            "podIP": "127.0.0.1",
            "podIPs": [{"ip": "127.0.0.1"}],
            "startTime": self._began,
            "initContainerStatuses": [c.status() for c in self.init],
            "containerStatuses": [c.status() for c in self.main],
        }
        if self.reason:
            status |= {"reason": self.reason, "message": self._message}
        change: Object = {"metadata": {"uid": self.uid}, "status": status}
        await self.kubelet.api.ask("PATCH", f"{self.path}/status", change, STRATEGIC_PATCH)


_NOT_TRIED = {"ContainerCreating", "PodInitializing"}
