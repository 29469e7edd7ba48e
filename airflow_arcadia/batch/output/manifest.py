"""The manifest of a batch's folder: its input, model and parameters, and the names of derived files."""

from __future__ import annotations

import hashlib
import uuid
from dataclasses import asdict, dataclass
from typing import Any

import orjson

from airflow_arcadia.batch.spec import BatchSpec
from airflow_arcadia.batch.storage import Folder, write

JOB = "job.json"


@dataclass(frozen=True)
class Identity:
    """Two batches are the same if these are equal. An empty ``model`` is not known yet."""

    input: str
    model: str
    parameters: str

    @classmethod
    def of(cls, spec: BatchSpec, digest: str, model: str) -> Identity:
        """The identity of a spec with the digest of its input.

        :param model: name the rows are sent to, as far as it is known.
        """
        columns = list(spec.columns_as_parameters)
        shape: list[Any] = [
            spec.prompt_column,
            spec.prompt_template,
            spec.prompt_as,
            spec.input_format,
            columns,
        ]
        if spec.response_schema is not None:
            shape.append(dict(spec.response_schema))
        text = orjson.dumps([dict(spec.parameters), shape], option=orjson.OPT_SORT_KEYS)
        limit = "" if spec.limit is None else f"-{spec.limit}"
        model = spec.model_identity or model
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
        """Key of the rows' ids: what they depend on besides position and content."""
        return hashlib.blake2b(f"{self.model}\0{self.parameters}".encode(), digest_size=16).digest()


@dataclass(frozen=True)
class Manifest:
    """``job.json``.

    :param stamp: of the input when it was scanned; while it is the same the input is not read again.
    :param epoch: random, new at each start from nothing: segments of another epoch never count.
    """

    identity: Identity
    rows: int
    digest: str
    stamp: str
    limit: int | None
    epoch: str = ""

    @classmethod
    def read(cls, folder: Folder) -> Manifest | None:
        """The folder's manifest; None when there is none."""
        try:
            raw = orjson.loads(folder.read(JOB))
        except (FileNotFoundError, NotADirectoryError):
            return None
        return cls(**{**raw, "identity": Identity(**raw["identity"])})

    def write(self, folder: Folder) -> None:
        """Write the folder's manifest."""
        write(folder, JOB, orjson.dumps(asdict(self), option=orjson.OPT_INDENT_2))

    @property
    def index(self) -> str:
        """Name of the file with where each row starts; see :mod:`~airflow_arcadia.batch.input.row_index`."""
        return f"index-{self._key}"

    @property
    def copy(self) -> str:
        """Name of the copy of the rows, for an input that is not read in place."""
        return f"rows-{self._key}"

    @property
    def order(self) -> str:
        """Name of the file with the order to send the rows in."""
        return f"order-{self._key}"

    @property
    def _key(self) -> str:
        # Derived files carry the digest of their input: used with another one, they would mix up rows.
        return self.identity.input


def new_epoch() -> str:
    """An epoch that no other attempt has."""
    return uuid.uuid4().hex
