"""What can be pulled."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

_REFERENCE = re.compile(r"[a-z0-9]([a-z0-9._/:@-]*[A-Za-z0-9])?")


@dataclass(frozen=True)
class Image:
    """An image of the loopback registry.

    :param env: the environment the image brings along.
    :param entrypoint: what runs where a container has no command; its args are appended.
    :param files: folder that is mounted where the image is used as a volume.
    """

    env: Mapping[str, str] = field(default_factory=dict)
    entrypoint: tuple[str, ...] = ()
    files: Path | None = None


def is_reference(image: str) -> bool:
    """Whether a container runtime could make sense of the name."""
    return _REFERENCE.fullmatch(image) is not None
