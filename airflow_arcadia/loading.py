"""How far a worker's model is loaded, read from the lines of vLLM's log. Pure.

The stages only go forward: with tensor parallelism every rank writes the same lines, one after another.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

WEIGHTS, WARM_UP, LISTENING = "loading the weights", "warming up the engine", "starting the server"

_STAGES = (WEIGHTS, WARM_UP, LISTENING)
_SIGNS = (
    (WEIGHTS, re.compile(r"Starting to load model|checkpoint shards:\s+(?P<percent>\d+)% Completed")),
    (WARM_UP, re.compile(r"Loading weights took|Model loading took|Warming up|KV cache size")),
    (WARM_UP, re.compile(r"Capturing CUDA graphs.*?:\s+(?P<percent>\d+)%\|")),
    (LISTENING, re.compile(r"init engine .*took|Starting vLLM server|Started server process")),
)


class Loading:
    """The stage that the log's lines have reached; its text is empty before the first one."""

    def __init__(self, lines: Iterable[str] = ()) -> None:
        self._stage = -1
        self._percent: int | None = None
        for line in lines:
            self.read(line)

    def read(self, line: str) -> None:
        """Take the next line of the log."""
        for stage, sign in _SIGNS:
            if (found := sign.search(line)) is None:
                continue
            place = _STAGES.index(stage)
            percent = found.groupdict().get("percent")
            if place > self._stage:
                self._stage, self._percent = place, None
            if place == self._stage and percent is not None:
                # A second rank, or a second kind of graph, begins at 0 again.
                self._percent = max(int(percent), self._percent or 0)

    def __str__(self) -> str:
        """E.g. ``loading the weights (50 %)``."""
        if self._stage < 0:
            return ""
        told = _STAGES[self._stage]
        return told if self._percent is None else f"{told} ({self._percent} %)"
