"""A worker that asks for a key, and FastChat's gateway, which sends none."""

import socket
from pathlib import Path

import aiohttp
import pytest

from airflow_arcadia.ports import free_port
from airflow_arcadia.runtime.fastchat.gateway_server import GatewayServer
from airflow_arcadia.worker import Placement
from tests.batch.reading import until
from tests.runtime.serving import worker


@pytest.fixture
def key_file(tmp_path: Path) -> str:
    path = tmp_path / "key"
    path.write_text("the-key")
    return str(path)


async def listens(port: int) -> None:
    def connects() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    await until(connects)


async def test_its_own_port_serves_the_gateway_without_the_key_and_nothing_else(key_file: str):
    port = free_port()
    async with (
        worker(api_key_file=key_file, fastchat_port=port) as (url, _),
        aiohttp.ClientSession() as session,
    ):
        await listens(port)
        gateway = f"http://127.0.0.1:{port}"
        for base, status in ((gateway, 200), (url, 401)):
            async with session.post(f"{base}/worker_generate", json={"prompt": "a"}) as response:
                assert response.status == status
        for path in ("/v1/completions", "/v1/batches", "/v1/arcadia/bundle", "/v1/models", "/metrics", "/x"):
            async with session.post(gateway + path, json={"prompt": "a"}) as response:
                assert response.status == 404, path


async def test_a_port_that_is_taken_is_an_error():
    async def app(scope, receive, send):
        raise AssertionError

    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(OSError, match="in use"):
        await GatewayServer(app, "127.0.0.1", taken.getsockname()[1]).serve()


@pytest.mark.parametrize(
    ("placement", "url"),
    [
        (Placement(port=1), "http://127.0.0.1:1"),
        (Placement(port=1, fastchat_port=2), "http://127.0.0.1:2"),
        (Placement(port=1, fastchat_port=2, advertised_address="http://w.ns.svc:1"), "http://w.ns.svc:2"),
        (Placement(port=1, fastchat_port=2, advertised_address="http://[::1]:1"), "http://[::1]:2"),
    ],
)
def test_the_controller_is_told_the_port_that_its_gateway_can_use(placement: Placement, url: str):
    assert placement.fastchat_url == url
