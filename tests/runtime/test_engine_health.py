"""From looks at an engine's counters to: it works, it hangs, it works again, nobody uses it."""

from __future__ import annotations

from airflow_arcadia.runtime.engine_health import EngineHealth, Look, count_progress, forgotten

TIMEOUT, INTERVAL = 60.0, 6.0
Seen = tuple[float, float | None, int]
"""Time, count, running."""
METRICS = b"""# TYPE vllm:prompt_tokens_total counter
vllm:prompt_tokens_total{engine="0",model_name="m"} 100.0
vllm:generation_tokens_total{engine="0",model_name="m"} 20.0
vllm:iteration_tokens_total_bucket{engine="0",le="1.0"} 3.0
vllm:iteration_tokens_total_count{engine="0"} 7.0
"""


def see(health: EngineHealth, *looks: Seen) -> EngineHealth:
    """The health after these looks."""
    for at, count, running in looks:
        look = Look(at, count, running, used=bool(running))
        health = health.after(look, hang_timeout=TIMEOUT, interval=INTERVAL)
    return health


def every(
    start: float, end: float, count: float | None, running: int
) -> list[tuple[float, float | None, int]]:
    """Looks at the planned interval."""
    return [(start + INTERVAL * n, count, running) for n in range(int((end - start) / INTERVAL) + 1)]


def test_requests_without_a_token_for_the_timeout_are_a_hang():
    busy = see(EngineHealth.start(0), (6, 10, 0), *every(12, 60, 10, 3))
    assert busy.hung_since is None
    assert see(busy, (66, 10, 3)).hung_since == 66


def test_a_token_or_a_step_is_progress():
    slow = see(EngineHealth.start(0), *every(6, 54, 10, 3), (60, 11, 3), *every(66, 114, 11, 3))
    assert slow.hung_since is None


def test_an_engine_without_requests_does_not_hang():
    assert see(EngineHealth.start(0), *every(6, 600, 10, 0)).hung_since is None


def test_a_hang_lasts_until_the_engine_moves_even_when_its_clients_have_left():
    hung = see(EngineHealth.start(0), (6, 10, 0), *every(12, 72, 10, 3))
    assert hung.hung_since is not None
    assert see(hung, *every(78, 96, 10, 0)).hung_since == hung.hung_since
    assert see(hung, (78, 11, 1)).hung_since is None


def test_without_counters_a_hang_is_not_claimed():
    assert see(EngineHealth.start(0), *every(6, 600, None, 3)).hung_since is None


def test_time_in_which_nobody_looked_is_not_held_against_the_engine():
    paused = see(EngineHealth.start(0), (6, 10, 0), (12, 10, 3), (1000, 10, 3))
    assert paused.hung_since is None
    assert see(paused, *every(1006, 1054, 10, 3)).hung_since is not None


def test_use_is_remembered():
    assert see(EngineHealth.start(0), (6, 10, 3), *every(12, 60, 10, 0)).used_at == 6


def test_progress_is_tokens_and_steps():
    assert count_progress(METRICS) == 127.0
    assert count_progress(b"vllm:generation_tokens_total 3") == 3.0
    assert count_progress(b"") is None
    assert count_progress(b"vllm:iteration_tokens_total_count x") is None


def test_a_worker_is_forgotten_once_its_lease_missed_a_renewal():
    def seen(idle: float, renewed: float) -> bool:
        return forgotten(idle, idle_timeout=900, renewed_s_ago=renewed, lease_duration=3600)

    assert not seen(899, 3000)
    assert not seen(7200, 1200)
    assert seen(900, 1801)
