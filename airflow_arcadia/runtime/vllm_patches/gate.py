"""Decides whether a patch of vLLM is applied in this process, and logs the decision in one line.

A patch is applied only in the processes of a worker (its server's environment carries ``ARCADIA_SERVER``),
only on a vLLM it was tested with, and never at the price of the engine: whatever it raises is logged and vLLM
goes on in its own way.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence

from airflow_arcadia.runtime.log import say

SERVER_VARIABLE = "ARCADIA_SERVER"
"""Set in the environment of a worker's server, and inherited by the engine's processes on this machine."""
SWITCH_VARIABLE = "ARCADIA_VLLM_PATCHES"
"""``on`` (default): on a tested vLLM; ``off``: never; ``untested``: on any vLLM."""


def in_worker(env: Mapping[str, str]) -> bool:
    """Whether this process belongs to a worker's server."""
    return bool(env.get(SERVER_VARIABLE))


def refusal(version: str, tested: Sequence[str], switch: str) -> str | None:
    """Why a patch stays off on this vLLM, or None when it may be applied.

    :param version: vLLM's, e.g. ``0.32.0+cpu``.
    :param tested: releases the patch was tested with, e.g. ``("0.32",)``.
    :param switch: value of :data:`SWITCH_VARIABLE`.
    """
    if switch == "off":
        return f"{SWITCH_VARIABLE} is off"
    if switch == "untested" or any(version == t or version.startswith(f"{t}.") for t in tested):
        return None
    return (
        f"vLLM {version} is not among the tested releases ({', '.join(tested)}); "
        f"{SWITCH_VARIABLE}=untested applies it nevertheless"
    )


def apply(name: str, tested: Sequence[str], change: Callable[[], str]) -> bool:
    """Apply a patch if it may be applied here; log in one line that it is on, or off and why.

    :param change: makes the change and returns one phrase that says what it does. Raises
        :class:`NotNeeded` where it would not help.
    """
    try:
        why_not = refusal(vllm_version(), tested, os.environ.get(SWITCH_VARIABLE, "on"))
        if why_not is None:
            say(f"vLLM patch {name} is on: {change()}")
            return True
    except NotNeeded as reason:
        why_not = str(reason)
    except Exception as error:  # noqa: BLE001 - vLLM does not catch a plug-in's errors: the engine would end
        why_not = f"it does not fit this vLLM ({type(error).__name__}: {error})"
    say(f"vLLM patch {name} is off: {why_not}")
    return False


def vllm_version() -> str:
    """Version of the vLLM that this process runs."""
    from vllm.version import __version__

    return str(__version__)


class NotNeeded(Exception):
    """The patch would not help in this process."""
