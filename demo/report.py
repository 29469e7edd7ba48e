"""What a run was, as a table for a person and as ``summary.json`` for a program. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from demo.observer import Seen

SAMPLES = 3
_PROMPT_WIDTH = 76
_ANSWER_WIDTH = 160


@dataclass(frozen=True)
class Answers:
    """The output file, counted.

    :param tokens: completion tokens of all rows together.
    :param samples: (prompt, answer) of some rows.
    """

    rows: int
    ok: int
    tokens: int
    samples: tuple[tuple[str, str], ...]

    @property
    def failed(self) -> int:
        """Rows without an answer."""
        return self.rows - self.ok


def count(inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]) -> Answers:
    """Count the output's rows; both are in the same order."""
    ok, tokens = 0, 0
    pairs: list[tuple[str, str]] = []
    for asked, row in zip(inputs, outputs, strict=False):
        response = row.get("response") or {}
        body = response.get("body") or {}
        if row.get("error") is not None or response.get("status_code") != 200:
            continue
        ok += 1
        tokens += int((body.get("usage") or {}).get("completion_tokens") or 0)
        pairs.append((prompt_of(asked), answer_of(body)))
    # Spread over the file, not its first rows: the forms and topics differ.
    step = max(1, len(pairs) // SAMPLES)
    return Answers(len(inputs), ok, tokens, tuple(pairs[::step][:SAMPLES]))


def prompt_of(row: Mapping[str, Any]) -> str:
    """What a row asks: its prompt, or the last message."""
    body = row.get("body") or row
    return str(body["prompt"] if "prompt" in body else body["messages"][-1]["content"])


def answer_of(body: Mapping[str, Any]) -> str:
    """The text of an OpenAI chat or text completion."""
    choice = body["choices"][0]
    return str(choice["text"] if "text" in choice else choice["message"]["content"])


def summarise(
    answers: Answers, seen: Seen, phases: Mapping[str, float], left: Sequence[str]
) -> dict[str, Any]:
    """``summary.json``: counted in the output or seen from outside, nothing taken from the request."""
    return {
        "rows": answers.rows,
        "ok": answers.ok,
        "failed": answers.failed,
        "tensor_parallel_size": seen.tensor_parallel_size,
        "ray": {
            "version": seen.ray_version,
            "python": seen.python_version,
            "gpus_total": seen.gpus_total,
            "gpus_reserved_while_serving": seen.gpus_serving,
            "placement_group_bundles": list(seen.bundles),
        },
        "controller_models": list(seen.models),
        "phases": dict(phases),
        "leftovers": list(left),
    }


def problems(summary: Mapping[str, Any], *, wanted_size: int, model: str, airflow_status: int) -> list[str]:
    """Why the run was not what it should have been; empty when it was."""
    found = []
    if airflow_status:
        found.append(f"Airflow ended the run with status {airflow_status}")
    if not summary["rows"] or summary["failed"]:
        found.append(f"{summary['failed']} of {summary['rows']} rows have no answer")
    if summary["tensor_parallel_size"] != wanted_size:
        found.append(
            f"tensor parallel over {summary['tensor_parallel_size']} Ray workers was seen, "
            f"not over {wanted_size}"
        )
    if summary["ray"]["gpus_reserved_while_serving"] != wanted_size:
        found.append(
            f"{summary['ray']['gpus_reserved_while_serving']:g} GPUs were reserved while it served, "
            f"not {wanted_size}"
        )
    if model not in summary["controller_models"]:
        found.append(f"the controller did not list {model}")
    found += [f"left behind: {text}" for text in summary["leftovers"]]
    return found


def table(summary: Mapping[str, Any], answers: Answers, output: str) -> str:
    """What a person wants to know at the end."""
    phases, ray = summary["phases"], summary["ray"]
    seconds = phases.get("answer") or 0.0
    speed = f"{answers.tokens / seconds:.0f}" if seconds else "-"
    bundles = " + ".join(json.dumps(bundle) for bundle in ray["placement_group_bundles"]) or "none"
    lines = ["", f"{'step':<24}{'seconds':>8}", "-" * 32]
    lines += [f"{name:<24}{took:>8.1f}" for name, took in phases.items()]
    lines += ["-" * 32, f"{'together':<24}{sum(phases.values()):>8.1f}", ""]
    facts = {
        "rows": f"{summary['ok']} ok, {summary['failed']} failed",
        "tokens/s": f"{speed} ({answers.tokens} tokens answered)",
        "tensor parallel": f"{summary['tensor_parallel_size']}, placed on {bundles}",
        "Ray": f"{ray['version']}, {ray['gpus_reserved_while_serving']:g} of {ray['gpus_total']:g} GPUs "
        "reserved while serving",
        "controller listed": ", ".join(summary["controller_models"]) or "nothing",
        "left behind": ", ".join(summary["leftovers"]) or "nothing",
        "output": output,
    }
    lines += [f"{name:<18}{value}" for name, value in facts.items()]
    for prompt, answer in answers.samples:
        lines += ["", f"  > {_short(prompt, _PROMPT_WIDTH)}", f"    {_short(answer, _ANSWER_WIDTH)}"]
    return "\n".join(lines)


def _short(text: str, width: int) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= width else flat[: width - 1] + "…"
