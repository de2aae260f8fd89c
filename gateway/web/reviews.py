"""The queue over HTTP: reviewers take work and decide, leads look after the queue, callers appeal."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, Any, Literal, TypeVar, get_args

import msgspec
from litestar import Request, get, post
from litestar.handlers import HTTPRouteHandler
from msgspec import Meta, Struct

from gateway.core.desk import reviewer
from gateway.core.errors import Conflict, InvalidInput, NotFound
from gateway.core.review_ports import Filter, RunOutcome
from gateway.core.reviews import Item, Ruling, State
from gateway.core.task import Name
from gateway.web.contract import Query, contract
from gateway.web.doors import Doors, WebSettings
from gateway.web.envelope import invalid, parse
from gateway.web.exchange import exchange_of
from gateway.web.limits import read_body
from gateway.web.reply import Reply, json_reply
from gateway.web.review_views import CaseView, Depths, History, ItemList, ItemView, NextView, of_case, of_event, of_item

AnyRequest = Request[Any, Any, Any]
B = TypeVar("B", bound=Struct)

Token = Annotated[str, Meta(min_length=1, max_length=64)]
Word = Annotated[str, Meta(pattern=r"^[a-z][a-z0-9_-]{0,63}$")]
Words = Annotated[str, Meta(min_length=1, max_length=2000)]

_STATES: tuple[str, ...] = get_args(State)
_LIMIT = Query("limit", "How many items.", {"type": "integer", "minimum": 1, "maximum": 500, "default": 100})
_TASK = Query("task", "Items of this task only.", {"type": "string"})
_STATE = Query("state", "Items in this state only.", {"enum": list(_STATES)})
_BEFORE = Query("before", "Only items older than the one of this id.", {"type": "string", "format": "uuid"})


class Wanted(Struct, frozen=True, forbid_unknown_fields=True):
    """What to work on: a task, or any; as a lead, what is escalated."""

    task: Name | None = None
    escalated: bool = False


class Lease(Struct, frozen=True, forbid_unknown_fields=True):
    """The token that came with the item."""

    token: Token


class Skip(Struct, frozen=True, forbid_unknown_fields=True):
    """Why somebody else should judge this."""

    token: Token
    reason: Word


class Decision(Struct, frozen=True, forbid_unknown_fields=True):
    """`policies` are those that the item breaks: the action may be right and the machine's policy wrong."""

    token: Token
    outcome: Literal["deliver", "block", "escalate"]
    policies: Annotated[tuple[Name, ...], Meta(max_length=20)] = ()
    reason: Word | None = None
    note: Words | None = None


class Appeal(Struct, frozen=True, forbid_unknown_fields=True):
    """Why the outcome is wrong, in the caller's words."""

    reason: Words


class ReviewPages:
    """Work on the items of the tasks that a team owns; what became of its own runs, for the team that sent them."""

    def __init__(self, doors: Doors, settings: WebSettings) -> None:
        self._doors, self._settings = doors, settings

    def routes(self) -> Sequence[HTTPRouteHandler]:
        """The handlers with their paths and contracts."""
        lost, late = (NotFound,), (NotFound, Conflict)
        queries = (_TASK, _STATE, _LIMIT, _BEFORE)

        def work(body: Any) -> Any:
            return contract("review", "lead", body=body, answer=ItemView, errors=late)

        item = "/reviews/{review_id:str}"
        listed = contract("review", "lead", answer=ItemList, query=queries, errors=(InvalidInput,))
        taken = contract("review", "lead", answer=CaseView, errors=late)
        asked = contract("invoke", body=Appeal, answer=RunOutcome, errors=late)
        return (
            post(
                "/reviews/next",
                status_code=200,
                opt=contract("review", "lead", body=Wanted, answer=NextView, errors=(Conflict,)),
            )(self.next_review),
            get("/reviews", opt=listed)(self.list_reviews),
            get("/reviews/depth", opt=contract("review", "lead", answer=Depths))(self.show_depth),
            get(item, opt=contract("review", "lead", answer=CaseView, errors=lost))(self.show_review),
            get(f"{item}/history", opt=contract("lead", answer=History, errors=lost))(self.show_history),
            get(f"{item}/outcome", opt=contract("read", answer=RunOutcome, errors=lost))(self.show_outcome),
            post(f"{item}/lease", status_code=200, opt=taken)(self.lease_review),
            post(f"{item}/renew", status_code=200, opt=work(Lease))(self.renew_lease),
            post(f"{item}/release", status_code=200, opt=work(Lease))(self.release_review),
            post(f"{item}/skip", status_code=200, opt=work(Skip))(self.skip_review),
            post(f"{item}/decide", status_code=200, opt=work(Decision))(self.decide_review),
            post(f"{item}/undo", status_code=200, opt=work(None))(self.undo_decision),
            post(f"{item}/appeal", status_code=200, opt=asked)(self.appeal_outcome),
            post(f"{item}/gold", status_code=200, opt=contract("lead", answer=ItemView, errors=late))(self.mark_gold),
        )

    async def next_review(self, request: AnyRequest) -> Reply:
        """Lease the most urgent item for ten minutes: its text, why it was held, and a token. Null: nothing to do."""
        exchange = exchange_of(request, self._doors.clock)
        wanted = await self._body(request, _wanted)
        case = await self._doors.desk.next(exchange.caller, wanted.task, escalated=wanted.escalated)
        view = NextView(of_case(case, reviewer(exchange.caller)) if case else None)
        return json_reply(view, exchange.headers())

    async def list_reviews(self, request: AnyRequest) -> Reply:
        """Items of the team's tasks, newest first, without text. Outcomes by others are for leads: who judges, judges
        blind.
        """
        exchange = exchange_of(request, self._doors.clock)
        wanted = _filter(request)
        items = await self._doors.desk.listed(exchange.caller, wanted)
        by = reviewer(exchange.caller)
        rest = items[-1].id if len(items) == wanted.limit else None
        return json_reply(ItemList([of_item(item, by) for item in items], rest), exchange.headers())

    async def show_depth(self, request: AnyRequest) -> Reply:
        """How much waits for each of the team's tasks, since when, and what is due soon."""
        exchange = exchange_of(request, self._doors.clock)
        return json_reply(Depths(list(await self._doors.desk.depth(exchange.caller))), exchange.headers())

    async def show_review(self, request: AnyRequest) -> Reply:
        """An item with its text, masked for whoever is no lead. That it was read is in the audit log."""
        return await self._case(request, self._doors.desk.show)

    async def lease_review(self, request: AnyRequest) -> Reply:
        """Lease a certain item instead of the next."""
        return await self._case(request, self._doors.desk.take)

    async def show_history(self, request: AnyRequest) -> Reply:
        """Every step of an item's life: who, when, before and after, and the version of the task that held it."""
        exchange = exchange_of(request, self._doors.clock)
        events = await self._doors.desk.history(exchange.caller, request.path_params["review_id"])
        return json_reply(History([of_event(event) for event in events]), exchange.headers())

    async def show_outcome(self, request: AnyRequest) -> Reply:
        """What became of a held run, for the team that sent it."""
        exchange = exchange_of(request, self._doors.clock)
        found = await self._doors.desk.outcome(exchange.caller, request.path_params["review_id"])
        return json_reply(found, exchange.headers())

    async def renew_lease(self, request: AnyRequest) -> Reply:
        """Another ten minutes, but not beyond the item's deadline."""
        body = await self._body(request, _lease)
        return await self._item(request, self._doors.desk.renew, body.token)

    async def release_review(self, request: AnyRequest) -> Reply:
        """Put an item back into the queue."""
        body = await self._body(request, _lease)
        return await self._item(request, self._doors.desk.release, body.token)

    async def skip_review(self, request: AnyRequest) -> Reply:
        """Leave an item to others. What was skipped three times is a lead's."""
        body = await self._body(request, _skip)
        return await self._item(request, self._doors.desk.skip, body.token, body.reason)

    async def decide_review(self, request: AnyRequest) -> Reply:
        """Deliver, block or escalate. The decision settles every run that joined the item; `runs` says how many."""
        body = await self._body(request, _decision)
        ruling = Ruling(outcome=body.outcome, policies=body.policies, reason=body.reason, note=body.note)
        return await self._item(request, self._doors.desk.decide, body.token, ruling)

    async def undo_decision(self, request: AnyRequest) -> Reply:
        """Take a decision back before its caller is told of it; `undo_until` of the item says until when."""
        return await self._item(request, self._doors.desk.undo)

    async def mark_gold(self, request: AnyRequest) -> Reply:
        """From now on the item's outcome counts as known, and reviewers are asked it unseen."""
        return await self._item(request, self._doors.desk.mark_gold)

    async def appeal_outcome(self, request: AnyRequest) -> Reply:
        """The team that sent the item disagrees with its outcome: another reviewer judges it, once."""
        exchange = exchange_of(request, self._doors.clock)
        body = await self._body(request, _appeal)
        review_id = request.path_params["review_id"]
        return json_reply(await self._doors.desk.appeal(exchange.caller, review_id, body.reason), exchange.headers())

    async def _body(self, request: AnyRequest, decoder: "msgspec.json.Decoder[B]") -> B:
        return parse(decoder, await read_body(request, self._settings), self._settings)

    async def _item(self, request: AnyRequest, act: Callable[..., Awaitable[Item]], *said: Any) -> Reply:
        exchange = exchange_of(request, self._doors.clock)
        item = await act(exchange.caller, request.path_params["review_id"], *said)
        return json_reply(of_item(item, reviewer(exchange.caller)), exchange.headers())

    async def _case(self, request: AnyRequest, act: Callable[..., Awaitable[Any]]) -> Reply:
        exchange = exchange_of(request, self._doors.clock)
        case = await act(exchange.caller, request.path_params["review_id"])
        return json_reply(of_case(case, reviewer(exchange.caller)), exchange.headers())


_wanted, _lease = msgspec.json.Decoder(Wanted), msgspec.json.Decoder(Lease)
_skip, _decision, _appeal = msgspec.json.Decoder(Skip), msgspec.json.Decoder(Decision), msgspec.json.Decoder(Appeal)


def _filter(request: AnyRequest) -> Filter:
    """Raises InvalidInput."""
    given = request.query_params
    state, limit, before = given.get("state"), given.get("limit", "100"), given.get("before")
    if state is not None and state not in _STATES:
        raise invalid("There is no such state.", ("state", f"is one of {', '.join(_STATES)}"))
    if not (limit.isascii() and limit.isdecimal() and len(limit) <= 3 and 1 <= int(limit) <= 500):
        raise invalid("That is no number of items.", ("limit", "must be an integer from 1 to 500"))
    if before is not None:
        try:
            before = msgspec.convert(before, _Uuid, strict=False)
        except msgspec.ValidationError:
            raise invalid("That is no id of an item.", ("before", "must be the id of an item")) from None
    return Filter(task=given.get("task"), state=state, before=before, limit=int(limit))


_Uuid = Annotated[str, Meta(pattern=r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$")]
