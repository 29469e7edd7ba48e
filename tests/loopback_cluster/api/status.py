"""Failures as the API tells them: a Status object with a code and a reason."""

from __future__ import annotations

from typing import Any


class ApiFailure(Exception):
    """A request that is answered by a failure."""

    def __init__(self, code: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.message = message

    @property
    def body(self) -> dict[str, Any]:
        """The Status object."""
        return {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message,
            "reason": self.reason,
            "code": self.code,
        }


def not_found(plural: str, name: str) -> ApiFailure:
    """There is no such object."""
    return ApiFailure(404, "NotFound", f'{plural} "{name}" not found')


def not_found_path() -> ApiFailure:
    """There is no such resource."""
    return ApiFailure(404, "NotFound", "the server could not find the requested resource")


def invalid(kind: str, name: str, message: str) -> ApiFailure:
    """The object breaks a rule of its schema."""
    return ApiFailure(422, "Invalid", f'{kind} "{name}" is invalid: {message}')


def conflict(plural: str, name: str, why: str) -> ApiFailure:
    """Somebody else was faster."""
    return ApiFailure(409, "Conflict", f'Operation cannot be fulfilled on {plural} "{name}": {why}')


def expired(since: int, oldest: int) -> ApiFailure:
    """A watch from a resourceVersion that is no longer known."""
    return ApiFailure(410, "Expired", f"too old resource version: {since} ({oldest})")
