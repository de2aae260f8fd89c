"""The desk itself: one item at a time, the next one leased ahead. Every act is a form, and leads back to the page."""

from collections.abc import Awaitable, Mapping, Sequence
from contextlib import suppress
from typing import Any
from urllib.parse import urlencode

from litestar import Request, get, post
from litestar.handlers import HTTPRouteHandler

from gateway.core.desk import Case, reviewer
from gateway.core.errors import Conflict, Forbidden, InvalidInput, NotFound
from gateway.core.inference import Caller
from gateway.core.review_ports import Filter
from gateway.core.reviews import Item, Ruling
from gateway.core.sessions import Exposure
from gateway.web.doors import Doors
from gateway.web.exchange import exchange_of
from gateway.web.pages.cases import WORST, CaseView, case_view, may_judge
from gateway.web.pages.entrance import SIGN_IN, leaving
from gateway.web.pages.html import empty, page, redirect
from gateway.web.pages.sessions import PATH, Form, Visits, first, visitor_of
from gateway.web.reply import Reply

AnyRequest = Request[Any, Any, Any]

# What a page may say of the act before it. The query names one; its words are ours.
NOTICES: Mapping[str, str] = {
    "deliver": "Delivered.",
    "block": "Blocked.",
    "escalate": "Handed to a lead.",
    "skip": "Left to somebody else.",
    "undo": "Taken back: decide again.",
    "late": "Too late: the lease had ended, or somebody else was faster. Nothing was changed.",
    "policy": "Not blocked: tick the policy that it breaks first.",
    "failed": "That did not reach the gateway. Nothing was changed.",
}
_DONE = ("deliver", "block")
_REASONS = ("unclear", "language", "knows_a_party", "distressing")
_AHEAD = 2


class WorkPages:
    """What a reviewer does. Which items are theirs is read from the leases, so that any process can go on."""

    def __init__(self, doors: Doors, exposure: Exposure, visits: Visits) -> None:
        self._doors, self._desk, self._exposure, self._visits = doors, doors.desk, exposure, visits

    def routes(self) -> Sequence[HTTPRouteHandler]:
        """The handlers with their paths."""
        item = "/{review_id:str}"
        return (
            get("/")(self.show_desk),
            post("/next", status_code=303)(self.take_next),
            post("/ahead", status_code=200)(self.lease_ahead),
            post("/sign-out", status_code=303)(self.sign_out),
            post(f"{item}/reveal", status_code=303)(self.reveal),
            post(f"{item}/renew", status_code=200)(self.renew),
            post(f"{item}/decide", status_code=303)(self.decide),
            post(f"{item}/skip", status_code=303)(self.skip),
            post(f"{item}/undo", status_code=303)(self.undo),
        )

    async def show_desk(self, request: AnyRequest) -> Reply:
        """The item under review, or how much waits."""
        visitor, exchange = visitor_of(request), exchange_of(request, self._doors.clock)
        caller, now, asked = exchange.caller, self._doors.clock.now(), request.query_params
        mine = await self._mine(caller) if may_judge(caller) else []
        chosen = next((item for item in mine if item.id == asked.get("item")), mine[0] if mine else None)
        did, of = asked.get("did", ""), asked.get("of", "")
        return page(
            "desk.html",
            exchange,
            case=await self._view(caller, chosen, asked.get("shown")) if chosen else None,
            ahead=len(mine) > 1,
            queues=await self._desk.depth(caller),
            exposed=await self._exposure.of(caller.key_id, now.date()),
            notice=NOTICES.get(did, ""),
            undo=of if did in _DONE else "",
            caller=caller,
            judges=may_judge(caller),
            lead=reviewer(caller).lead,
            reasons=_REASONS,
            csrf=visitor.csrf,
            now=now,
        )

    async def take_next(self, request: AnyRequest) -> Reply:
        """Lease the most urgent item."""
        caller, _ = await self._asked(request)
        return await self._onward(request, caller)

    async def lease_ahead(self, request: AnyRequest) -> Reply:
        """The item after the one on the page, so that it is there when it is needed: a fragment, not yet to be seen."""
        caller, fields = await self._asked(request)
        mine = await self._mine(caller)
        if len(mine) < _AHEAD and await self._take(caller) is not None:
            mine = await self._mine(caller)
        after = next((item for item in mine if item.id != first(fields, "item")), None)
        view = await self._view(caller, after, None) if after else None
        exchange, csrf = exchange_of(request, self._doors.clock), visitor_of(request).csrf
        return page("ahead.html", exchange, case=view, reasons=_REASONS, csrf=csrf, now=self._doors.clock.now())

    async def reveal(self, request: AnyRequest) -> Reply:
        """Show the text, and count that it was shown."""
        caller, _ = await self._asked(request)
        review_id = request.path_params["review_id"]
        item = next((item for item in await self._mine(caller) if item.id == review_id), None)
        if item is None:
            return self._back(request, did="late")
        today = self._doors.clock.now().date()
        await self._exposure.add(caller.key_id, today, item.severity or WORST, item.root_id)
        return self._back(request, item=review_id, shown=review_id)

    async def renew(self, request: AnyRequest) -> Reply:
        """Whoever is still reading keeps the item, and the one leased ahead. Raises Conflict where it is lost."""
        caller, _ = await self._asked(request)
        mine = await self._mine(caller)
        if request.path_params["review_id"] not in [item.id for item in mine]:
            raise Conflict("This lease is not, or no longer, yours.")
        await self._renew(caller, mine)
        return empty(exchange_of(request, self._doors.clock))

    async def decide(self, request: AnyRequest) -> Reply:
        """Deliver, block or escalate; a block says why."""
        caller, fields = await self._asked(request)
        review_id, outcome = request.path_params["review_id"], first(fields, "outcome")
        if outcome not in ("deliver", "block", "escalate"):
            raise InvalidInput("A decision is deliver, block or escalate.")
        ruling = Ruling(
            outcome=outcome,  # type: ignore[arg-type]
            policies=tuple(fields.get("policy", ())) if outcome != "deliver" else (),
            note=first(fields, "note").strip()[:2000] or None,
        )
        if outcome == "block" and not ruling.policies and first(fields, "has_policies"):
            return self._back(request, item=review_id, shown=first(fields, "shown"), did="policy")
        act = self._desk.decide(caller, review_id, first(fields, "token"), ruling)
        return await self._acted(request, caller, act, outcome)

    async def skip(self, request: AnyRequest) -> Reply:
        """Somebody else judges this."""
        caller, fields = await self._asked(request)
        reason = first(fields, "reason")
        if reason not in _REASONS:
            raise InvalidInput("Say why, with one of the reasons of the form.")
        act = self._desk.skip(caller, request.path_params["review_id"], first(fields, "token"), reason)
        return await self._acted(request, caller, act, "skip")

    async def undo(self, request: AnyRequest) -> Reply:
        """Take a decision back, and the item with it."""
        caller, _ = await self._asked(request)
        review_id = request.path_params["review_id"]
        try:
            await self._desk.undo(caller, review_id)
            await self._desk.take(caller, review_id)
        except Conflict:
            return self._back(request, did="late")
        return self._back(request, item=review_id, did="undo")

    async def sign_out(self, request: AnyRequest) -> Reply:
        """End the session; what was leased goes back into the queue."""
        await self._visits.form(request)
        visitor, exchange = visitor_of(request), exchange_of(request, self._doors.clock)
        for item in await self._mine(exchange.caller) if may_judge(exchange.caller) else ():
            with suppress(Conflict):
                await self._desk.release(exchange.caller, item.id, item.lease_token or "")
        await self._visits.sign_out(visitor)
        return redirect(SIGN_IN, exchange, headers=[leaving(request, visitor)])

    async def _asked(self, request: AnyRequest) -> tuple[Caller, Form]:
        """Who asks, and with what. Raises Forbidden for who is no reviewer, and for a form of another origin."""
        fields = await self._visits.form(request)
        caller = exchange_of(request, self._doors.clock).caller
        if not may_judge(caller):
            raise Forbidden("The texts are for reviewers.", needs=["lead", "review"])
        return caller, fields

    async def _acted(self, request: AnyRequest, caller: Caller, act: Awaitable[Item], did: str) -> Reply:
        try:
            done = await act
        except Conflict:
            return await self._onward(request, caller, did="late")
        return await self._onward(request, caller, did=did, of=done.id)

    async def _onward(self, request: AnyRequest, caller: Caller, **said: str) -> Reply:
        """To the item leased ahead, under a lease that begins anew; to the next in the queue where none was."""
        mine = await self._mine(caller)
        if not mine and await self._take(caller) is not None:
            return self._back(request, **said)
        await self._renew(caller, mine[:1])
        return self._back(request, **({"item": mine[0].id} if mine else {}), **said)

    async def _renew(self, caller: Caller, items: Sequence[Item]) -> None:
        """Where a deadline has passed, a lease is what is left of it."""
        for item in items:
            with suppress(Conflict):
                await self._desk.renew(caller, item.id, item.lease_token or "")

    async def _take(self, caller: Caller) -> Case | None:
        """What only a lead can judge comes first for a lead."""
        case = await self._desk.next(caller, escalated=True) if reviewer(caller).lead else None
        return case or await self._desk.next(caller)

    async def _mine(self, caller: Caller) -> list[Item]:
        """The items that this reviewer has on lease, longest first."""
        now = self._doors.clock.now()
        leased = await self._desk.listed(caller, Filter(state="leased", lease_key=caller.key_id))
        ends = {item.id: item.lease_until for item in leased if item.lease_until and item.lease_until > now}
        return sorted((item for item in leased if item.id in ends), key=lambda item: ends[item.id])

    async def _view(self, caller: Caller, item: Item, shown: str | None) -> CaseView | None:
        try:
            case = await self._desk.show(caller, item.id)
        except NotFound:
            return None
        task = self._doors.registry().tasks.get(item.task)
        return case_view(case, task, self._doors.clock.now(), revealed=shown == item.id)

    def _back(self, request: AnyRequest, **said: str) -> Reply:
        query = f"?{urlencode(said)}" if said else ""
        return redirect(f"{PATH}{query}", exchange_of(request, self._doors.clock))
