"""What a route promises: who may call it, what it reads and answers, how it can fail.

Every route carries one. The guard enforces its scopes, the OpenAPI document and docs/api.md are made from it.
"""

from collections.abc import Mapping
from typing import Any, cast

from litestar.handlers import BaseRouteHandler
from msgspec import Struct

from gateway.core.errors import (
    Forbidden,
    GatewayError,
    InvalidInput,
    QuotaExceeded,
    SlowBody,
    TooLarge,
    Unauthenticated,
    Unavailable,
)
from gateway.core.keys import KeyScope

_KEY = "contract"


class Query(Struct, frozen=True):
    """A query parameter, with the JSON schema of its values."""

    name: str
    description: str
    schema: dict[str, Any]


class Contract(Struct, frozen=True, kw_only=True):
    """`scopes`: one is enough, none means that the route is public. `links` say where an answer leads (OpenAPI).

    `error` is the shape of errors, as application/json, on routes that speak another API's errors.
    """

    scopes: frozenset[str]
    answer: Any
    status: int = 200
    body: Any = None
    media_type: str = "application/json"
    errors: tuple[type[GatewayError], ...] = ()
    query: tuple[Query, ...] = ()
    links: Mapping[str, Any] = {}
    error: Any = None

    @property
    def public(self) -> bool:
        """Nobody needs a key."""
        return not self.scopes


def contract(
    *scopes: KeyScope,
    answer: Any,
    status: int = 200,
    body: Any = None,
    media_type: str = "application/json",
    errors: tuple[type[GatewayError], ...] = (),
    query: tuple[Query, ...] = (),
    links: Mapping[str, Any] | None = None,
    error: Any = None,
) -> dict[str, Contract]:
    """The `opt` of a route handler. The errors that follow from scopes and body are added."""
    implied: list[type[GatewayError]] = []
    if scopes:
        implied += [Unauthenticated, Forbidden, QuotaExceeded, Unavailable]
    if body is not None:
        implied += [TooLarge, InvalidInput, SlowBody]
    every = tuple(dict.fromkeys((*implied, *errors)))
    return {
        _KEY: Contract(
            scopes=frozenset(scopes),
            answer=answer,
            status=status,
            body=body,
            media_type=media_type,
            errors=every,
            query=query,
            links=links or {},
            error=error,
        )
    }


def contract_of(route: BaseRouteHandler) -> Contract:
    """The contract of a route. Raises LookupError where it has none: the application then does not start."""
    if (found := route.opt.get(_KEY)) is None:
        raise LookupError(f"the route {sorted(route.paths)} declares no contract")
    return cast(Contract, found)
