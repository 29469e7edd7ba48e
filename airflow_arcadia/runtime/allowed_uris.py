"""Which URIs a client may name in a batch: those below the prefixes the worker was launched with. Pure.

A prefix is a folder: ``s3://bucket/prompts`` allows ``s3://bucket/prompts/a.jsonl``, and neither
``s3://bucket/prompts-2/a.jsonl`` nor the folder itself. A prefix without a protocol, or with ``file://``, is
a folder of the worker's machine: links are followed before a path is compared.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from airflow_arcadia.exceptions import ArcadiaConfigError, BatchInputError

_HTTP = frozenset({"http", "https"})
_LOCAL = frozenset({"", "file", "local"})
_MAX_LENGTH = 4096


class AllowedUris:
    """See the module.

    :param prefixes: absolute paths and URIs. Raises :class:`ArcadiaConfigError` for one that is neither.
    """

    def __init__(self, prefixes: Iterable[str]) -> None:
        self._prefixes = [_prefix(text) for text in prefixes]

    @property
    def http_hosts(self) -> list[str]:
        """Hosts of the HTTP prefixes, without their ports."""
        hosts = (urlsplit(f"//{one.host}").hostname for one in self._prefixes if one.protocol in _HTTP)
        return sorted({host for host in hosts if host})

    def check_input(self, uri: str) -> None:
        """Raise :class:`BatchInputError` unless a client may have this read."""
        self._check(_parse(uri, "input"), "input")

    def check_output(self, uri: str) -> None:
        """Raise :class:`BatchInputError` unless a client may have this written, and files beside it."""
        location = _parse(uri, "output")
        if location.protocol in _HTTP:
            raise _refused("The output is an HTTP URL, which cannot be written.", "Use an object store.")
        self._check(location, "output")

    def _check(self, location: _Location, what: str) -> None:
        if not any(location.is_below(prefix) for prefix in self._prefixes):
            raise _refused(
                f"The {what} is not below any prefix that this worker allows.",
                "Use an allowed one, or launch the worker with allowed_uris.",
            )


class _Location(NamedTuple):
    """``path`` is absolute and has no ``.`` or ``..``."""

    protocol: str
    host: str
    path: str

    def is_below(self, prefix: _Location) -> bool:
        same = self.protocol == prefix.protocol and self.host == prefix.host
        return same and self.path.startswith(prefix.path.rstrip("/") + "/") and not self.path.endswith("/")


def _parse(uri: str, what: str) -> _Location:
    if len(uri) > _MAX_LENGTH or not uri.isprintable():
        raise _refused(f"The {what} is too long or has unprintable characters.", "Use a plain URI.")
    if "::" in uri:
        raise _refused(f"The {what} chains several protocols.", "Use one protocol.")
    protocol, found, rest = uri.partition("://")
    if not found:
        protocol, rest = "", uri
    if protocol in _LOCAL:
        return _local(rest, what)
    host, _, path = rest.partition("/")
    path = f"/{path}"
    # A server may decode a path before it resolves "..".
    decoded = unquote(path.partition("?")[0])
    if any(part in {".", ".."} for part in decoded.split("/")) or "\\" in decoded or not host:
        raise _refused(f"The {what} is not a plain URI.", "Leave '.', '..' and backslashes out of its path.")
    return _Location(protocol, host, path)


def _local(path: str, what: str) -> _Location:
    # Also refuses "file:/…", "data:…" and "~/…", which fsspec takes for something else than a path.
    if not path.startswith("/"):
        raise _refused(f"The {what} is not an absolute path or a URI.", "Use one of them.")
    return _Location("", "", os.path.realpath(path) + ("/" if path.endswith("/") else ""))


def _prefix(text: str) -> _Location:
    try:
        return _parse(text, "prefix")
    except BatchInputError as error:
        raise ArcadiaConfigError(
            f"allowed_uris has {text!r}: {error.what}", what_to_do="Use absolute paths and URIs of folders."
        ) from error


def _refused(what: str, what_to_do: str) -> BatchInputError:
    return BatchInputError(what, what_to_do=what_to_do)
