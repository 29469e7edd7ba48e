"""Who gets in: keys and headers of every form, and the limits that hold before a key is asked for."""

from pathlib import Path

import aiohttp
import pytest

from airflow_arcadia.exceptions import ArcadiaConfigError
from airflow_arcadia.runtime.access import Secret, bearer_token, is_loopback, read_secret
from airflow_arcadia.runtime.middleware import ArcadiaMiddleware
from airflow_arcadia.runtime.request_limits import RequestRefused, limited
from airflow_arcadia.worker import PlacedWorker
from tests.runtime.serving import worker


@pytest.mark.parametrize("content", ["", "\n", " \n ", "two\nlines", "nul\x00"])
def test_an_empty_or_broken_key_file_is_an_error_and_lets_nobody_in(tmp_path: Path, content: str):
    path = tmp_path / "key"
    path.write_text(content)
    with pytest.raises(ArcadiaConfigError, match="API key"):
        read_secret(str(path), "API key")


def test_a_key_file_that_is_missing_is_an_error(tmp_path: Path):
    with pytest.raises(ArcadiaConfigError, match="cannot be read"):
        read_secret(str(tmp_path / "none"), "API key")


@pytest.mark.parametrize(
    ("header", "allowed"),
    [
        (b"Bearer schl\xc3\xbcssel", True),
        (b"bearer schl\xfcssel", True),
        (b"Bearer schlussel", False),
        (b"Bearer", False),
        (b"Bearer ", False),
        (b"Basic schl\xfcssel", False),
        (b"\xff\xfe", False),
        (b"", False),
    ],
)
def test_a_key_beyond_ascii_is_known_in_both_encodings_of_headers(header: bytes, allowed: bool):
    assert Secret("schlüssel").matches(bearer_token({"headers": [(b"authorization", header)]})) is allowed


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.1.2.3", True),
        ("::1", True),
        ("[::1]", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("10.0.0.1", False),
        ("example.com", False),
        ("", False),
    ],
)
def test_what_listens_on_this_machine_alone(host: str, loopback: bool):
    assert is_loopback(host) is loopback


@pytest.mark.parametrize(("headers", "reached"), [([], False), ([(b"authorization", b"Bearer key")], True)])
async def test_a_websocket_needs_the_key(tmp_path: Path, headers: list[tuple[bytes, bytes]], reached: bool):
    (tmp_path / "key").write_text("key")
    calls, sent = [], []

    async def app(scope, receive, send):
        calls.append(scope)

    async def send(message):
        sent.append(message)

    spec = PlacedWorker(name="w", model="m", api_key_file=str(tmp_path / "key"))
    scope = {"type": "websocket", "path": "/v1/realtime", "headers": headers}
    await ArcadiaMiddleware(app, spec)(scope, None, send)
    assert bool(calls) is reached
    assert [message["type"] for message in sent] == ([] if reached else ["websocket.close"])


async def test_a_long_body_is_refused_by_its_announced_length():
    async with worker() as (url, served), aiohttp.ClientSession() as session:
        headers = {"Content-Length": str(2**40)}
        async with session.post(f"{url}/v1/completions", headers=headers) as response:
            assert response.status == 413
        assert served.begun == 0


async def test_a_long_body_without_a_length_is_refused_while_it_comes():
    async def receive():
        return {"type": "http.request", "body": b"x" * 10, "more_body": True}

    checked = limited(receive, limit=25)
    await checked()
    await checked()
    with pytest.raises(RequestRefused) as refused:
        await checked()
    assert refused.value.status == 413


async def test_a_body_that_does_not_come_is_not_waited_for():
    async def receive():
        import asyncio

        await asyncio.Event().wait()

    with pytest.raises(RequestRefused) as refused:
        await limited(receive, timeout_s=0.01)()
    assert refused.value.status == 408
