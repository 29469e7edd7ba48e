"""One seed of chaos: a batch, its endpoints, the faults around it, and the check of its output."""

from __future__ import annotations

import asyncio
import json
import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from airflow_arcadia.batch import BatchSpec
from tests.batch.chaos.attempt import DONE, ENDED, KILLED, attempt
from tests.batch.fake_engine import FakeEngine, serving
from tests.batch.forking import CONTEXT

FAULTS = ("kill", "drain", "gateway", "freeze", "poison", "restart", "reexport")
MOST_ATTEMPTS = 40
ATTEMPT_S = 90.0
"""An attempt that takes longer hangs."""


@dataclass
class Outcome:
    """What a seed gave."""

    seed: int
    faults: tuple[str, ...]
    rows: int = 0
    attempts: int = 0
    deaths: int = 0
    problems: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    """Rows that are ``lost``, ``doubled`` or ``wrong``."""


class ChaosEngine(FakeEngine):
    """Its answers depend on the row's parameters, so that two jobs' answers can be told apart."""

    def _body(self, path: str, body: dict[str, Any], text: str, words: int) -> dict[str, Any]:
        return super()._body(path, body, f"{text} seed {body.get('seed')}", words)


def answer_of(prompt: str, seed: int) -> str:
    return f"{prompt} seed {seed}".upper()


class Scenario:
    """One seed's batch, endpoints and faults."""

    def __init__(self, seed: int, folder: Path) -> None:
        self.rng = random.Random(seed)
        self.folder = folder
        chosen = self.faults_of(seed)
        self.outcome = Outcome(seed, chosen)
        self.prompts = [f"row {number} of {seed}" for number in range(self.rng.randrange(40, 160))]
        self.bad = {self.rng.randrange(len(self.prompts)): kind for kind in ("invalid_json", "no_prompt")}
        self.poison: set[int] = set()
        if "poison" in chosen:
            self.poison = {self.rng.randrange(len(self.prompts)) for _ in range(self.rng.randrange(1, 3))}
            self.poison -= self.bad.keys()
        self.job_seed = 1
        self.engines: list[ChaosEngine] = []
        self.gone: set[str] = set()
        (folder / "in.jsonl").write_bytes(self.content())

    @staticmethod
    def faults_of(seed: int) -> tuple[str, ...]:
        rng = random.Random(f"faults of {seed}")
        return tuple(fault for fault in FAULTS if rng.random() < 0.4) or (rng.choice(FAULTS),)

    def content(self, word: str = "") -> bytes:
        lines = [json.dumps({"custom_id": f"id-{n}", "prompt": word + p}) for n, p in enumerate(self.prompts)]
        for number, kind in self.bad.items():
            lines[number] = "{broken" if kind == "invalid_json" else json.dumps({"custom_id": f"id-{number}"})
        return "".join(line + "\n" for line in lines).encode()

    def spec(self) -> dict[str, Any]:
        spec = BatchSpec(
            str(self.folder / "in.jsonl"),
            str(self.folder / "out.jsonl"),
            "tiny",
            parameters={"seed": self.job_seed},
            max_in_flight=8,
            retry_base_s=0.01,
            segment_seconds=0.05,
            segment_rows=16,
            hang_timeout_s=0.5,
            request_timeout_s=20.0,
            endpoint_timeout_s=5.0,
            on_change="restart",
            ordering=self.rng.choice(("input", "prefix")),
        )
        return spec.to_dict()

    # -- the faults ------------------------------------------------------------------------------------

    async def inject(self) -> None:
        """All faults at endpoints and files, each at a random moment."""
        faults: dict[str, Callable[[ChaosEngine], Any]] = {
            "drain": self._drain,
            "gateway": self._gateway,
            "freeze": self._freeze,
            "reexport": self._reexport,
        }
        tasks = [
            asyncio.create_task(fault(self.rng.choice(self.engines)))
            for name, fault in faults.items()
            if name in self.outcome.faults
        ]
        await asyncio.gather(*tasks)

    async def _some_time(self, longest: float = 0.6) -> None:
        await asyncio.sleep(self.rng.uniform(0.05, longest))

    def _may_stay_away(self, engine: ChaosEngine) -> bool:
        """Whether the endpoint may be lost for good: another one must be left."""
        if self.rng.random() < 0.5 or len({*self.gone, engine.url}) == len(self.engines):
            return False
        self.gone.add(engine.url)
        return True

    async def _drain(self, engine: ChaosEngine) -> None:
        await self._some_time()
        engine.refusing = 503
        await self._some_time()
        await engine.stop()
        await self._some_time()
        if not self._may_stay_away(engine):
            engine.refusing = 0
            await engine.start()

    async def _gateway(self, engine: ChaosEngine) -> None:
        for _ in range(self.rng.randrange(1, 4)):
            await self._some_time()
            engine.refusing = self.rng.choice((502, 503, 504, 429))
            await self._some_time()
            engine.refusing = 0

    async def _freeze(self, engine: ChaosEngine) -> None:
        await self._some_time()
        engine.frozen = True
        engine.held = asyncio.Event()
        if not self._may_stay_away(engine):
            await self._some_time(1.5)
            engine.frozen = False
            engine.held.set()
            engine.held = None

    async def _reexport(self, _: ChaosEngine) -> None:
        path = self.folder / "in.jsonl"
        for _ in range(self.rng.randrange(1, 3)):
            await self._some_time()
            if self.rng.random() < 0.5:
                path.write_bytes(self.content("other "))
                await self._some_time(0.2)
            with path.open("wb") as file:
                content = self.content()
                file.write(content[: len(content) // 2])
                file.flush()
                await self._some_time(0.1)
                file.write(content[len(content) // 2 :])

    # -- the attempts ----------------------------------------------------------------------------------

    async def run(self) -> Outcome:
        """Until the batch is done and all faults are over, then check its output."""
        async with AsyncExitStack() as stack:
            for _ in range(self.rng.randrange(1, 4)):
                engine = await stack.enter_async_context(serving(ChaosEngine()))
                engine.takes_bundles = self.rng.random() < 0.6
                engine.delay = self.rng.uniform(0.0, 0.03)
                engine.poison = {self.prompts[number] for number in self.poison}
                engine.restart_s = self.rng.uniform(0.0, 0.2)
                self.engines.append(engine)
            injecting = asyncio.create_task(self.inject())
            try:
                done = await self._attempt_until_done(injecting)
            finally:
                await asyncio.gather(injecting, return_exceptions=True)
            for engine in self.engines:
                engine.frozen = False
            self.outcome.deaths = sum(engine.deaths for engine in self.engines)
        if done:
            self.check()
        return self.outcome

    async def _attempt_until_done(self, injecting: asyncio.Task[None]) -> bool:
        kills = self.rng.randrange(1, 5) if "kill" in self.outcome.faults else 0
        restart = "restart" in self.outcome.faults
        while self.outcome.attempts < MOST_ATTEMPTS:
            kill_at = self.rng.randrange(1, 40) if kills else 0
            kills = max(0, kills - 1)
            first = asyncio.create_task(self._attempt(kill_at))
            if restart:
                restart = False
                await self._some_time()
                # From here on this is the job, whatever becomes of the first.
                self.job_seed = 2
                await self._attempt(0)
                await first
                continue
            if await first == DONE:
                if injecting.done():
                    return True
                # It may have been done before the last fault: after that it is to be found done.
                await injecting
        told = (self.folder / "log").read_text()[-2000:]
        self.outcome.problems.append(f"not done after {MOST_ATTEMPTS} attempts: {told}")
        return False

    async def _attempt(self, kill_at: int) -> int:
        self.outcome.attempts += 1
        urls = [engine.url for engine in self.engines]
        log = self.folder / "log"
        process = CONTEXT.Process(target=attempt, args=(self.spec(), urls, kill_at, str(log)))
        process.start()
        deadline = asyncio.get_running_loop().time() + ATTEMPT_S
        while process.is_alive():
            if asyncio.get_running_loop().time() > deadline:
                process.kill()
                self.outcome.problems.append(f"an attempt hung for {ATTEMPT_S:.0f} s")
            await asyncio.sleep(0.01)
        code = process.exitcode
        if code not in {DONE, ENDED, KILLED}:
            told = log.read_text() if log.exists() else ""
            self.outcome.problems.append(f"an attempt ended with status {code}: {told[-2000:]}")
        return code if code is not None else -1

    # -- the output ------------------------------------------------------------------------------------

    def check(self) -> None:
        """Compare the output with the input, row by row."""
        lines = [json.loads(line) for line in (self.folder / "out.jsonl").read_text().splitlines()]
        self.outcome.rows = len(self.prompts)
        found = Counter(line["custom_id"] for line in lines)
        for number in range(len(self.prompts)):
            name = f"row-{number + 1}" if self.bad.get(number) == "invalid_json" else f"id-{number}"
            self.outcome.counts["lost"] += found[name] == 0
            self.outcome.counts["doubled"] += found[name] > 1
        if len(lines) != len(self.prompts):
            self.outcome.problems.append(f"{len(lines)} lines for {len(self.prompts)} rows")
            return
        for number, line in enumerate(lines):
            if wrong := self._what_is_wrong(number, line):
                self.outcome.counts["wrong"] += 1
                self.outcome.problems.append(f"row {number}: {wrong}")
        summary = json.loads((self.folder / "out.jsonl.summary.json").read_text())
        errors = len(self.bad) + len(self.poison)
        if (summary["ok"], summary["failed"]) != (len(self.prompts) - errors, errors):
            self.outcome.problems.append(f"the summary tells ok={summary['ok']} failed={summary['failed']}")
        if left := [path.name for path in self.folder.iterdir() if path.name.startswith(".")]:
            self.outcome.problems.append(f"left over: {left}")

    def _what_is_wrong(self, number: int, line: dict[str, Any]) -> str | None:
        expected = self.bad.get(number, "engine_died" if number in self.poison else None)
        if expected is not None:
            code = (line["error"] or {}).get("code")
            return None if code == expected else f"{code} instead of {expected}"
        if line["response"] is None:
            return f"error {line['error']}"
        if line["response"]["status_code"] != 200:
            return f"error {line['response']}"
        text = line["response"]["body"]["choices"][0]["text"]
        wanted = answer_of(self.prompts[number], self.job_seed)
        return None if text == wanted else f"{text!r} instead of {wanted!r}"


async def run_seed(seed: int) -> Outcome:
    """Run one seed in a folder of its own."""
    folder = Path(tempfile.mkdtemp(prefix=f"arcadia-chaos-{seed}-"))
    try:
        outcome = await Scenario(seed, folder).run()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return outcome
