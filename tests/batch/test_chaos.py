"""A few seeds of the chaos that ``make chaos`` runs by the hundred: see ``tests/batch/chaos``."""

import asyncio
import json
from pathlib import Path

import pytest

from tests.batch.chaos.scenario import FAULTS, Scenario, answer_of, run_seed


@pytest.mark.slow
async def test_no_row_is_lost_doubled_or_answered_wrong():
    """A seed for each fault, all at the same time: most of their time is waiting."""
    seeds = {_first_seed_with(fault) for fault in FAULTS}
    outcomes = await asyncio.gather(*map(run_seed, seeds))
    assert {fault for outcome in outcomes for fault in outcome.faults} == set(FAULTS)
    assert {outcome.seed: outcome.problems for outcome in outcomes if outcome.problems} == {}
    assert all(outcome.rows for outcome in outcomes)
    assert sum(outcome.counts.total() for outcome in outcomes) == 0


def _first_seed_with(fault: str) -> int:
    """A seed with this fault and at most two more."""
    return next(
        seed for seed in range(1000) if fault in (found := Scenario.faults_of(seed)) and len(found) < 4
    )


@pytest.mark.parametrize(
    ("damage", "counted"),
    [
        (lambda lines: lines[:-1], {"lost": 1}),
        (lambda lines: [*lines[:-1], lines[0]], {"lost": 1, "doubled": 1}),
        (lambda lines: [lines[0].replace("SEED 1", "SEED 2"), *lines[1:]], {"wrong": 1}),
        (lambda lines: lines[::-1], {"wrong": 0}),
    ],
    ids=["lost", "doubled", "wrong", "order"],
)
def test_the_check_sees_what_is_wrong(tmp_path: Path, damage, counted):
    scenario = Scenario(0, tmp_path)
    scenario.bad, scenario.poison = {}, set()
    lines = [
        json.dumps(
            {
                "custom_id": f"id-{number}",
                "response": {"status_code": 200, "body": {"choices": [{"text": answer_of(prompt, 1)}]}},
                "error": None,
            }
        )
        for number, prompt in enumerate(scenario.prompts)
    ]
    summary = {"ok": len(lines), "failed": 0}
    (tmp_path / "out.jsonl.summary.json").write_text(json.dumps(summary))
    (tmp_path / "out.jsonl").write_text("\n".join(lines))
    scenario.check()
    assert scenario.outcome.problems == []
    (tmp_path / "out.jsonl").write_text("\n".join(damage(lines)))
    scenario.check()
    assert scenario.outcome.problems
    for name, least in counted.items():
        assert scenario.outcome.counts[name] >= least
