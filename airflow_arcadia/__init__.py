"""Apache Airflow provider for distributed LLM batch inference with Ray, vLLM and FastChat."""

from __future__ import annotations

from airflow_arcadia.provider_info import get_provider_info

__all__ = ["__version__", "get_provider_info"]

__version__ = "0.1.0"
