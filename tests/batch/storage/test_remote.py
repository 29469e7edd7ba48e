"""Folders on fsspec's file systems: literal names, every form of URI, and no request too many."""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from airflow_arcadia.batch import BatchSpec, Endpoint, check_input, run_batch_async
from airflow_arcadia.batch.output.job import Job, Superseded
from airflow_arcadia.batch.output.manifest import Identity, Manifest
from airflow_arcadia.batch.output.segments import SegmentBuffer
from airflow_arcadia.batch.storage import RemoteFolder, open_folder
from airflow_arcadia.exceptions import BatchError, BatchInputError
from tests.batch.fake_engine import FakeEngine
from tests.batch.reading import stopped_after

MANIFEST = Manifest(Identity("i", "m", "p"), 200, "i", "s", None, "epoch")
LINES = b"".join(json.dumps({"prompt": f"row {row}"}).encode() + b"\n" for row in range(50))


class CarelessStore(MemoryFileSystem):
    """Ignores "write only if absent", as some S3-compatible stores do."""

    protocol = ("careless", "s3")
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: Any) -> None:
        super().pipe_file(path, value, **kwargs)


class CountingStore(MemoryFileSystem):
    """Writes down which files were read whole, and which in part."""

    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    whole: ClassVar[list[str]] = []
    parts: ClassVar[list[int]] = []

    def get_file(self, rpath: str, lpath: str, **kwargs: Any) -> None:
        self.whole.append(rpath)
        super().get_file(rpath, lpath, **kwargs)

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **kwargs: Any) -> bytes:
        data: bytes = super().cat_file(path, start, end, **kwargs)
        (self.whole if start is None else self.parts).append(path if start is None else len(data))
        return data


def buffer_of(*rows: int, size: int = 10) -> SegmentBuffer:
    buffer = SegmentBuffer()
    for row in rows:
        buffer.add(row, b"x" * size, failed=False)
    return buffer


@pytest.fixture
def ftp(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """URI and folder of a real FTP server that takes a name and a password."""
    pytest.importorskip("pyftpdlib", reason="run make setup: the FTP server for tests is missing")
    from pyftpdlib.authorizers import DummyAuthorizer
    from pyftpdlib.handlers import FTPHandler
    from pyftpdlib.servers import FTPServer

    root = tmp_path / "ftp"
    (root / "data").mkdir(parents=True)
    authorizer = DummyAuthorizer()
    authorizer.add_user("arcadia", "secret", str(root), perm="elradfmwMT")
    handler = type("Handler", (FTPHandler,), {"authorizer": authorizer})
    server = FTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"timeout": 0.05}, daemon=True)
    thread.start()
    yield f"ftp://arcadia:secret@127.0.0.1:{server.address[1]}/data", root / "data"
    server.close_all()
    thread.join(5)
    fsspec.get_filesystem_class("ftp").clear_instance_cache()


async def test_a_server_named_in_the_uri_takes_input_and_output(engine: FakeEngine, ftp: tuple[str, Path]):
    uri, folder = ftp
    (folder / "in.jsonl").write_bytes(LINES)
    engine.delay = 0.005
    job = BatchSpec(f"{uri}/in.jsonl", f"{uri}/out/o.jsonl", "tiny", max_in_flight=4, segment_seconds=0.05)
    assert check_input(job) == 50
    assert "secret" not in str(await stopped_after(job, engine, 25))
    assert list((folder / "out" / ".o.jsonl.parts").glob("seg-*"))
    summary = await run_batch_async(job, [Endpoint(engine.url)])
    assert summary.ok == 50
    assert summary.output == f"{uri}/out/o.jsonl".replace("secret", "***")
    assert summary.resumed_rows >= 20
    assert len((folder / "out" / "o.jsonl").read_text().splitlines()) == 50
    assert sorted(path.name for path in (folder / "out").iterdir()) == ["o.jsonl", "o.jsonl.summary.json"]
    assert await run_batch_async(job, [Endpoint(engine.url)]) == summary


def test_a_wrong_password_is_said_before_anything_starts(ftp: tuple[str, Path], tmp_path: Path):
    uri, _ = ftp
    (tmp_path / "in.jsonl").write_bytes(LINES)
    wrong = uri.replace("secret", "wrong") + "/o.jsonl"
    with pytest.raises(BatchInputError, match="credentials are missing or wrong") as raised:
        check_input(BatchSpec(str(tmp_path / "in.jsonl"), wrong, "m"))
    assert "wrong@" not in str(raised.value)


def test_the_account_in_a_uri_is_kept():
    """Azure's usual form: the account is part of the file system, and no path of it names it again."""

    class Azure(MemoryFileSystem):
        protocol = ("abfs",)

        def __init__(self, account_name: str, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            self.account_name = account_name

        @classmethod
        def _strip_protocol(cls, path: str) -> str:
            return re.sub(r"^abfs://([^@/]+)@[^/]+/", r"\1/", path)

        @staticmethod
        def _get_kwargs_from_urls(path: str) -> dict[str, str]:
            found = re.match(r"^abfs://[^@/]+@([^./]+)\.", path)
            return {"account_name": found[1]} if found else {}

    from airflow_arcadia.batch.output.paths import place_of

    fsspec.register_implementation("abfs", Azure, clobber=True)
    place = place_of(BatchSpec("in.jsonl", "abfs://box@acct.dfs.core.windows.net/out/o.jsonl", "m"))
    assert isinstance(place.parts, RemoteFolder)
    place.parts.create_only("attempt", b"1")
    fs = Azure(account_name="acct")
    assert fs.exists("box/out/.o.jsonl.parts/attempt")
    place.parts.remove_all()
    assert not fs.exists("box/out/.o.jsonl.parts/attempt")


@pytest.mark.parametrize("name", ["answers[1].jsonl", "answers*.jsonl", "answers?.jsonl", "[a]/o.jsonl"])
async def test_a_pattern_in_a_name_is_only_a_name(
    engine: FakeEngine, tmp_path: Path, name: str, request: pytest.FixtureRequest
):
    (tmp_path / "in.jsonl").write_bytes(LINES)
    root = f"memory://patterns-{abs(hash(name))}"
    # What each of the names would mean as a pattern.
    others = [f"{root}/answers1.jsonl", f"{root}/a/o.jsonl"]
    for other in others:
        await run_batch_async(
            BatchSpec(str(tmp_path / "in.jsonl"), other, "tiny", keep_segments=True), [Endpoint(engine.url)]
        )
    fs = fsspec.filesystem("memory")
    before = set(fs.find(root.removeprefix("memory:/")))
    job = BatchSpec(str(tmp_path / "in.jsonl"), f"{root}/{name}", "tiny")
    assert (await run_batch_async(job, [Endpoint(engine.url)])).ok == 50
    after = set(fs.find(root.removeprefix("memory:/")))
    assert before <= after
    stem = f"{root.removeprefix('memory:/')}/{name}"
    assert after - before == {stem, f"{stem}.summary.json"}


async def test_a_file_system_without_create_mode_whose_renaming_takes_patterns(
    engine: FakeEngine, tmp_path: Path
):
    """As webdav4's: ``pipe_file`` takes no mode, and ``mv`` is fsspec's own, which expands names."""

    class Dav(MemoryFileSystem):
        protocol = ("davlike",)
        store: ClassVar[dict[str, Any]] = {}
        pseudo_dirs: ClassVar[list[str]] = [""]

        @classmethod
        def _strip_protocol(cls, path: str) -> str:
            return super()._strip_protocol(path.replace("davlike://", "memory://", 1))

        def pipe_file(self, path: str, value: bytes) -> None:
            super().pipe_file(path, value)

        def mv(self, path1: str, path2: str, **kwargs: Any) -> None:
            # fsspec's copy() passes over an absent source, of which a pattern without a match is one.
            if not self.glob(path1):
                raise FileNotFoundError([path1])
            super().mv(path1, path2, **kwargs)

    fsspec.register_implementation("davlike", Dav, clobber=True)
    (tmp_path / "in.jsonl").write_bytes(LINES)
    job = BatchSpec(str(tmp_path / "in.jsonl"), "davlike://data/o [1]*.jsonl", "tiny")
    assert (await run_batch_async(job, [Endpoint(engine.url)])).ok == 50
    assert set(Dav().find("/data")) == {"/data/o [1]*.jsonl", "/data/o [1]*.jsonl.summary.json"}
    folder = open_folder("davlike://data")
    folder.create_only("once", b"1")
    with pytest.raises(FileExistsError):
        folder.create_only("once", b"2")
    assert folder.read("once") == b"1"


def test_two_attempts_with_one_token_cannot_both_commit(caplog: pytest.LogCaptureFixture):
    """On a store that ignores the condition, the second of two attempts takes the first one's token."""
    fs = CarelessStore()
    folder, other = (RemoteFolder(fs, "/careless/parts", "careless://parts") for _ in range(2))
    first = Job.claim(folder, MANIFEST)
    assert "cannot write a file only if it is absent" in caplog.text
    first.commit(buffer_of(0))
    second = Job.claim(other, MANIFEST)
    # As if both had looked before either wrote.
    raced = Job(other, MANIFEST, type(first.attempt)(1, "another", "epoch", 1, {}))
    other.remove("attempt-000002.json")
    other.create_only("attempt-000001.json", json.dumps(vars(raced.attempt)).encode())
    with pytest.raises(Superseded):
        first.commit(buffer_of(1))
    with pytest.raises(Superseded):
        second.commit(buffer_of(1))
    raced.commit(buffer_of(2))


def test_a_store_that_keeps_the_condition_needs_no_warning(caplog: pytest.LogCaptureFixture):
    folder = open_folder("memory://exclusive/parts")
    Job.claim(folder, MANIFEST)
    assert not caplog.text
    assert list(folder.sizes()) == ["attempt-000001.json"], "no probe is left behind"


def test_an_attempt_that_goes_on_reads_the_end_of_each_segment_alone():
    fs = CountingStore()
    first = Job.claim(RemoteFolder(fs, "/counting/parts", "counting://parts"), MANIFEST)
    for row in range(20):
        first.commit(buffer_of(row, size=1 << 20))
    CountingStore.whole.clear()
    CountingStore.parts.clear()
    second = Job.claim(RemoteFolder(fs, "/counting/parts", "counting://parts"), MANIFEST)
    assert second.done == 20
    assert second.committed() == 20
    assert not [path for path in CountingStore.whole if "seg-" in path]
    assert len(CountingStore.parts) == 40
    assert sum(CountingStore.parts) < 40 * 70_000


def test_requests_to_a_store_that_takes_several_are_made_at_the_same_time():
    class Several(MemoryFileSystem):
        async_impl = True

    together = threading.Barrier(4, timeout=20)
    folder = RemoteFolder(Several(), "/several/parts", "several://parts")
    names = ["a", "b", "c", "d"]
    assert folder.each(lambda name: (together.wait() >= 0, name)[1], names) == names


class _Server(BaseHTTPRequestHandler):
    """Sends rows without saying how many bytes they are."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(LINES)

    def do_HEAD(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def web() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Server)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def test_an_input_of_unknown_length_is_read(web: ThreadingHTTPServer, output: str):
    uri = f"http://127.0.0.1:{web.server_port}/in.jsonl"
    assert check_input(BatchSpec(uri, output, "m")) == 50


def test_a_server_that_is_down_is_not_a_missing_file(output: str):
    with pytest.raises(BatchError, match=r"in\.jsonl cannot be reached") as raised:
        check_input(BatchSpec("http://127.0.0.1:9/in.jsonl", output, "m"))
    assert raised.value.retryable


async def test_a_full_temporary_disk_is_not_called_a_full_store(
    engine: FakeEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """RLIMIT_FSIZE makes the kernel refuse more bytes in a file, as a full disk does."""
    import asyncio
    import subprocess
    import sys

    (tmp_path / "in.jsonl").write_bytes(LINES * 200)
    script = (
        "import resource, sys\n"
        "from airflow_arcadia.batch import BatchSpec, check_input, Endpoint, run_batch\n"
        "from airflow_arcadia.exceptions import BatchError\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, resource.RLIM_INFINITY))\n"
        "try:\n"
        "    run_batch(BatchSpec(sys.argv[1], 'memory://full/o.jsonl', 'tiny'), [Endpoint(sys.argv[2])])\n"
        "except BatchError as error:\n"
        "    print(error)\n"
    )
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", script, str(tmp_path / "in.jsonl"), engine.url),
        stdout=subprocess.PIPE,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    out, _ = await process.communicate()
    assert f"The temporary directory {tmp_path} (TMPDIR) is full" in out.decode()
    assert not list(tmp_path.glob("arcadia-batch-*"))
