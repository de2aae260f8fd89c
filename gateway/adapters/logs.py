"""Log lines: structured, on stderr, with the ids of what is being answered; never a message and never a secret.

Words of exceptions and of libraries are left out, for they quote what they choked on: a line says which exception it
was, and where.
"""

import logging
import sys
from collections.abc import Iterator, MutableMapping
from traceback import extract_tb
from types import TracebackType
from typing import Any, Literal

import structlog

from gateway.core.errors import GatewayError
from gateway.core.problems import Unusable
from gateway.core.trace import ids

_FRAMES = 20

# Exceptions whose words are the gateway's own.
_OURS = (GatewayError, Unusable)


def configure_logs(style: Literal["json", "console"]) -> None:
    """For this process, structlog and the standard library's logging alike."""
    renderer: structlog.types.Processor = (
        structlog.processors.JSONRenderer() if style == "json" else structlog.dev.ConsoleRenderer()
    )
    structlog.configure(
        processors=[
            _add_ids,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            _show_exception,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
    root = logging.getLogger()
    if not any(isinstance(handler, _Library) for handler in root.handlers):
        root.addHandler(_Library())


class _Library(logging.Handler):
    """What libraries have to say: who said it and where, without the words."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)

    def emit(self, record: logging.LogRecord) -> None:
        """One line."""
        at = f"{record.module}:{record.lineno}"
        structlog.get_logger().warning("library", logger=record.name, at=at, exc_info=record.exc_info)


def _add_ids(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    for name, value in ids().items():
        event.setdefault(name, value)
    return event


def _show_exception(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    info = event.pop("exc_info", None)
    error = info if isinstance(info, BaseException) else info[1] if isinstance(info, tuple) else None
    if info is True:
        error = sys.exc_info()[1]
    if error is not None:
        event["exception"] = list(_told(error))
    return event


def _told(error: BaseException) -> Iterator[dict[str, Any]]:
    """An exception, then what it came from: type and frames, innermost last."""
    seen: BaseException | None = error
    while seen is not None:
        told: dict[str, Any] = {"type": type(seen).__name__, "frames": _frames(seen.__traceback__)}
        if isinstance(seen, _OURS):
            told["message"] = str(seen)
        yield told
        seen = seen.__cause__ or (None if seen.__suppress_context__ else seen.__context__)


def _frames(traceback: TracebackType | None) -> list[str]:
    return [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in extract_tb(traceback)[-_FRAMES:]]
