"""Templates → pages. Everything is escaped; nothing inline runs; nothing comes from elsewhere."""

import hashlib
from collections.abc import Mapping
from datetime import datetime, timedelta
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from litestar import Request
from msgspec import Struct

from gateway.web.exchange import Exchange
from gateway.web.reply import Headers, Reply

HTML = b"text/html; charset=utf-8"
_POLICY = (
    b"default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; form-action 'self'; "
    b"base-uri 'none'; frame-ancestors 'none'"
)
_STRICT: tuple[tuple[bytes, bytes], ...] = (
    (b"content-security-policy", _POLICY),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
)


class Asset(Struct, frozen=True):
    """A file of the page. `version` changes with its content, so that a browser may keep it for ever."""

    body: bytes
    media_type: bytes
    version: str


def _asset(package: str, path: str, media_type: bytes) -> Asset:
    body = files(package).joinpath(path).read_bytes()
    return Asset(body, media_type, hashlib.sha256(body).hexdigest()[:12])


# htmx itself (0BSD) is a file of a package that has nothing else in it.
ASSETS: Mapping[str, Asset] = {
    "desk.css": _asset("gateway.web.pages", "static/desk.css", b"text/css; charset=utf-8"),
    "desk.js": _asset("gateway.web.pages", "static/desk.js", b"text/javascript; charset=utf-8"),
    "htmx.js": _asset("js_lib_htmx", "static/htmx/htmx.min.js", b"text/javascript; charset=utf-8"),
}

_TEMPLATES = Environment(
    loader=PackageLoader("gateway.web.pages"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def span(length: timedelta) -> str:
    """A length of time for people: the two largest units."""
    minutes = int(abs(length).total_seconds() // 60)
    days, hours = divmod(minutes // 60, 24)
    if days:
        return f"{days} d {hours} h"
    return f"{hours} h {minutes % 60} min" if hours else f"{minutes} min"


def due(at: datetime, now: datetime) -> str:
    """How a deadline stands."""
    return f"{span(now - at)} overdue" if at < now else f"due in {span(at - now)}"


_TEMPLATES.globals.update(assets=ASSETS, span=span, due=due)


def page(template: str, exchange: Exchange, status: int = 200, *, headers: Headers | None = None, **said: Any) -> Reply:
    """A rendered template."""
    body = _TEMPLATES.get_template(template).render(**said).encode()
    return Reply(body, [*exchange.headers(), *_STRICT, *(headers or [])], status, HTML)


def redirect(to: str, exchange: Exchange, *, headers: Headers | None = None) -> Reply:
    """Look there instead, with GET."""
    location = [(b"location", to.encode())]
    return Reply(b"", [*exchange.headers(), *_STRICT, *location, *(headers or [])], 303, HTML)


def empty(exchange: Exchange) -> Reply:
    """Done, and there is nothing to show."""
    return Reply(b"", [*exchange.headers(), *_STRICT], media_type=HTML)


def asset(request: "Request[Any, Any, Any]", name: str) -> Reply:
    """A file of the page. Raises KeyError where there is none of that name."""
    found = ASSETS[name]
    kept = b"public, max-age=31536000, immutable" if request.query_params.get("v") == found.version else b"no-cache"
    headers = [(b"cache-control", kept), (b"x-content-type-options", b"nosniff")]
    return Reply(found.body, headers, media_type=found.media_type)
