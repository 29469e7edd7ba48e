"""``make demo``: run the shipped DAG through Airflow on a real model, and tell what was seen.

Two logical GPUs of a local Ray cluster, a tensor-parallel worker over both, FastChat's own controller. Exits
0 only if every row was answered, both ranks were seen and nothing was left behind.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from airflow_arcadia.lease_store import LeaseStore
from airflow_arcadia.processes import end, mark
from demo import local, progress, report
from demo.observer import Observer

_GRACE_S = 10.0
_QUIET_S = 10.0  # seconds without news after which a line says that it goes on


@dataclass
class Demo:
    """One run: its folders, its ports and what it started.

    :param folder: where output, logs and Airflow's home go.
    :param state: where the leases are. Short, because the paths of Ray's sockets are below it.
    """

    folder: Path
    model: Path
    prompts: Path
    max_tokens: int
    state: Path
    run: progress.Run = field(default_factory=lambda: progress.Run(time.time()))

    def __post_init__(self) -> None:
        self.owner = f"demo-{self.state.name}"
        self.output = self.folder / "answers.jsonl"
        self.store = LeaseStore(self.state)
        self.controller, self.gcs, self.dashboard = local.free_ports(3)

    @property
    def params(self) -> dict[str, Any]:
        """What a user would fill into the DAG's form."""
        return {
            "model": str(self.model),
            "num_gpus": local.NUM_GPUS,
            "ray_cluster": "0",
            "create_ray_cluster": "if_missing",
            "input": str(self.prompts),
            "output": str(self.output),
            "max_tokens": self.max_tokens,
            "temperature": 0.0,
            "max_model_len": 1024,
            "max_num_seqs": 64,
            "dtype": "bfloat16",
            "extra_args": local.EXTRA_ARGS,
        }

    def prepare(self) -> dict[str, str]:
        """Folders as for a first run, a controller, Airflow's database; returns Airflow's environment."""
        self.folder.mkdir(parents=True, exist_ok=True)
        # All of an earlier run but Airflow's home: making its database takes seconds.
        for path in self.folder.iterdir():
            if path.name != "airflow":
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        config = self.folder / "arcadia-config.yaml"
        local.write_arcadia_config(config, controller=self.controller, gcs=self.gcs, dashboard=self.dashboard)
        log = self.folder / "controller.out"
        process = local.start_controller(self.controller, self.owner, log)
        connection = json.dumps(local.arcadia_connection(config, self.state))
        env = local.airflow_environment(self.folder / "airflow") | {
            "AIRFLOW_CONN_ARCADIA_DEFAULT": connection
        }
        local.migrate(env, self.folder / "airflow-db.log")
        local.wait_for_controller(self.controller, process, log)
        return env | {"AIRFLOW__LOGGING__JSON_LOGS": "True"}

    def answer(self, env: dict[str, str]) -> int:
        """Run the DAG and show where it is; returns Airflow's exit status."""
        argv = [str(local.AIRFLOW), "dags", "test", local.DAG_ID, "--conf", json.dumps(self.params)]
        self.run = progress.Run(time.time())
        with (self.folder / "airflow.log").open("w", encoding="utf-8") as log:
            process = subprocess.Popen(
                argv,
                env=env | mark(self.owner, "service/airflow"),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                start_new_session=True,
            )
            assert process.stdout is not None  # noqa: S101 - a pipe was asked for
            for line in process.stdout:
                log.write(line)
                before, self.run = self.run, progress.read(self.run, line)
                _tell(before, self.run)
        status = process.wait()
        self.run = progress.finish(self.run, time.time())
        return status

    def end(self) -> list[str]:
        """End whatever still runs of it; returns what cannot be ended."""
        left = end(None, self.owner, grace_s=0)
        return left + local.end_leases(self.store)


def _tell(before: progress.Run, after: progress.Run) -> None:
    if after.step and after.step != before.step:
        say(f"{after.step} …")
    for name, seconds in after.phases.items():
        if name not in before.phases:
            say(f"{name}: {seconds:.1f} s")
    if after.rows and after.rows != before.rows:
        say(f"  {progress.line_of(after.rows)}")
    for error in after.errors[len(before.errors) :]:
        say(f"FAILED {error}")


def say(text: str) -> None:
    """One line of progress."""
    print(f"demo: {text}", flush=True)


@contextmanager
def short_folder() -> Iterator[Path]:
    """A folder with a short path, gone afterwards."""
    path = Path(tempfile.mkdtemp(prefix="arc-", dir="/tmp"))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def run(options: argparse.Namespace) -> int:
    """The whole demo; returns the exit status."""
    with short_folder() as state:
        demo = Demo(options.folder, options.model, options.input, options.max_tokens, state)
        observer = Observer(
            f"http://127.0.0.1:{demo.dashboard}",
            demo.store,
            models=lambda: local.controller_models(demo.controller),
            serving=lambda: demo.run.step == "answer",
        )
        try:
            say(
                f"{local.DAG_ID} on {demo.model.name}, {local.NUM_GPUS} GPUs; "
                f"logs and output in {demo.folder}"
            )
            env = demo.prepare()
            observer.start()
            status = demo.answer(env)
            seen = observer.stop()
            left = observer.leftovers()
        finally:
            demo.end()
        answers = report.count(_read(demo.prompts), _read(demo.output))
        summary = report.summarise(answers, seen, demo.run.phases, left)
        (demo.folder / "summary.json").write_text(json.dumps(summary, indent=2), encoding="utf-8")
        print(report.table(summary, answers, str(demo.output)))
        found = report.problems(
            summary, wanted_size=local.NUM_GPUS, model=demo.model.name, airflow_status=status
        )
    for text in (*demo.run.errors, *found):
        print(f"demo: PROBLEM {text}", file=sys.stderr)
    return 1 if found else 0


def _read(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m demo.run", description=__doc__)
    parser.add_argument("--folder", type=Path, default=local.ROOT / "var" / "demo")
    parser.add_argument("--model", type=Path, default=local.MODEL, help="folder of the model")
    parser.add_argument("--input", type=Path, default=local.PROMPTS, help="rows, as JSON Lines")
    parser.add_argument("--max-tokens", type=int, default=48)
    options = parser.parse_args()
    # As Ctrl-C: everything that was started is ended.
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        return run(options)
    except local.LocalError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("demo: interrupted; everything it started was ended", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
