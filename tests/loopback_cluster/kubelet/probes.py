"""Startup, readiness and liveness probes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp

from tests.loopback_cluster.kubelet.client import Object

PROBES = ("startupProbe", "readinessProbe", "livenessProbe")
Execute = Callable[[list[str]], Awaitable[asyncio.subprocess.Process]]


async def fault(probe: Object, ports: list[Object], execute: Execute) -> str | None:
    """One try: None when it passes, else what was wrong, as the kubelet words it.

    :param ports: of the container, by which a probe may name its port.
    :param execute: runs a command as in the container.
    """
    seconds = probe["timeoutSeconds"]
    try:
        if "httpGet" in probe:
            return await asyncio.wait_for(_http(probe["httpGet"], ports), seconds)
        if "tcpSocket" in probe:
            return await asyncio.wait_for(_tcp(probe["tcpSocket"], ports), seconds)
        return await _exec(probe["exec"]["command"], execute, seconds)
    except asyncio.TimeoutError:
        return f"probe timed out after {seconds}s"
    except (aiohttp.ClientError, OSError) as error:
        return str(error)


def _number(port: int | str, ports: list[Object]) -> int:
    if isinstance(port, int):
        return port
    named = [entry["containerPort"] for entry in ports if entry.get("name") == port]
    return int(named[0]) if named else int(port)


async def _http(get: Any, ports: list[Object]) -> str | None:
    scheme = str(get.get("scheme") or "HTTP").lower()
    headers = {header["name"]: header["value"] for header in get.get("httpHeaders") or ()}
    url = f"{scheme}://{get.get('host') or '127.0.0.1'}:{_number(get['port'], ports)}{get.get('path') or '/'}"
    async with (
        aiohttp.ClientSession() as session,
        session.get(url, headers=headers, ssl=False, allow_redirects=False) as response,
    ):
        bad = not 200 <= response.status < 400
        return f"HTTP probe failed with statuscode: {response.status}" if bad else None


async def _tcp(socket: Any, ports: list[Object]) -> str | None:
    _, writer = await asyncio.open_connection("127.0.0.1", _number(socket["port"], ports))
    writer.close()
    return None


async def _exec(command: list[str], execute: Execute, seconds: float) -> str | None:
    process = await execute(command)
    try:
        output, _ = await asyncio.wait_for(process.communicate(), seconds)
    except asyncio.TimeoutError:
        process.kill()
        raise
    return None if process.returncode == 0 else output.decode(errors="replace")[:200]
