"""A pod's phase and conditions, read off its containers as the real kubelet reads them."""

from __future__ import annotations

from collections.abc import Sequence

from tests.loopback_cluster.api.store import now
from tests.loopback_cluster.kubelet.client import Object
from tests.loopback_cluster.kubelet.container import Container


def phase(init: Sequence[Container], main: Sequence[Container], *, over: bool, failed: bool) -> str:
    """The phase.

    :param over: whether none of the containers will run again.
    :param failed: whether the node ended it, by a deadline or an eviction.
    """
    if over:
        bad = failed or any(c.exit_code != 0 for c in [*init, *main])
        return "Failed" if bad else "Succeeded"
    unborn = any("waiting" in c.state and not c.last_state for c in main)
    return "Pending" if unborn or any(c.exit_code != 0 for c in init) else "Running"


def conditions(
    phase: str, init: Sequence[Container], main: Sequence[Container], old: Sequence[Object]
) -> list[Object]:
    """The conditions; those that hold as before keep their time.

    :param old: the conditions as they were.
    """
    undone = [c.name for c in init if c.exit_code != 0]
    unready = [c.name for c in main if not c.ready]
    why: Object = {}
    if phase == "Succeeded":
        why = {"reason": "PodCompleted"}
    elif phase == "Failed":
        why = {"reason": "PodFailed"}
    elif unready:
        message = f"containers with unready status: [{' '.join(unready)}]"
        why = {"reason": "ContainersNotReady", "message": message}
    late: Object = {}
    if undone:
        message = f"containers with incomplete status: [{' '.join(undone)}]"
        late = {"reason": "ContainersNotInitialized", "message": message}
    told: list[Object] = [
        {"type": "PodScheduled", "status": "True"},
        {"type": "PodReadyToStartContainers", "status": "False" if phase in _ENDED else "True"},
        {"type": "Initialized", "status": "False" if late else "True", **late},
        {"type": "ContainersReady", "status": "False" if why else "True", **why},
        {"type": "Ready", "status": "False" if why else "True", **why},
    ]
    before = {condition["type"]: condition for condition in old}
    for condition in told:
        # None takes away what an earlier status said.
        condition |= {key: condition.get(key) for key in ("reason", "message")}
        was = before.get(condition["type"], {})
        same = was.get("status") == condition["status"]
        condition["lastTransitionTime"] = was["lastTransitionTime"] if same else now()
    return told


_ENDED = {"Succeeded", "Failed"}
