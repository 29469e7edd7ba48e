"""How servers name their errors: FastChat's codes, and the words of an overflown context.

The codes are those of ``fastchat.constants.ErrorCode`` (0.2.36). FastChat's API server sends them with HTTP
400 as ``{"object": "error", "message", "code"}``, its worker with HTTP 200 as ``error_code``.
"""

from __future__ import annotations

VALIDATION, AUTHENTICATION, INVALID_MODEL, CONTEXT_OVERFLOW = 40001, 40101, 40301, 40303
RATE_LIMIT, OVERLOADED = 42901, 42903
INTERNAL, OUT_OF_MEMORY, NO_WORKER, WORKER_TIMEOUT = 50001, 50002, 50005, 50006

_CONTEXT_WORDS = ("context length", "maximum model length", "max_model_len", "maximum input length")


def tells_context_overflow(message: str) -> bool:
    """Whether the message says that a prompt is longer than the model's context."""
    lowered = message.lower()
    return any(words in lowered for words in _CONTEXT_WORDS)
