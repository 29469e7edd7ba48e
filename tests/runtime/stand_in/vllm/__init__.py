"""In place of vLLM: what the runtime starts in tests that need no engine."""
