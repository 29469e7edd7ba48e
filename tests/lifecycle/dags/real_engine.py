"""DAGs for Airflow with the real engine: tensor parallel over two ranks, on a Ray head of the run's own."""

from __future__ import annotations

import os
from typing import Any

from tests.lifecycle.dag_maker import make

GROUP: dict[str, Any] = {
    "model": os.environ.get("LIFECYCLE_MODEL", "/nowhere"),
    "num_gpus": 2,
    "create": "if_missing",
    "startup_timeout": 240,
    "engine": {"extra_args": "--enforce-eager --kv-cache-memory-bytes 268435456 --max-model-len 512"},
}
BATCH: dict[str, Any] = {"parameters": {"max_tokens": 64}, "options": {}}
DAGS = [
    make("real_quick", rows=10, batch=BATCH, group=GROUP),
    make("real", rows=20_000, batch=BATCH, group=GROUP),
    make("real_lapsing_worker", rows=250, lease_duration=30, run_in="worker", batch=BATCH, group=GROUP),
]
for made in DAGS:
    globals()[made.dag_id] = made
