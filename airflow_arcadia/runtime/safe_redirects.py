"""Redirects of HTTP inputs: followed only within the host that the URI names.

An allowed URI says nothing about where its server may send the worker next, which could be any service that
the worker can reach.
"""

from __future__ import annotations

from typing import Any

import aiohttp
import fsspec.config
from yarl import URL


def refuse_redirects_to_other_hosts() -> None:
    """Make fsspec's HTTP file system of this process refuse a redirect to another host."""
    for protocol in ("http", "https"):
        fsspec.config.conf.setdefault(protocol, {})["get_client"] = _client


async def _client(**settings: Any) -> aiohttp.ClientSession:
    tracing = aiohttp.TraceConfig()
    tracing.on_request_redirect.append(_check)
    return aiohttp.ClientSession(**settings, trace_configs=[tracing])


async def _check(session: aiohttp.ClientSession, context: Any, redirect: Any) -> None:
    headers = redirect.response.headers
    target = redirect.url.join(URL(headers.get("Location") or headers.get("URI") or ""))
    if target.host != redirect.url.host:
        raise PermissionError(f"{redirect.url.host} redirects to another host, which is not followed")
