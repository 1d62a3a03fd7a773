"""What a node or an answer in this process can refuse, by OpenAI's names."""

from __future__ import annotations

from typing import Any


class HanzoError(Exception):
    """Everything that this client raises of its own."""


class APIConnectionError(HanzoError):
    """No node answers at the address, or it went away before the answer was complete."""


class APIStatusError(HanzoError):
    """A node's refusal."""

    def __init__(self, message: str, status_code: int, body: Any = None) -> None:
        super().__init__(message)
        detail = body.get("error") if isinstance(body, dict) else None
        detail = detail if isinstance(detail, dict) else {}
        #: HTTP status.
        self.status_code = status_code
        #: The node's words.
        self.message = message
        #: What went wrong, for programs.
        self.code: str | None = detail.get("code")
        #: The field at fault.
        self.param: str | None = detail.get("param")
        #: The kind of error.
        self.type: str | None = detail.get("type")
        #: The whole answer.
        self.body = body


class BadRequestError(APIStatusError):
    """400: a field that makes no sense."""


class AuthenticationError(APIStatusError):
    """401: no key, or an unknown one."""


class PermissionDeniedError(APIStatusError):
    """403: the key does not allow it."""


class NotFoundError(APIStatusError):
    """404: an unknown model, or a user without a variant."""


class UnprocessableEntityError(APIStatusError):
    """422: a variant that is damaged or too large."""


class RateLimitError(APIStatusError):
    """429: the queue is full, or the key's limit is reached."""


class InternalServerError(APIStatusError):
    """500 and above."""


_CLASSES: dict[int, type[APIStatusError]] = {
    400: BadRequestError,
    401: AuthenticationError,
    403: PermissionDeniedError,
    404: NotFoundError,
    422: UnprocessableEntityError,
    429: RateLimitError,
}


def of_status(message: str, status: int, body: Any) -> APIStatusError:
    """The error for a status."""
    kind = InternalServerError if status >= 500 else _CLASSES.get(status, APIStatusError)
    return kind(message, status, body)
