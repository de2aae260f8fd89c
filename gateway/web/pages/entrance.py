"""Sign-in, sign-out, and what a visitor sees of an error."""

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

from litestar import Request, get, post
from litestar.handlers import HTTPRouteHandler

from gateway.core.errors import Forbidden, NotFound, QuotaExceeded, Unauthenticated
from gateway.web.doors import Doors
from gateway.web.exchange import exchange_of, header
from gateway.web.pages.html import asset, page, redirect
from gateway.web.pages.sessions import PATH, Visitor, Visits, cookie_header, first, visitor_of
from gateway.web.problems import TITLES, as_gateway_error
from gateway.web.reply import Reply

AnyRequest = Request[Any, Any, Any]
SIGN_IN = f"{PATH}/sign-in"


class EntrancePages:
    """A key opens the desk; it is posted once, and the answer is a session."""

    def __init__(self, doors: Doors, visits: Visits) -> None:
        self._doors, self._visits = doors, visits

    def routes(self) -> Sequence[HTTPRouteHandler]:
        """The handlers with their paths."""
        return (
            get("/sign-in", opt={"open": True})(self.show_sign_in),
            post("/sign-in", status_code=303, opt={"open": True})(self.sign_in),
            get("/static/{name:str}", opt={"asset": True})(self.show_asset),
        )

    async def show_sign_in(self, request: AnyRequest) -> Reply:
        """The form, and the cookie that its token is made from."""
        return self._form(request, visitor_of(request))

    async def sign_in(self, request: AnyRequest) -> Reply:
        """A session for a good key; the form again, with the reason, for any other."""
        fields = await self._visits.form(request)
        try:
            visitor = await self._visits.sign_in(request, first(fields, "key").strip())
        except Unauthenticated:
            return self._form(request, visitor_of(request), "That is no valid key.", 401)
        except (Forbidden, QuotaExceeded) as error:
            return self._form(request, visitor_of(request), error.detail, error.status)
        cookie = [(b"set-cookie", cookie_header(request, visitor))]
        return redirect(PATH, exchange_of(request, self._doors.clock), headers=cookie)

    async def show_asset(self, request: AnyRequest) -> Reply:
        """Style and scripts."""
        try:
            return asset(request, request.path_params["name"])
        except KeyError:
            raise NotFound("There is no such file.") from None

    def _form(self, request: AnyRequest, visitor: Visitor, wrong: str = "", status: int = 200) -> Reply:
        cookie = [(b"set-cookie", cookie_header(request, visitor))]
        exchange = exchange_of(request, self._doors.clock)
        return page("sign_in.html", exchange, status, headers=cookie, csrf=visitor.csrf, wrong=wrong)


def leaving(request: AnyRequest, visitor: Visitor) -> tuple[bytes, bytes]:
    """The header that takes the cookie away."""
    return (b"set-cookie", cookie_header(request, visitor, timedelta(0)))


def error_page(doors: Doors) -> Callable[[AnyRequest, Exception], Any]:
    """The exception handler of all pages: to the sign-in where one is needed, else a page that says what went wrong."""

    def show(request: AnyRequest, raised: Exception) -> Reply:
        exchange = exchange_of(request, doors.clock)
        error = as_gateway_error(raised, exchange)
        doors.telemetry.problem(error.code)
        if not isinstance(error, Unauthenticated):
            title = TITLES.get(error.code, error.code)
            return page("error.html", exchange, error.status, title=title, error=error, request_id=exchange.request_id)
        if header(request, b"hx-request") is None:
            return redirect(SIGN_IN, exchange)
        # A redirect would be followed by the script; this one the browser follows.
        return page("error.html", exchange, 401, title=TITLES["unauthenticated"], error=error,
                    request_id=exchange.request_id, headers=[(b"hx-redirect", SIGN_IN.encode())])  # fmt: skip

    return show
