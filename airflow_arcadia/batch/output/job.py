"""A batch's place on storage: what it is, which attempt may write, and which rows are done.

Beside the output lies the hidden folder ``.<name>.parts``:

- ``job.json``: input, model and parameters this folder belongs to,
- ``index`` and, unless the input is a plain local file, ``rows``: see
  :mod:`~airflow_arcadia.batch.input.row_index`,
- ``order``: the order to send the rows in, unless it is the input's,
- ``attempt-<token>.json``: one per attempt; the highest token is the only one that may commit. It lists what
  it found committed, so that a late segment of an attempt before it never counts,
- ``seg-<token>-<number>``: committed rows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import orjson

from airflow_arcadia.batch.output.segments import FAILED, Counts, SegmentBuffer, read_footer
from airflow_arcadia.batch.spec import BatchSpec, BatchSummary
from airflow_arcadia.batch.storage import Folder, write
from airflow_arcadia.exceptions import BatchError

JOB, INDEX, ROWS, ORDER = "job.json", "index", "rows", "order"
_ATTEMPT, _SEGMENT = "attempt-", "seg-"
_REOPENED_ROWS = 4096
"""Rows in a segment of a finished batch that is opened again."""


class Superseded(BatchError):
    """A later attempt has taken over: this one may not commit any more."""

    retryable = False


@dataclass(frozen=True)
class Identity:
    """What makes two batches the same one. Empty ``model``: not known yet."""

    input: str
    model: str
    parameters: str

    @classmethod
    def of(cls, spec: BatchSpec, digest: str, model: str) -> Identity:
        """The identity of a spec with the digest of its input."""
        shape = [spec.prompt_column, spec.prompt_template, spec.prompt_as, spec.input_format]
        text = orjson.dumps([dict(spec.parameters), shape], option=orjson.OPT_SORT_KEYS)
        limit = "" if spec.limit is None else f"-{spec.limit}"
        return cls(f"{digest}{limit}", model, hashlib.blake2b(text, digest_size=16).hexdigest())

    def differences(self, other: Identity) -> list[str]:
        """Which parts differ, as far as both are known."""
        mine, theirs = asdict(self), asdict(other)
        return [name for name in mine if mine[name] and theirs[name] and mine[name] != theirs[name]]

    @property
    def fingerprint(self) -> str:
        """All of it in 32 hex digits."""
        text = orjson.dumps(asdict(self), option=orjson.OPT_SORT_KEYS)
        return hashlib.blake2b(text, digest_size=16).hexdigest()

    @property
    def row_key(self) -> bytes:
        """Key of the rows' ids: what they depend on beside place and content."""
        return hashlib.blake2b(f"{self.model}\0{self.parameters}".encode(), digest_size=16).digest()


@dataclass(frozen=True)
class Manifest:
    """``job.json``.

    :param stamp: of the input when it was scanned; while it is the same the input is not read again.
    """

    identity: Identity
    rows: int
    digest: str
    stamp: str
    limit: int | None

    @classmethod
    def read(cls, folder: Folder) -> Manifest | None:
        """The folder's manifest; None when there is none."""
        try:
            raw = orjson.loads(folder.read(JOB))
        except FileNotFoundError:
            return None
        return cls(**{**raw, "identity": Identity(**raw["identity"])})

    def write(self, folder: Folder) -> None:
        """Make it the folder's."""
        write(folder, JOB, orjson.dumps(asdict(self), option=orjson.OPT_INDENT_2))


@dataclass(frozen=True)
class Attempt:
    """One attempt at the batch.

    :param token: its number, from 1; the fencing token.
    :param adopted: token of an earlier attempt → number of its last segment that counts.
    """

    token: int
    adopted: dict[int, int]


class Job:
    """An attempt's hold on the folder of a batch."""

    def __init__(self, folder: Folder, manifest: Manifest, attempt: Attempt) -> None:
        self.folder = folder
        self.manifest = manifest
        self.attempt = attempt
        self.row_key = manifest.identity.row_key
        self.states = bytearray(manifest.rows)
        """Per row: 0 to do, 1 answered, 2 an error row."""
        self.counts = Counts()
        self._segments: list[str] = []
        self._next = 1
        self._adopt()

    @classmethod
    def claim(cls, folder: Folder, manifest: Manifest) -> Job:
        """Take over the folder: from now on no earlier attempt can commit."""
        while True:
            with folder.locked():
                attempt = _next_attempt(folder)
                raw = {"adopted": {str(token): last for token, last in attempt.adopted.items()}}
                try:
                    folder.create_only(_attempt_name(attempt.token), orjson.dumps(raw))
                except FileExistsError:
                    # Another attempt took this token meanwhile: take the next.
                    continue
            return cls(folder, manifest, attempt)

    @property
    def done(self) -> int:
        """Rows that need no more work."""
        return self.counts.ok + self.counts.failed

    def reopen_failed(self) -> None:
        """Make error rows rows to do again."""
        self.states = self.states.replace(b"\2", b"\0")
        self.counts.failed = 0

    def pending(self, rows: Iterable[int] | None = None) -> Iterator[int]:
        """Rows to do, in the order of ``rows``: that of the input unless one is given."""
        if rows is not None:
            states = self.states
            yield from (row for row in rows if not states[row])
            return
        row = self.states.find(0)
        while row >= 0:
            yield row
            row = self.states.find(0, row + 1)

    def commit(self, buffer: SegmentBuffer) -> None:
        """Make the buffer's rows count. Raises :class:`Superseded`, and OSError when storage is full."""
        name = f"{_SEGMENT}{self.attempt.token:06d}-{self._next:08d}"
        local = self.folder.work / f".tmp-{name}"
        try:
            buffer.write(local)
            with self.folder.locked():
                self.check_token()
                self.folder.publish(local, name)
        finally:
            local.unlink(missing_ok=True)
        self._next += 1
        self._segments.append(name)

    def check_token(self) -> None:
        """Raise :class:`Superseded` when a later attempt has claimed the folder."""
        if self.folder.exists(_attempt_name(self.attempt.token + 1)) or not self.folder.exists(
            _attempt_name(self.attempt.token)
        ):
            raise Superseded(
                f"Attempt {self.attempt.token} at this batch was superseded by a later one.",
                what_to_do="Leave it to the later attempt; what this one committed before it began counts.",
                still_running="The later attempt goes on.",
            )

    def segments(self) -> Iterator[tuple[str, Path]]:
        """Name and local path of every segment that counts, oldest first."""
        for name in self._segments:
            yield name, self.folder.fetch(name)

    def committed(self) -> int:
        """Rows in segments that count: those a next attempt will find done."""
        found = bytearray(self.manifest.rows)
        for _, path in self.segments():
            footer = read_footer(path)
            for row in footer.rows if footer is not None else ():
                found[row & ~FAILED] = 1
        return found.count(1)

    def forget(self, segment: str) -> None:
        """Drop a damaged segment: its rows are to do again."""
        self.folder.remove(segment)
        self._segments.remove(segment)
        self._recount()

    def _adopt(self) -> None:
        for name in self.folder.names():
            if not name.startswith(_SEGMENT):
                continue
            token, number = _segment_numbers(name)
            if number <= self.attempt.adopted.get(token, 0):
                self._segments.append(name)
            else:
                # Committed by an attempt that had lost its claim.
                self.folder.remove(name)
        self._recount()

    def _recount(self) -> None:
        self.states = bytearray(self.manifest.rows)
        self.counts = Counts()
        states = self.states
        for name, path in list(self.segments()):
            footer = read_footer(path)
            if footer is None:
                # Torn, so never whole: its rows are to do.
                self.folder.remove(name)
                self._segments.remove(name)
                continue
            self.counts.add(footer.counts)
            for row in footer.rows:
                if row < FAILED:
                    states[row] = 1
                else:
                    states[row - FAILED] = 2
        # A row may be in two segments, once failed and once answered: the later one counts.
        self.counts.ok, self.counts.failed = states.count(1), states.count(2)


def reopen(parts: Folder, manifest: Manifest, summary: BatchSummary, output: Path) -> None:
    """Fill the folder with the output's rows as committed segments, and its manifest last.

    :param output: a local copy of the finished output.
    """
    job = Job.claim(parts, manifest)
    buffer = SegmentBuffer()
    buffer.counts.prompt_tokens = summary.prompt_tokens
    buffer.counts.completion_tokens = summary.completion_tokens
    buffer.counts.seconds = summary.seconds
    with output.open("rb") as file:
        for row, line in enumerate(file):
            buffer.add(row, line.rstrip(b"\n"), failed=orjson.loads(line)["error"] is not None)
            if len(buffer.lines) == _REOPENED_ROWS:
                job.commit(buffer)
                buffer = SegmentBuffer()
    if buffer.lines:
        job.commit(buffer)
    manifest.write(parts)


def _next_attempt(folder: Folder) -> Attempt:
    names = folder.names()
    tokens = [int(name[len(_ATTEMPT) : -len(".json")]) for name in names if name.startswith(_ATTEMPT)]
    last = max(tokens, default=0)
    if not last:
        return Attempt(1, {})
    raw = orjson.loads(folder.read(_attempt_name(last)))
    adopted = {int(token): number for token, number in raw["adopted"].items()}
    numbers = [
        number
        for token, number in (_segment_numbers(name) for name in names if name.startswith(_SEGMENT))
        if token == last
    ]
    return Attempt(last + 1, {**adopted, last: max(numbers, default=0)})


def _attempt_name(token: int) -> str:
    return f"{_ATTEMPT}{token:06d}.json"


def _segment_numbers(name: str) -> tuple[int, int]:
    token, number = name[len(_SEGMENT) :].split("-")
    return int(token), int(number)
