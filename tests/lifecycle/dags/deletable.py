"""A DAG that a user deletes the file of while it runs."""

from __future__ import annotations

from tests.lifecycle.dags.lifecycle import make

dag = make("deletable", rows=150, lease_duration=20)
