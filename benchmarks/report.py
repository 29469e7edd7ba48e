"""The README's figures, out of ``benchmarks/results.json``: ``python -m benchmarks.report`` writes them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.results import ROOT, Results

README = ROOT / "README.md"
BEGIN, END = "<!-- figures: python -m benchmarks.report -->", "<!-- end of figures -->"

WAYS = {
    "offline": "`LLM.chat`, offline",
    "run_batch": "`vllm run-batch`, without its start",
    "ray_data_llm": "Ray Data LLM, without its start",
    "plain_client": "a plain asyncio client, 256 in flight, on our worker",
    "task": '**a batch, `run_in="task"`**',
    "worker": '**a batch, `run_in="worker"`**',
}

_TABLE = ("throughput_smollm2", "throughput_tiny")

Section = Mapping[str, Any]


def render(sections: Mapping[str, Section]) -> str:
    """Markdown of all sections that were measured."""
    lines = _table([sections[name] for name in _TABLE if name in sections])
    lines += [f"- {tell(sections[name])}" for name, tell in _SENTENCES.items() if name in sections]
    measured: dict[str, list[str]] = {}
    for name in (*_TABLE, *_SENTENCES):
        if name in sections:
            measured.setdefault(_where(sections[name]), []).append(f"`{name}`")
    lines += ["", *(f"{', '.join(names)}: {where}." for where, names in measured.items())] if measured else []
    return "\n".join(lines)


def _table(sections: Sequence[Section]) -> list[str]:
    """The ways side by side, a column for each model."""
    if not sections:
        return []
    titles = [
        f"{section['model']}, {section['rows']:,} rows of {section['tokens']} tokens" for section in sections
    ]
    lines = ["| rows/s (of offline: median, lowest to highest round) | " + " | ".join(titles) + " |"]
    lines.append("|---" * (len(sections) + 1) + "|")
    for way, title in WAYS.items():
        if any(way in section["rows_per_s"] for section in sections):
            lines.append(f"| {title} | " + " | ".join(_cell(section, way) for section in sections) + " |")
    return [*lines, ""]


def _cell(section: Section, way: str) -> str:
    if way not in section["rows_per_s"]:
        return "not run"
    rate, ratio = section["rows_per_s"][way], section["of_offline"][way]
    if way == "offline":
        return f"{rate:,.1f} (1.00)"
    return f"{rate:,.1f} ({ratio['median']:.2f}, {ratio['min']:.2f} to {ratio['max']:.2f})"


def _where(section: Section) -> str:
    versions, machine = section["versions"], section["machine"]
    names = {"vllm": "vLLM", "torch": "PyTorch", "ray": "Ray", "python": "Python"}
    parts = [f"{title} {versions[name]}" for name, title in names.items()]
    return f"{', '.join(parts)}, {machine['cpu']}, load {machine['load_before']} before, {section['date']}"


def _client(section: Section) -> str:
    rates = section["rows_per_s"]
    return (
        f"On an engine that answers at once, one process sends {_round(rates['batch']['median'])} chat rows "
        f"a second; a plain aiohttp client {_round(rates['plain_client']['median'])}."
    )


def _growth(section: Section) -> str:
    rows = section["rows"]
    return (
        f"From {rows['small']:,} to {rows['large']:,} small rows its memory grows by "
        f"{section['growth_mib']:.0f} MiB, to {section['peak_mib']['large']:.0f} MiB."
    )


def _in_flight(section: Section) -> str:
    parts = [
        f"{figures['rows']:,} rows of {size} take {figures['above_tiny_rows_mib']:,.0f} MiB more than "
        "as many tiny ones"
        for size, figures in section["by_row_size"].items()
    ]
    return f"{'; '.join(parts)}."


def _resume(section: Section) -> str:
    return (
        f"A job of {section['rows']:,} rows that is 99 % done sends its first row after "
        f"{section['first_row_s']:.2f} s."
    )


def _prefix(section: Section) -> str:
    seconds = section["seconds"]
    return (
        f"On {section['rows']:,} shuffled prompts that share {section['prefixes']} beginnings of "
        f'{section["words"]} words, more than the KV cache holds, `ordering="prefix"` takes '
        f"{seconds['prefix']['median']:.1f} s where the input's order takes "
        f"{seconds['input']['median']:.1f} s."
    )


def _start(section: Section) -> str:
    seconds, ratio = section["seconds"], section["of_bare"]
    cpu = section["cpu_of_bare"]
    parts = [
        f"a {name} is ready after {seconds[name]['median']:.1f} s ({ratio[name]['median']:.2f} of that, "
        f"{cpu[name]['median']:.2f} of its CPU time)"
        for name in ("process", "pod")
        if name in seconds
    ]
    bare = f"a bare vLLM server generates its first token after {seconds['bare']['median']:.1f} s"
    return f"Started with the same arguments, {bare}; {'; '.join(parts)}."


def _round(value: float) -> str:
    return f"{round(value, -2):,.0f}"


_SENTENCES: dict[str, Callable[[Section], str]] = {
    "client": _client,
    "memory_growth": _growth,
    "memory_in_flight": _in_flight,
    "resume": _resume,
    "prefix": _prefix,
    "start": _start,
}


def with_figures(readme: str, sections: Mapping[str, Section]) -> str:
    """The README's text with the figures between its two marks replaced."""
    block = f"{BEGIN}\n{render(sections)}\n{END}"
    pattern = re.compile(f"{re.escape(BEGIN)}.*?{re.escape(END)}", re.DOTALL)
    if not pattern.search(readme):
        raise ValueError(f"README.md has no lines {BEGIN} and {END}.")
    return pattern.sub(lambda _: block, readme)


def write_readme(sections: Mapping[str, Section]) -> None:
    """Write the figures into the README."""
    README.write_text(with_figures(README.read_text(encoding="utf-8"), sections), encoding="utf-8")


if __name__ == "__main__":
    write_readme(Results().read())
