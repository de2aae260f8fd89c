"""Who looks at a page: a cookie with a random id, which the shared store knows by its hash and for twelve hours.

The key itself is shown once, at sign-in, and never kept. A session lives no longer than its key: a key that is revoked
or expires ends it within two seconds. Every form carries a token made from the cookie, which no other site can read.
"""

import hashlib
import hmac
import re
import secrets
from datetime import timedelta
from http.cookies import CookieError, SimpleCookie
from typing import Any, cast
from urllib.parse import parse_qs

from litestar import Request
from litestar.handlers import BaseRouteHandler
from msgspec import Struct

from gateway.core.clock import Clock
from gateway.core.errors import Forbidden, InvalidInput, MethodNotAllowed, Unauthenticated
from gateway.core.inference import Caller
from gateway.core.sessions import Sessions
from gateway.web.auth import Doorkeeper, Keyring
from gateway.web.doors import WebSettings
from gateway.web.exchange import AnyConnection, exchange_of, header
from gateway.web.limits import read_body

PATH = "/desk"
LASTING = timedelta(hours=12)
ROLES = ("review", "lead", "admin")

_COOKIE = "taskgate_desk"
_ID = re.compile(r"[A-Za-z0-9_-]{43}")
_SLOT = "gateway.visitor"
_FIELDS = 64

Form = dict[str, list[str]]


class Visitor(Struct, frozen=True):
    """Whoever holds the cookie `id`. `caller` is None before sign-in."""

    id: str
    caller: Caller | None

    @property
    def csrf(self) -> str:
        """What each of this visitor's forms carries."""
        return hmac.new(self.id.encode(), b"form", "sha256").hexdigest()


class Visits:
    """The guard of every page, and the one way to read a form."""

    def __init__(
        self, sessions: Sessions, keyring: Keyring, doorkeeper: Doorkeeper, clock: Clock, settings: WebSettings
    ) -> None:
        self._sessions, self._keyring, self._doorkeeper = sessions, keyring, doorkeeper
        self._clock, self._settings = clock, settings

    async def __call__(self, connection: AnyConnection, route: BaseRouteHandler) -> None:
        """Raises Unauthenticated where a page needs a sign-in, Unavailable."""
        if connection.scope.get("method") == "OPTIONS":
            raise MethodNotAllowed("This page does not answer that method.")
        if route.opt.get("asset"):
            return
        visitor = await self._visitor(connection)
        cast(dict[str, Any], connection.scope)[_SLOT] = visitor
        if visitor.caller is not None:
            exchange_of(connection, self._clock).caller = visitor.caller
        elif not route.opt.get("open"):
            raise Unauthenticated("Sign in first.")

    async def form(self, request: "Request[Any, Any, Any]") -> Form:
        """The fields of a form that this visitor was given. Raises Forbidden where it was not, InvalidInput."""
        body = await read_body(request, self._settings)
        try:
            fields = parse_qs(body.decode("ascii"), max_num_fields=_FIELDS, errors="strict")
        except ValueError:
            raise InvalidInput("This is no form.") from None
        if not hmac.compare_digest(first(fields, "csrf").encode(), visitor_of(request).csrf.encode()):
            raise Forbidden("This form did not come from this page, or the page is older than your sign-in.")
        return fields

    async def sign_in(self, request: "Request[Any, Any, Any]", key: str) -> Visitor:
        """A new session, under a new id. Raises Unauthenticated, QuotaExceeded, Forbidden, Unavailable."""
        caller = await self._doorkeeper.prove(request, key)
        if not caller.scopes.intersection(ROLES):
            raise Forbidden("This key is not a reviewer's.", needs=list(ROLES))
        visitor = Visitor(secrets.token_urlsafe(32), caller)
        await self._sessions.open(_name(visitor.id), caller.key_id, LASTING)
        return visitor

    async def sign_out(self, visitor: Visitor) -> None:
        """From now on the cookie is worth nothing. Raises Unavailable."""
        await self._sessions.close(_name(visitor.id))

    async def _visitor(self, connection: AnyConnection) -> Visitor:
        if (id_ := _cookie(connection)) is None:
            return Visitor(secrets.token_urlsafe(32), None)
        key_id = await self._sessions.key_id(_name(id_))
        key = await self._keyring.find(key_id) if key_id is not None else None
        if key is None or not key.usable(self._clock.now()):
            return Visitor(id_, None)
        return Visitor(id_, Caller(key.team, key.id, key.scopes))


def visitor_of(request: "Request[Any, Any, Any]") -> Visitor:
    """Who asks for this page."""
    return cast(Visitor, cast(dict[str, Any], request.scope)[_SLOT])


def first(fields: Form, name: str) -> str:
    """The field's first value, or an empty text."""
    return fields.get(name, [""])[0]


def cookie_header(request: "Request[Any, Any, Any]", visitor: Visitor, lasting: timedelta = LASTING) -> bytes:
    """The value of set-cookie. `Secure` wherever the browser came over TLS, also to a proxy in front."""
    tls = request.scope["scheme"] == "https" or header(request, b"x-forwarded-proto") == b"https"
    said = f"{_COOKIE}={visitor.id}; Path={PATH}; Max-Age={int(lasting.total_seconds())}; HttpOnly; SameSite=Strict"
    return (said + ("; Secure" if tls else "")).encode()


def _cookie(connection: AnyConnection) -> str | None:
    try:
        morsel = SimpleCookie((header(connection, b"cookie") or b"").decode("latin-1")).get(_COOKIE)
    except CookieError:
        return None
    return morsel.value if morsel is not None and _ID.fullmatch(morsel.value) else None


def _name(id_: str) -> str:
    """What the store knows a session by: who reads the store cannot use it."""
    return hashlib.sha256(id_.encode()).hexdigest()
