"""Random faults around a batch, and what must be true of its output whatever they are.

``python -m tests.batch.chaos [N] [--first SEED]`` runs N seeds and prints how many rows were lost, doubled or
answered wrong: all must be 0. A seed chooses endpoints, rows and faults:

- ``kill``: attempts end as by SIGKILL before or after a random storage call,
- ``drain``: an endpoint refuses new rows with 503, finishes its last ones and goes away,
- ``gateway``: an endpoint answers 503 to everything for a while,
- ``freeze``: an endpoint answers nothing, for a while or for good,
- ``poison``: rows kill the engine that begins them,
- ``restart``: another attempt of other parameters begins while the first still runs,
- ``reexport``: the input is written again in place while it is read, at times with other rows in between.

Attempts are processes; whoever starts them tries again, as Airflow does, until the batch is done.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
from collections import Counter

from tests.batch.chaos.scenario import Outcome, run_seed


async def run_seeds(seeds: range, at_once: int) -> list[Outcome]:
    """Run many, a few at a time, and tell each that went wrong."""
    free = asyncio.Semaphore(at_once)
    outcomes: list[Outcome] = []

    async def one(seed: int) -> None:
        async with free:
            outcome = await run_seed(seed)
        outcomes.append(outcome)
        if outcome.problems or len(outcomes) % 20 == 0:
            print(f"{len(outcomes)} of {len(seeds)}", end=" ", flush=True)
        for problem in outcome.problems:
            print(f"\nseed {seed} ({', '.join(outcome.faults)}): {problem}", flush=True)

    await asyncio.gather(*[one(seed) for seed in seeds])
    return outcomes


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("count", nargs="?", type=int, default=20, help="seeds to run")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--at-once", type=int, default=3)
    options = parser.parse_args()
    # Engines that are killed complain of it.
    logging.getLogger("aiohttp.server").setLevel(logging.CRITICAL)
    outcomes = asyncio.run(run_seeds(range(options.first, options.first + options.count), options.at_once))
    counts = sum((outcome.counts for outcome in outcomes), Counter[str]())
    faults = Counter(fault for outcome in outcomes for fault in outcome.faults)
    bad = [outcome.seed for outcome in outcomes if outcome.problems]
    print(
        f"\n{len(outcomes)} seeds, {sum(outcome.rows for outcome in outcomes)} rows, "
        f"{sum(outcome.attempts for outcome in outcomes)} attempts, "
        f"{sum(outcome.deaths for outcome in outcomes)} deaths of engines; faults: "
        f"{', '.join(f'{name} {count}' for name, count in sorted(faults.items()))}\n"
        f"lost {counts['lost']}, doubled {counts['doubled']}, wrong {counts['wrong']}; "
        f"seeds with a problem: {bad or 'none'}"
    )
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
