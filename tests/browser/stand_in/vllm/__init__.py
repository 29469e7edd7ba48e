"""A stand-in for vLLM, see :mod:`vllm.entrypoints.openai.api_server`."""

__version__ = "0.32.0"
