"""Translate errors of storage libraries into errors that say what to do.

fsspec's file systems raise whatever their own libraries do (botocore, ftplib, azure, paramiko …), so that the
kind of failure is recognised by well-known types, errno, and names of classes.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator

from airflow_arcadia.exceptions import ArcadiaError, BatchError, BatchInputError

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_FORBIDDEN = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
_LIBRARIES = frozenset(
    {"aiobotocore", "aiohttp", "azure", "botocore", "ftplib", "gcsfs", "google", "paramiko", "requests"}
    | {"smbprotocol", "spnego", "urllib3", "webdav4", "httpx", "ssl"}
)
_CREDENTIALS = ("credential", "authentication", "profilenotfound", "logon", "tokenretrieval")
_WRONG_CREDENTIALS = ("access key id", "accesskeyid", "signature we calculated", "signaturedoesnotmatch")
"""What S3 says, which s3fs passes on as a PermissionError."""
_CONNECTION = ("connection", "connector", "timeout", "serverdisconnected", "gaierror")


class StorageFullError(OSError):
    """The remote storage takes no more bytes; a plain OSError like it is about the local disk."""


def is_full(error: BaseException) -> bool:
    """Whether the error says that a storage takes no more bytes."""
    return isinstance(error, OSError) and error.errno in _FULL


def explain(error: BaseException, what: str, still_running: str = "") -> ArcadiaError | None:
    """The error to raise for one that a storage library raised; None for an error of another kind.

    :param what: what could not be used, e.g. ``"The output s3://bucket/out.jsonl"``.
    """
    if isinstance(error, ArcadiaError) or not _is_storage_error(error):
        return None
    told = f"{error}".strip().partition("\n")[0] or type(error).__name__
    if refusal := _refusal(error, told):
        said, what_to_do = refusal
        return BatchInputError(f"{what} {said}.", what_to_do=what_to_do, still_running=still_running)
    if isinstance(error, ConnectionError) or _is_named(error, _CONNECTION):
        return BatchError(
            f"{what} cannot be reached: {told}.",
            what_to_do="Check the network and the storage's address; another attempt resumes from here.",
            still_running=still_running,
        )
    return BatchError(
        f"{what} cannot be used: {type(error).__name__}: {told}.",
        what_to_do="Correct what the message names; another attempt resumes from here.",
        still_running=still_running,
    )


def _refusal(error: BaseException, told: str) -> tuple[str, str] | None:
    """What is wrong and what to do, for an error that another attempt cannot fix."""
    number = error.errno if isinstance(error, OSError) else None
    wrong = any(word in told.lower() for word in _WRONG_CREDENTIALS)
    if wrong or _is_named(error, _CREDENTIALS) or told.startswith("530 "):
        return (
            f"cannot be opened, for the credentials are missing or wrong: {told}",
            "Give this process the storage's credentials, by environment or configuration file; a task of "
            "Airflow's takes those of the connection that storage_conn_id names.",
        )
    if isinstance(error, PermissionError) or number in _FORBIDDEN or "AccessDenied" in told:
        return f"may not be used: {told}", "Correct the rights on it, or use another place."
    if number == errno.ENAMETOOLONG:
        return "has a name that is too long for its storage", "Use a shorter name."
    if isinstance(error, (FileNotFoundError, NotADirectoryError, IsADirectoryError)):
        return f"cannot be found: {told}", "Correct the path."
    return None


def _is_named(error: BaseException, words: tuple[str, ...]) -> bool:
    names = " ".join(cls.__name__ for cls in type(error).__mro__).lower()
    return any(word in names for word in words)


@contextlib.contextmanager
def explained(what: str, still_running: str = "") -> Iterator[None]:
    """Raise storage errors of the block as :func:`explain` words them."""
    try:
        yield
    except Exception as error:
        told = explain(error, what, still_running)
        if told is None:
            raise
        raise told from error


def _is_storage_error(error: BaseException) -> bool:
    return isinstance(error, OSError) or any(
        cls.__module__.partition(".")[0] in _LIBRARIES for cls in type(error).__mro__
    )
