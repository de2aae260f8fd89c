"""docs/api.md below its introduction: one section a route, one a code, from contracts, docstrings and error classes."""

from collections.abc import Iterable, Iterator
from inspect import cleandoc
from typing import Any

import msgspec
from litestar.handlers import HTTPRouteHandler

from gateway.core import errors
from gateway.core.errors import GatewayError
from gateway.web.contract import Contract, contract_of
from gateway.web.openapi import shown_path
from gateway.web.problems import TITLES


def error_classes() -> list[type[GatewayError]]:
    """Every error that a caller can see, by status."""
    found = [e for e in vars(errors).values() if isinstance(e, type) and issubclass(e, GatewayError)]
    return sorted(found, key=lambda error: (error.status, error.code))


def reference(routes: Iterable[HTTPRouteHandler]) -> str:
    """Markdown: a heading `METHOD /path` for each route, then a heading with its code for each error."""
    every = [(shown_path(path), str(m), route) for route in routes for path in route.paths for m in route.http_methods]
    sections = sorted(every, key=lambda section: section[:2])
    parts = ["## Routes"]
    parts += ["\n".join(_route(path, method, route)) for path, method, route in sections]
    parts += ["## Errors", *("\n".join(_error(error)) for error in error_classes())]
    return "\n\n".join(parts) + "\n"


def _route(path: str, method: str, route: HTTPRouteHandler) -> Iterator[str]:
    promised = contract_of(route)
    yield f"### {method} {path}\n"
    yield cleandoc(route.fn.__doc__ or "") + "\n"
    scopes = " or ".join(f"`{scope}`" for scope in sorted(promised.scopes))
    yield f"- scope: {scopes or 'none; the route is public'}"
    yield from (f"- query `{query.name}`: {query.description}" for query in promised.query)
    if promised.body is not None:
        yield f"- body: {_shape(promised.body)}"
    yield f"- answers {promised.status}{_answer(promised)}"
    codes = sorted({error.code for error in promised.errors})
    if codes:
        yield f"- errors: {', '.join(f'[`{code}`](#{code})' for code in codes)}"


def _answer(promised: Contract) -> str:
    if promised.media_type != "application/json":
        return f" with `{promised.media_type}`"
    shape = _shape(promised.answer)
    return f": {shape}" if shape else " with a JSON object"


def _shape(kind: Any) -> str:
    """What a body or an answer is, in a line, and the names of its members."""
    if not (isinstance(kind, type) and issubclass(kind, msgspec.Struct)):
        return ""
    said = " ".join(cleandoc(kind.__doc__ or "").split())
    members = ", ".join(f"`{field.encode_name}`" for field in msgspec.structs.fields(kind))
    return f"{said} Members: {members}."


def _error(error: type[GatewayError]) -> Iterator[str]:
    yield f"### {error.code}\n"
    yield f"{error.status}, “{TITLES[error.code]}”. {cleandoc(error.__doc__ or '')}\n"
    yield f"- {'retrying can help' if error.retryable else 'retrying does not help'}; source `{error.source}`"
