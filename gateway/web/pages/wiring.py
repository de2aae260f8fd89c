"""The pages as an application of their own below /desk: forms and sessions here, keys and JSON everywhere else."""

from litestar import Litestar, asgi
from litestar.handlers import ASGIRouteHandler
from litestar.types import Receive, Scope, Send

from gateway.web.auth import Doorkeeper, Keyring
from gateway.web.contract import contract
from gateway.web.doors import Doors, WebSettings
from gateway.web.pages.entrance import EntrancePages, error_page
from gateway.web.pages.people import PeoplePage
from gateway.web.pages.sessions import PATH, Visits
from gateway.web.pages.work import WorkPages


def create_pages(doors: Doors, settings: WebSettings, keyring: Keyring, doorkeeper: Doorkeeper) -> Litestar:
    """Every page needs a session, but sign-in and the assets."""
    visits = Visits(doors.sessions, keyring, doorkeeper, doors.clock, settings)
    return Litestar(
        route_handlers=[
            *EntrancePages(doors, visits).routes(),
            *PeoplePage(doors).routes(),
            *WorkPages(doors, doors.exposure, visits).routes(),
        ],
        guards=[visits],
        exception_handlers={Exception: error_page(doors)},
        openapi_config=None,
        logging_config=None,
        request_max_body_size=None,
    )


def mounted(pages: Litestar) -> ASGIRouteHandler:
    """The route that hands them whatever is below /desk. No key opens it: the pages look at the session themselves."""

    @asgi(PATH, is_mount=True, copy_scope=True, opt=contract(answer=None))
    async def desk(scope: Scope, receive: Receive, send: Send) -> None:
        await pages(scope, receive, send)

    return desk
