"""Renders ``prompt_template`` in a process of its own, within limits of time, memory and output.

Whoever writes a template need not be trusted with the process that runs the batch, which may be the server
itself. Jinja's sandbox keeps the template from running code, and the kernel keeps it from the processor and
the memory: an endless loop or an enormous text ends the child, and is an error of the row.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson

SECONDS = 1.0
"""Longest rendering of one row."""
MEMORY_BYTES = 2**30
MAX_CHARS = 64 * 2**20
"""Of a prompt: as long as a row may be."""
_CHILD = Path(__file__).with_name("template_child.py")


class TemplateError(Exception):
    """The template cannot be compiled, or fails on a row."""


class TemplateProcess:
    """One template and the process that renders it, which threads may share.

    ``names`` are the names it reads.

    :param text: Jinja source.
    :param seconds: limit of one rendering.

    Raises :class:`TemplateError` when the template is not valid.
    """

    def __init__(self, text: str, seconds: float = SECONDS) -> None:
        self._text, self._seconds = text, seconds
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = self._start()

    def render(self, row: Mapping[str, Any]) -> str:
        """The prompt; it blocks for as long as one rendering may take. Raises :class:`TemplateError`."""
        try:
            data = orjson.dumps(row)
        except orjson.JSONEncodeError as error:
            raise TemplateError(f"the row cannot be passed on: {error}") from error
        with self._lock:
            if self._process is None:
                self._process = self._start()
            try:
                return _exchange(self._process, data)
            except (OSError, EOFError) as error:
                _end(self._process)
                self._process = None
                raise TemplateError(
                    f"it takes longer than {self._seconds:g} s, or more memory than there is"
                ) from error

    def _start(self) -> subprocess.Popen[bytes]:
        limits = [str(self._seconds), str(MEMORY_BYTES), str(MAX_CHARS)]
        process = subprocess.Popen(
            [sys.executable, "-I", str(_CHILD), *limits],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={},  # it needs none of this process's secrets
        )
        weakref.finalize(self, _end, process)
        try:
            self.names = frozenset(orjson.loads(_exchange(process, orjson.dumps(self._text))))
        except (OSError, EOFError) as error:
            _end(process)
            raise TemplateError(f"it takes longer than {self._seconds:g} s to compile") from error
        except TemplateError:
            _end(process)
            raise
        return process


def _exchange(process: subprocess.Popen[bytes], data: bytes) -> str:
    """Send one frame and read its answer. Raises :class:`TemplateError`, and EOFError at the child's end."""
    assert process.stdin is not None and process.stdout is not None  # noqa: S101, PT018 - both are pipes
    process.stdin.write(len(data).to_bytes(4, "big") + data)
    process.stdin.flush()
    length = process.stdout.read(4)
    answer = process.stdout.read(int.from_bytes(length, "big"))
    if not answer:
        raise EOFError
    told = json.loads(answer)  # orjson refuses lone surrogates, which a template may yield
    if "error" in told:
        raise TemplateError(told["error"])
    return str(told["text"])


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.communicate()
