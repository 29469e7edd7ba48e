"""Patches of vLLM, one file each: version-gated, logged, and off on a vLLM that was not tested."""
