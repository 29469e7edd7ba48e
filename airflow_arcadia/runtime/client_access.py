"""Who may use the routes for batches and their files: the run's own tasks, and which other clients."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit

from airflow_arcadia.batch.batch_api import TOKEN_HEADER
from airflow_arcadia.runtime.access import Secret, is_loopback
from airflow_arcadia.runtime.asgi import Scope, header
from airflow_arcadia.runtime.request_limits import RequestRefused


@dataclass(frozen=True)
class ClientAccess:
    """See the module.

    :param token: what only the run's own tasks hold: their batches may name any URI.
    :param keyed: whether the server asks for an API key, which was checked before.
    :param host: address the server listens on.
    :param url: where others reach it.
    """

    token: Secret | None
    keyed: bool
    host: str
    url: str

    def is_trusted(self, scope: Scope) -> bool:
        """Whether the run's own task sends this request."""
        return self.token is not None and self.token.matches(header(scope, TOKEN_HEADER.lower().encode()))

    def check(self, scope: Scope) -> None:
        """Raise :class:`RequestRefused` for a client that may not use batches and files at all."""
        host = _host(header(scope, b"host").decode("latin-1"))
        origin = header(scope, b"origin").decode("latin-1")
        if origin and _host(origin.partition("://")[2]) != host:
            raise RequestRefused(403, "Batches and files are not for web pages of another origin.")
        if self.keyed:
            return
        if not is_loopback(self.host):
            raise RequestRefused(
                403,
                "This worker listens beyond its own machine without an API key, so it takes no batches and "
                "files of clients. Set a key: the password of the arcadia connection.",
            )
        # Without a key a browser could be led here by a name of its own that resolves to this machine.
        if not is_loopback(host) and host != _host(self.url.partition("://")[2]):
            raise RequestRefused(403, "The Host header does not name this worker.")


def _host(authority: str) -> str:
    """The host of ``host:port``, in lower case; empty when it is neither."""
    try:
        return urlsplit(f"//{authority}").hostname or ""
    except ValueError:
        return ""
