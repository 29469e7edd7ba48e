"""The folder of an unfinished batch: which attempt may commit, and which rows are done.

Beside the output lies the hidden folder ``.<name>.parts``:

- ``job.json``: input, model and parameters this folder belongs to
  (:class:`~airflow_arcadia.batch.output.manifest.Manifest`),
- ``index-<digest>`` and, unless the input is a plain local file, ``rows-<digest>``: see
  :mod:`~airflow_arcadia.batch.input.row_index`,
- ``order-<digest>``: the order to send the rows in, unless it is the input's,
- ``attempt-<token>.json``: one per attempt; the highest token is the only one that may commit. It lists what
  it found committed, so that a segment which an earlier attempt commits afterwards never counts,
- ``seg-<token>-<nonce>-<number>``: committed rows,
- ``suspects.json``: rows that may kill the engine, see :mod:`~airflow_arcadia.batch.output.suspect_notes`.

The token is the fencing token. It only increases while the folder exists; the nonce distinguishes attempts
that got the same token because the folder was removed in between, or because the store ignores the condition
"write only if absent".
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import orjson

from airflow_arcadia.batch.openai_format import is_answered
from airflow_arcadia.batch.output.manifest import Manifest
from airflow_arcadia.batch.output.segments import FAILED, Counts, Footer, SegmentBuffer, footer_of
from airflow_arcadia.batch.spec import BatchSummary
from airflow_arcadia.batch.storage import Folder, temporary_path
from airflow_arcadia.exceptions import BatchError, BatchInputError

log = logging.getLogger(__name__)

_ATTEMPT, _SEGMENT = "attempt-", "seg-"
_REOPENED_ROWS = 4096
"""Rows in a segment of a finished batch that is opened again."""


class Superseded(BatchError):
    """Another attempt has claimed the batch, so that this one may not commit any more."""

    retryable = False


class FolderRemoved(Superseded):
    """Another attempt finished the batch and removed the folder: another run finds its result."""

    retryable = True


@dataclass(frozen=True)
class Attempt:
    """One attempt at the batch.

    :param token: its number in this folder, from 1; the fencing token.
    :param nonce: random; its own alone.
    :param epoch: of the manifest it works for.
    :param number: how many attempts there were for that manifest, this one included.
    :param adopted: ``<token>-<nonce>`` of an earlier attempt → number of its last segment that counts.
    """

    token: int
    nonce: str
    epoch: str
    number: int
    adopted: dict[str, int]

    @property
    def series(self) -> str:
        """What its segments' names begin with."""
        return f"{self.token:06d}-{self.nonce}"


class Job:
    """One attempt at a batch, which has claimed the batch's folder.

    :param check_input: raises when the rows are no longer those that were scanned; called before each
        commit.
    """

    def __init__(
        self,
        folder: Folder,
        manifest: Manifest,
        attempt: Attempt,
        check_input: Callable[[], None] = lambda: None,
    ) -> None:
        self.folder = folder
        self.manifest = manifest
        self.attempt = attempt
        self.check_input = check_input
        self.row_key = manifest.identity.row_key
        self.states = bytearray(manifest.rows)
        """Per row: 0 pending, 1 answered, 2 error row."""
        self.counts = Counts()
        self._segments: dict[str, int] = {}
        """Name → bytes of every segment that counts, oldest first."""
        self._next = 1
        self._adopt()

    @classmethod
    def claim(cls, folder: Folder, manifest: Manifest, check_input: Callable[[], None] = lambda: None) -> Job:
        """Claim the folder: from now on no earlier attempt can commit.

        Committed rows are kept if they were committed for the same epoch of the manifest.
        """
        if not folder.is_exclusive():
            log.warning(
                "%s cannot write a file only if it is absent: if two attempts start at the same moment, "
                "the one that claims the folder last continues and the other one ends",
                folder.uri,
            )
        while True:
            with folder.locked():
                attempt = _next_attempt(folder, manifest.epoch)
                try:
                    folder.create_only(_attempt_name(attempt.token), orjson.dumps(asdict(attempt)))
                except FileExistsError:
                    # Another attempt took this token meanwhile: take the next.
                    continue
            return cls(folder, manifest, attempt, check_input)

    @property
    def done(self) -> int:
        """Number of rows that are answered or failed for good."""
        return self.counts.ok + self.counts.failed

    def reopen_failed(self) -> None:
        """Mark error rows as pending again."""
        self.states = self.states.replace(b"\2", b"\0")
        self.counts.failed = 0

    def pending(self, rows: Iterable[int] | None = None) -> Iterator[int]:
        """Numbers of the pending rows, in the order of ``rows``; without one, in that of the input."""
        if rows is not None:
            states = self.states
            yield from (row for row in rows if not states[row])
            return
        row = self.states.find(0)
        while row >= 0:
            yield row
            row = self.states.find(0, row + 1)

    def commit(self, buffer: SegmentBuffer) -> None:
        """Make the buffer's rows count.

        Raises :class:`Superseded`, what ``check_input`` raises, and what the storage raises. Idempotent: a
        commit that failed may be tried again.
        """
        name = f"{_SEGMENT}{self.attempt.series}-{self._next:08d}"
        local = temporary_path(self.folder, name)
        try:
            buffer.write(local)
            size = local.stat().st_size
            self.check_input()
            with self.folder.locked():
                self.check_token()
                self.folder.publish(local, name)
        except FileNotFoundError as error:
            # Another attempt finished the batch, and removed the folder.
            if self._holds():
                raise
            raise self._lost() from error
        finally:
            local.unlink(missing_ok=True)
        self._next += 1
        self._segments[name] = size

    def check_token(self) -> None:
        """Raise :class:`Superseded` when another attempt has claimed the folder, or has removed it."""
        if self.folder.exists(_attempt_name(self.attempt.token + 1)) or not self._holds():
            raise self._lost()

    def segments(self) -> Iterator[tuple[str, Path]]:
        """Name and local path of every segment that counts, oldest first."""
        names = list(self._segments)
        yield from zip(names, self.folder.each(self.folder.fetch, names), strict=True)

    def committed(self) -> int:
        """Number of rows in committed segments, which the next attempt will find done."""
        found = bytearray(self.manifest.rows)
        for _, footer in self._footers():
            for row in footer.rows if footer is not None else ():
                found[row & ~FAILED] = 1
        return found.count(1)

    def forget(self, segment: str) -> None:
        """Drop a damaged segment; its rows are pending again."""
        self.folder.remove(segment)
        del self._segments[segment]
        self._recount()

    def _adopt(self) -> None:
        late = []
        for name, size in self.folder.sizes().items():
            if not name.startswith(_SEGMENT):
                continue
            series, number = _segment_series(name)
            if number <= self.attempt.adopted.get(series, 0):
                self._segments[name] = size
            elif series < self.attempt.series:
                # Committed for another job, or by an attempt that had lost its claim.
                late.append(name)
        self.folder.each(self.folder.remove, late)
        self._recount()

    def _recount(self) -> None:
        self.states = bytearray(self.manifest.rows)
        self.counts = Counts()
        states = self.states
        for name, footer in self._footers():
            if footer is None:
                # Torn: its rows are pending.
                self.folder.remove(name)
                del self._segments[name]
                continue
            self.counts.add(footer.counts)
            for row in footer.rows:
                if row < FAILED:
                    states[row] = 1
                else:
                    states[row - FAILED] = 2
        # A row may be in two segments, once failed and once answered: the later one counts.
        self.counts.ok, self.counts.failed = states.count(1), states.count(2)

    def _footers(self) -> list[tuple[str, Footer | None]]:
        """Footers of all segments; at the same time, and without the rows, where the storage can."""

        def read(name: str) -> Footer | None:
            return footer_of(
                lambda start, end: self.folder.read_range(name, start, end), self._segments[name]
            )

        names = list(self._segments)
        return list(zip(names, self.folder.each(read, names), strict=True))

    def _holds(self) -> bool:
        """Whether this attempt wrote the file of its token."""
        found = _read_attempt(self.folder, self.attempt.token)
        return found is not None and found.nonce == self.attempt.nonce

    def _lost(self) -> Superseded:
        if not self.folder.sizes():
            return FolderRemoved(
                "Another attempt finished this batch meanwhile.",
                what_to_do="Run the batch again: it returns the result, or starts over as on_change says.",
                still_running="The output of the other attempt is complete.",
            )
        return Superseded(
            f"Attempt {self.attempt.token} at this batch was superseded by another one.",
            what_to_do="Wait for the other attempt; make sure that only one task writes this output.",
            still_running="The other attempt is running, or has finished the batch.",
        )


def current_manifest(folder: Folder) -> Manifest | None:
    """The manifest of an unfinished batch; None without one.

    One without any attempt does not count: it was written in the moment in which another attempt finished
    the batch and removed the folder.
    """
    manifest = Manifest.read(folder)
    if manifest is None or not any(name.startswith(_ATTEMPT) for name in folder.sizes()):
        return None
    return manifest


def counted_segments(folder: Folder) -> dict[str, int]:
    """Name and bytes of each segment that counts for the latest attempt, oldest first; claims nothing."""
    names = folder.sizes()
    attempt = _read_attempt(folder, _last_token(names))
    if attempt is None:
        return {}
    return {name: size for name, size in names.items() if _counts(name, attempt)}


def reopen(parts: Folder, manifest: Manifest, summary: BatchSummary, output: Path) -> None:
    """Turn a finished batch into an unfinished one: commit the output's rows, then write the manifest.

    :param output: a local copy of the finished output.

    Raises :class:`BatchInputError` for an output that is not one of a batch.
    """
    job = Job.claim(parts, manifest)
    buffer = SegmentBuffer()
    buffer.counts.prompt_tokens = summary.prompt_tokens
    buffer.counts.completion_tokens = summary.completion_tokens
    buffer.counts.seconds = summary.seconds
    rows = 0
    with output.open("rb") as file:
        for row, line in enumerate(file):
            buffer.add(row, line.rstrip(b"\n"), failed=not _is_answered(line, row, output))
            rows += 1
            if len(buffer.rows) == _REOPENED_ROWS:
                job.commit(buffer)
                buffer = SegmentBuffer()
    if buffer.rows:
        job.commit(buffer)
    if rows != manifest.rows:
        raise _not_an_output(output, f"it has {rows} rows, not {manifest.rows}")
    manifest.write(parts)


def _is_answered(line: bytes, row: int, output: Path) -> bool:
    try:
        return is_answered(orjson.loads(line))
    except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise _not_an_output(output, f"line {row + 1} is not one of a batch's output") from error


def _not_an_output(output: Path, why: str) -> BatchInputError:
    return BatchInputError(
        f"The failed rows of {output} cannot be sent again: {why}.",
        what_to_do="Restore the output as the batch wrote it, or run the batch with overwrite.",
        still_running="The output is as it was.",
    )


def _next_attempt(folder: Folder, epoch: str) -> Attempt:
    names = folder.sizes()
    last = _last_token(names)
    before = _read_attempt(folder, last) if last else None
    nonce = uuid.uuid4().hex[:12]
    if before is None or before.epoch != epoch:
        return Attempt(last + 1, nonce, epoch, 1, {})
    series = (_segment_series(name) for name in names if name.startswith(_SEGMENT))
    committed = max((number for found, number in series if found == before.series), default=0)
    adopted = {**before.adopted, before.series: committed}
    return Attempt(last + 1, nonce, epoch, before.number + 1, adopted)


def _last_token(names: Iterable[str]) -> int:
    """The highest token that an attempt has taken; 0 without one."""
    tokens = (int(name[len(_ATTEMPT) : -len(".json")]) for name in names if name.startswith(_ATTEMPT))
    return max(tokens, default=0)


def _counts(name: str, attempt: Attempt) -> bool:
    """Whether a file is a segment that the attempt wrote or adopted."""
    if not name.startswith(_SEGMENT):
        return False
    series, number = _segment_series(name)
    return series == attempt.series or number <= attempt.adopted.get(series, 0)


def _read_attempt(folder: Folder, token: int) -> Attempt | None:
    try:
        return Attempt(**orjson.loads(folder.read(_attempt_name(token))))
    except (FileNotFoundError, orjson.JSONDecodeError, TypeError):
        return None


def _attempt_name(token: int) -> str:
    return f"{_ATTEMPT}{token:06d}.json"


def _segment_series(name: str) -> tuple[str, int]:
    series, _, number = name[len(_SEGMENT) :].rpartition("-")
    return series, int(number)
