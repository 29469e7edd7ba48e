"""Who may send the worker a request: the API key, and where the server listens."""

from __future__ import annotations

import ipaddress
import json
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from airflow_arcadia.exceptions import ArcadiaConfigError
from airflow_arcadia.runtime.asgi import header

OPEN_PATHS = frozenset({"/health", "/ping", "/version", "/metrics", "/load"})
"""Paths that need no key: probes and metrics. They have no body worth reading."""


def read_secret(path: str | None, what: str) -> str | None:
    """The one line of a secret file; None without a file.

    :param what: the secret's name, for the error.

    Raises :class:`ArcadiaConfigError` for a file that cannot be read, is empty, or has more than one line: an
    empty key would let everybody in.
    """
    if path is None:
        return None
    try:
        secret = Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ArcadiaConfigError(
            f"The file of the {what}, {path}, cannot be read: {type(error).__name__}.",
            what_to_do="Correct the file or its rights.",
        ) from error
    if not secret.isprintable() or not secret:
        problem = "has more than one line or unprintable characters" if secret else "is empty"
        raise ArcadiaConfigError(
            f"The file of the {what}, {path}, {problem}.", what_to_do="Write the secret into it, as one line."
        )
    return secret


def read_storage_options(path: str | None) -> dict[str, dict[str, Any]]:
    """Options of file systems by protocol, from a secret file; none without a file.

    Raises :class:`ArcadiaConfigError` for a file that cannot be read or does not hold them.
    """
    text = read_secret(path, "storage options")
    try:
        found = json.loads(text) if text is not None else {}
    except ValueError:
        found = None
    if not isinstance(found, dict) or not all(isinstance(options, dict) for options in found.values()):
        # Without the content: it is a secret.
        raise ArcadiaConfigError(
            f"The file of the storage options, {path}, is not a JSON object of objects.",
            what_to_do="Launch the worker again.",
        )
    return found


class Secret:
    """A secret that requests carry in a header; compared in constant time.

    Clients encode a header's text as UTF-8 or as Latin-1: a secret beyond ASCII is accepted in both.
    """

    def __init__(self, value: str) -> None:
        self._forms = [value.encode("utf-8")]
        if not value.isascii():
            self._forms.append(value.encode("latin-1", "replace"))

    def matches(self, sent: bytes) -> bool:
        """Whether this is the secret."""
        return any(secrets.compare_digest(sent, form) for form in self._forms)


def bearer_token(scope: Mapping[str, Any]) -> bytes:
    """The token of ``Authorization: Bearer``, or an empty value."""
    kind, _, sent = header(scope, b"authorization").partition(b" ")
    return sent.strip() if kind.lower() == b"bearer" else b""


def is_loopback(host: str) -> bool:
    """Whether a server that listens on ``host`` can be reached from this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
