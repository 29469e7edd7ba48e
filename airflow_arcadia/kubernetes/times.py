"""Times as the Kubernetes API writes them (RFC 3339), and as seconds since the epoch."""

from __future__ import annotations

from datetime import datetime, timezone


def seconds(text: str) -> float:
    """Seconds since the epoch of an RFC 3339 time. Raises ValueError for any other text."""
    return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()


def micro_time(at: float) -> str:
    """Kubernetes' MicroTime for seconds since the epoch: RFC 3339 with six digits after the second."""
    return datetime.fromtimestamp(at, timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
