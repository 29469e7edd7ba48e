"""Apache Airflow provider for distributed LLM batch inference with Ray, vLLM and FastChat."""

from __future__ import annotations

__version__ = "0.1.0"
