"""Every error as application/problem+json (RFC 9457), from the one exception handler."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any

import structlog
from litestar import Request
from litestar.exceptions import HTTPException
from litestar.utils.path import normalize_path

from gateway.core.clock import Clock
from gateway.core.errors import GatewayError, InvalidInput, MethodNotAllowed, NotFound
from gateway.web.exchange import Exchange, exchange_of
from gateway.web.reply import PROBLEM, Headers, Reply, json_reply

log = structlog.get_logger()

TITLES: Mapping[str, str] = {
    "unauthenticated": "No valid key",
    "forbidden": "Not allowed",
    "unknown_task": "Unknown task",
    "not_found": "Not found",
    "method_not_allowed": "Method not allowed",
    "slow_body": "The body came too slowly",
    "conflict": "Conflict",
    "too_large": "Body too large",
    "invalid_input": "Invalid input",
    "quota_exceeded": "Quota exceeded",
    "budget_exceeded": "Budget exceeded",
    "cascade_exhausted": "No stage could answer",
    "overloaded": "Overloaded",
    "unavailable": "Unavailable",
    "internal": "Internal error",
}


class Handler:
    """Turns whatever a handler raised into an answer. Nothing that is not a GatewayError says what it was."""

    def __init__(self, clock: Clock, seen: Callable[[str], None] = lambda _: None) -> None:
        self._clock, self._seen = clock, seen

    def __call__(self, request: Request[Any, Any, Any], raised: Exception) -> Any:
        exchange = exchange_of(request, self._clock)
        error = as_gateway_error(raised, exchange)
        self._seen(error.code)
        reply = problem_reply(error, exchange)
        if error.status == 405:
            reply.headers.append((b"allow", ", ".join(_allowed(request)).encode()))
        return reply


def as_gateway_error(raised: Exception, exchange: Exchange) -> GatewayError:
    """What the caller may see of whatever was raised. What is no fault of the caller's goes to the log."""
    error = _as_gateway_error(raised)
    if error.status >= 500:
        ids = {"request_id": exchange.request_id, "trace_id": exchange.trace_id}
        log.error("request_failed", code=error.code, exc_info=_unexpected(raised), **ids)
    return error


def problem_reply(error: GatewayError, exchange: Exchange) -> Reply:
    """The answer for an error, with `retry-after` where waiting helps."""
    headers: Headers = exchange.headers()
    if error.retry_after_s is not None:
        headers.append((b"retry-after", str(max(1, math.ceil(error.retry_after_s))).encode()))
    if (resource := error.extra.get("resource")) in ("requests", "tokens"):
        for name, member in (("limit", "limit"), ("remaining", "remaining"), ("reset", "reset_s")):
            value = math.ceil(float(str(error.extra[member])))
            headers.append((f"x-ratelimit-{name}-{resource}".encode(), str(value).encode()))
    if error.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    reply = json_reply(problem(error, exchange.request_id), headers, error.status)
    reply.headers[-2] = (b"content-type", PROBLEM)
    return reply


def problem(error: GatewayError, request_id: str) -> dict[str, Any]:
    """The members of a problem document; `extra` of the error stands beside the fixed ones, never over them."""
    return {
        **error.extra,
        "type": f"urn:taskgate:problem:{error.code}",
        "title": TITLES.get(error.code, error.code),
        "status": error.status,
        "detail": error.detail,
        "code": error.code,
        "request_id": request_id,
        "retryable": error.retryable,
        "source": error.source,
    }


def _as_gateway_error(raised: Exception) -> GatewayError:
    if isinstance(raised, GatewayError):
        return raised
    if isinstance(raised, HTTPException) and raised.status_code < 500:
        if raised.status_code == 404:
            return NotFound("There is no such page.")
        if raised.status_code == 405:
            return MethodNotAllowed("This page does not answer that method.")
        return InvalidInput("The request is malformed.")
    return GatewayError("Something broke in the gateway; the request id finds it in the log.")


def _allowed(request: Request[Any, Any, Any]) -> Iterator[str]:
    """The methods that the page does answer, as the router knows them."""
    path = normalize_path(request.scope["path"])
    for method in ("DELETE", "GET", "POST", "PUT"):
        with suppress(HTTPException):
            request.app.asgi_router.handle_routing(path=path, method=method)
            yield method


def _unexpected(raised: Exception) -> Exception | None:
    return None if isinstance(raised, GatewayError) else raised
