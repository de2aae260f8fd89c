"""The OpenAPI document, made from the routes' contracts, docstrings and types: what is promised is what is served."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from inspect import cleandoc
from typing import Any

import msgspec
from litestar import Request, get
from litestar.handlers import HTTPRouteHandler
from msgspec import Struct

from gateway import __version__
from gateway.core.clock import Clock
from gateway.core.errors import GatewayError
from gateway.web.contract import Contract, contract, contract_of
from gateway.web.exchange import exchange_of
from gateway.web.reply import Reply, json_reply

_PARAMETER = re.compile(r"\{(\w+):\w+\}")
_REFERENCE = "#/components/schemas/{name}"


class InputError(Struct, frozen=True):
    """One mistake in a body: where, as a JSON path, and what."""

    path: str
    message: str


class Problem(Struct, frozen=True):
    """An error (RFC 9457). `code` is stable, `detail` is for people; `errors` comes with `invalid_input`."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    request_id: str
    retryable: bool
    source: str
    errors: list[InputError] | None = None
    run_id: str | None = None


class SchemaPage:
    """`GET /schema`."""

    def __init__(self, routes: Sequence[HTTPRouteHandler], tasks: Callable[[], Iterable[str]], clock: Clock) -> None:
        self._routes, self._tasks, self._clock = (*routes, *self.routes()), tasks, clock

    def routes(self) -> Sequence[HTTPRouteHandler]:
        """The handler with its path and contract."""
        return (get("/schema", opt=contract(answer=dict[str, Any]))(self.show_schema),)

    async def show_schema(self, request: Request[Any, Any, Any]) -> Reply:
        """This document: OpenAPI 3.1."""
        headers = exchange_of(request, self._clock).headers()
        return json_reply(document(self._routes, sorted(self._tasks())), headers)


def document(routes: Iterable[HTTPRouteHandler], tasks: Sequence[str]) -> dict[str, Any]:
    """The OpenAPI document of these routes; `tasks` are the values that the path parameter `task` can take now."""
    described = [(route, contract_of(route)) for route in routes]
    schemas, components = _schemas(contract for _, contract in described)
    paths: dict[str, dict[str, Any]] = {}
    for route, promised in described:
        for path in route.paths:
            operations = paths.setdefault(shown_path(path), {})
            for method in route.http_methods:
                operations[str(method).lower()] = _operation(route, promised, path, tasks, schemas)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Taskgate", "version": __version__},
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer", "description": "`Authorization: Bearer gk_…`"},
                "header": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
        },
    }


def shown_path(path: str) -> str:
    """A route's path as people write it, without the types of its parameters."""
    return _PARAMETER.sub(r"{\1}", path)


def _operation(
    route: HTTPRouteHandler,
    promised: Contract,
    path: str,
    tasks: Sequence[str],
    schemas: Mapping[Any, dict[str, Any]],
) -> dict[str, Any]:
    summary, _, description = cleandoc(route.fn.__doc__ or "").partition("\n\n")
    operation: dict[str, Any] = {
        "operationId": route.fn.__name__,
        "summary": " ".join(summary.split()),
        "parameters": [*_path_parameters(path, tasks), *_query_parameters(promised)],
        "responses": dict(_responses(promised, schemas)),
    }
    if description:
        operation["description"] = description
    if promised.scopes:
        operation["security"] = [{"bearer": []}, {"header": []}]
        operation["x-scopes"] = sorted(promised.scopes)
    if promised.body is not None:
        content = {"application/json": {"schema": schemas[promised.body]}}
        operation["requestBody"] = {"required": True, "content": content}
    return operation


def _path_parameters(path: str, tasks: Sequence[str]) -> Iterator[dict[str, Any]]:
    for name in _PARAMETER.findall(path):
        schema: dict[str, Any] = {"type": "string"}
        if name == "task" and tasks:
            schema["enum"] = list(tasks)
        yield {"name": name, "in": "path", "required": True, "schema": schema}


def _query_parameters(promised: Contract) -> Iterator[dict[str, Any]]:
    for query in promised.query:
        yield {"name": query.name, "in": "query", "description": query.description, "schema": query.schema}


def _responses(promised: Contract, schemas: Mapping[Any, dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    content = {promised.media_type: {"schema": schemas[promised.answer]}}
    good: dict[str, Any] = {"description": "Done.", "content": content}
    yield str(promised.status), good | ({"links": promised.links} if promised.links else {})
    by_status: dict[int, list[type[GatewayError]]] = {}
    for error in promised.errors:
        by_status.setdefault(error.status, []).append(error)
    for status, errors in sorted(by_status.items()):
        lines = (f"`{error.code}`: {' '.join(cleandoc(error.__doc__ or '').split())}" for error in errors)
        document = {"application/problem+json": {"schema": schemas[Problem]}}
        if promised.error is not None:
            document = {"application/json": {"schema": schemas[promised.error]}}
        yield str(status), {"description": "\n\n".join(lines), "content": document}


def _schemas(contracts: Iterable[Contract]) -> tuple[dict[Any, dict[str, Any]], dict[str, Any]]:
    """(schema of each body and answer type, components that they refer to)."""
    types = [
        Problem,
        *(t for promised in contracts for t in (promised.body, promised.answer, promised.error) if t is not None),
    ]
    unique = list(dict.fromkeys(types))
    schemas, components = msgspec.json.schema_components(unique, ref_template=_REFERENCE)
    return dict(zip(unique, schemas, strict=True)), dict(components)
