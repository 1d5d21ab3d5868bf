"""Errors as the OpenAI API reports them: a status, and an object with message, type, param and code."""

from __future__ import annotations

from typing import Any

from slipstream.errors import ContextLengthError, SlipstreamError

_TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


class ApiError(Exception):
    """A request that is answered by an error."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.retry_after_s = retry_after_s

    @property
    def body(self) -> dict[str, Any]:
        """For JSON."""
        default = "invalid_request_error" if self.status < 500 else "server_error"
        kind = _TYPES.get(self.status, default)
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    @property
    def headers(self) -> dict[str, str]:
        """Of the response."""
        headers = {"WWW-Authenticate": "Bearer"} if self.status == 401 else {}
        return headers if self.retry_after_s is None else {**headers, "Retry-After": str(self.retry_after_s)}


def refused(error: SlipstreamError) -> ApiError:
    """For an error of ours, which the caller can mend."""
    code = "context_length_exceeded" if isinstance(error, ContextLengthError) else None
    return ApiError(400, str(error), code=code)


def failed() -> ApiError:
    """For an error that no caller can mend; the log has it."""
    return ApiError(500, "the answer failed; the server's log says why", code="internal_error")


def too_slow(limit_s: float) -> ApiError:
    """For an answer that took longer than it may."""
    return ApiError(504, f"the answer took longer than {limit_s:g} s; ask for fewer tokens", code="time_limit")


def stopping() -> ApiError:
    """For a server that is shutting down."""
    return ApiError(503, "the server is stopping", code="stopping")
