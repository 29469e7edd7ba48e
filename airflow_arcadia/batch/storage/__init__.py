"""Files that are either whole or absent, on a local disk and on any fsspec file system."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from airflow_arcadia.batch.storage.base import (
    Folder,
    is_local,
    remove_leftovers,
    resolve,
    shown,
    sync,
    temporary_path,
    write,
)
from airflow_arcadia.batch.storage.errors import StorageFullError, explain, explained, is_full
from airflow_arcadia.batch.storage.local import LocalFolder
from airflow_arcadia.batch.storage.remote import RemoteFolder

__all__ = [
    "Folder",
    "LocalFolder",
    "RemoteFolder",
    "explain",
    "explained",
    "folder_at",
    "full_storage",
    "is_full",
    "is_local",
    "open_folder",
    "remove_leftovers",
    "resolve",
    "shown",
    "sync",
    "temporary_path",
    "write",
]


def open_folder(uri: str) -> Folder:
    """The folder at ``uri``, which need not exist."""
    fs, path = resolve(uri)
    return folder_at(fs, path.rstrip("/") or path, uri.rstrip("/"))


def folder_at(fs: Any, path: str, uri: str) -> Folder:
    """The folder at a path of a file system; ``uri`` names it in messages."""
    return LocalFolder(Path(path)) if is_local(fs) else RemoteFolder(fs, path, uri)


def full_storage(folder: Folder, error: BaseException) -> str:
    """Which storage is full, as the begin of a sentence."""
    if isinstance(folder, LocalFolder) or isinstance(error, StorageFullError):
        return f"The storage of {folder.uri}"
    return f"The temporary directory {folder.work.parent} (TMPDIR)"
