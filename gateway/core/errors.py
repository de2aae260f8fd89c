"""Every error that a caller can see. Status, code and whether a retry can help sit on the class."""

from typing import ClassVar


class GatewayError(Exception):
    """Base of all. `detail` is written for the caller; `extra` becomes members of the problem document.

    `retry_after_s` is None where waiting does not help.
    """

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal"
    retryable: ClassVar[bool] = False
    source: ClassVar[str] = "gateway"

    def __init__(self, detail: str, *, retry_after_s: float | None = None, **extra: object) -> None:
        super().__init__(detail)
        self.detail = detail
        self.retry_after_s = retry_after_s
        self.extra = extra


class Unauthenticated(GatewayError):
    """No key, or one that is unknown, expired or revoked. Which of these is not said."""

    status = 401
    code = "unauthenticated"


class Forbidden(GatewayError):
    """The key is good but lacks the scope, or the thing belongs to another team."""

    status = 403
    code = "forbidden"


class UnknownTask(GatewayError):
    """No such task; near misses are offered."""

    status = 404
    code = "unknown_task"


class NotFound(GatewayError):
    """No such run, review, key or page, for this caller."""

    status = 404
    code = "not_found"


class MethodNotAllowed(GatewayError):
    """The page exists, but does not answer this method."""

    status = 405
    code = "method_not_allowed"


class SlowBody(GatewayError):
    """The body did not arrive whole in time. Nothing was started."""

    status = 408
    code = "slow_body"
    retryable = True


class Conflict(GatewayError):
    """The same Idempotency-Key with another body, or a stale lease."""

    status = 409
    code = "conflict"


class TooLarge(GatewayError):
    """The body is larger than the gateway reads."""

    status = 413
    code = "too_large"


class InvalidInput(GatewayError):
    """The body is no JSON, or breaks the envelope or the task's input schema."""

    status = 422
    code = "invalid_input"


class QuotaExceeded(GatewayError):
    """A request quota is used up. Nothing was counted against any quota."""

    status = 429
    code = "quota_exceeded"
    retryable = True


class BudgetExceeded(GatewayError):
    """A token or cost budget does not cover the next model call. Nothing was counted against any budget."""

    status = 429
    code = "budget_exceeded"
    retryable = True


class CascadeExhausted(GatewayError):
    """No stage could answer, and the task declares no action for that case. The inference is recorded."""

    status = 502
    code = "cascade_exhausted"
    retryable = True
    source = "upstream"


class Overloaded(GatewayError):
    """No permit is free. Nothing was started."""

    status = 503
    code = "overloaded"
    retryable = True


class Unavailable(GatewayError):
    """A store that this request cannot do without is unreachable."""

    status = 503
    code = "unavailable"
    retryable = True
