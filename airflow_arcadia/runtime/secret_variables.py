"""Secrets that come as variables, where a launcher cannot mount files: moved to files at once.

A process hands its environment to all it starts, vLLM copies it to every Ray worker, and the kernel shows in
``/proc`` what a process was started with, whatever it has removed since. So the program starts anew without.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Mapping, Sequence

from airflow_arcadia.worker import BATCH_TOKEN_VARIABLE, VARIABLES

_FILES = {BATCH_TOKEN_VARIABLE: VARIABLES["batch_token_file"]}
"""Variable with a secret → the one with the path of its file."""


def start_anew_without_secrets(env: Mapping[str, str], arguments: Sequence[str]) -> None:
    """Return where there is none; else replace this process by the same program with files in their place.

    :param env: the process's environment.
    :param arguments: the program's, after ``python``.
    """
    if not any(variable in env for variable in _FILES):
        return
    cleaned = dict(env)
    for variable, file_variable in _FILES.items():
        if secret := cleaned.pop(variable, ""):
            cleaned[file_variable] = _write(secret)
    os.execve(sys.executable, [sys.executable, *arguments], cleaned)  # noqa: S606 - this very program


def _write(secret: str) -> str:
    """The path of a new file with the secret, which only this user can read."""
    descriptor, path = tempfile.mkstemp(prefix="arcadia-")
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(secret)
    return path
