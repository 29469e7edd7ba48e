"""A stand-in for vLLM: its server, and an engine process that leaves what a killed one does."""

__version__ = "0.32.0"
