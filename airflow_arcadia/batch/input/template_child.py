"""The process in which a prompt's template is rendered; started by :mod:`.template_process` by its path.

It imports nothing of the package, to start fast. Frames on its standard input and output are four bytes of
length, big-endian, and JSON in UTF-8. The first frame is the template, each later one a row. Each has one
answer: ``{"text": …}`` or ``{"error": …}``; of the template, the names that it reads. A row that
takes too long ends the process by a signal.
"""

from __future__ import annotations

import ctypes
import json
import resource
import signal
import sys
from collections.abc import Callable
from typing import Any, BinaryIO

import jinja2
import jinja2.meta
from jinja2.sandbox import SandboxedEnvironment

_PR_SET_PDEATHSIG = 1  # prctl(2)


def main(seconds: float, memory_bytes: int, most_chars: int) -> None:
    """Serve frames until the input ends."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    for limit, value in ((resource.RLIMIT_AS, memory_bytes), (resource.RLIMIT_CORE, 0)):
        resource.setrlimit(limit, (value, value))
    # Its default action ends the process at once, whatever the template is doing.
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    template: list[jinja2.Template] = []

    def compile_template(text: Any) -> str:
        environment = SandboxedEnvironment(undefined=jinja2.StrictUndefined)
        template.append(environment.from_string(text))
        names = jinja2.meta.find_undeclared_variables(environment.parse(text))
        return json.dumps(sorted(names))

    def render(row: Any) -> str:
        text = template[0].render(row)
        if len(text) > most_chars:
            raise ValueError(f"the prompt has more than {most_chars} characters")
        return text

    if _answer(source, sink, compile_template, seconds):
        while _answer(source, sink, render, seconds):
            pass


def _answer(source: BinaryIO, sink: BinaryIO, work: Callable[[Any], str], seconds: float) -> bool:
    """Read one frame and answer it; False when there is none."""
    length = source.read(4)
    if len(length) < 4:
        return False
    value = json.loads(source.read(int.from_bytes(length, "big")))
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        answer = {"text": work(value)}
    except MemoryError:
        answer = {"error": "it takes too much memory"}
    except Exception as error:  # noqa: BLE001 - the template runs over the row's own data
        told = f"{type(error).__name__}: {error}"[:500]
        answer = {"error": told.encode(errors="replace").decode()}
    signal.setitimer(signal.ITIMER_REAL, 0)
    data = json.dumps(answer).encode()
    sink.write(len(data).to_bytes(4, "big") + data)
    sink.flush()
    return True


if __name__ == "__main__":
    main(float(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
