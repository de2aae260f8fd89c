"""THE DESK: where reviewers come for work and callers for outcomes. It knows who may, the rules what follows.

Reviewers judge the tasks that their team owns; callers see what became of their own runs, and may appeal.
"""

import secrets
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta

from msgspec import Struct
from msgspec.structs import replace

from gateway.core import review_checks, review_rules
from gateway.core.clock import Clock
from gateway.core.errors import Conflict, Forbidden, InvalidInput, NotFound
from gateway.core.inference import Caller
from gateway.core.masking import mask
from gateway.core.registry import Registry
from gateway.core.review_ports import Depth, Filter, Question, ReviewBook, ReviewQueue, RunOutcome
from gateway.core.reviews import LEASES, Change, Event, Item, Reviewer, Ruling
from gateway.core.task import Review

_UNDECLARED = Review()
_DICE = secrets.SystemRandom()


class Case(Struct, frozen=True):
    """An item with what is judged, as far as this reviewer may see it."""

    item: Item
    question: Question


class Desk:
    """One per process. `undo_s`: how long a decision can be undone before its caller is told; `lease_s`: how long an
    item is one reviewer's.
    """

    def __init__(
        self,
        queue: ReviewQueue,
        book: ReviewBook,
        registry: Callable[[], Registry],
        clock: Clock,
        undo_s: float = 30.0,
        lease_s: float = 600.0,
        dice: Callable[[], float] = _DICE.random,
    ) -> None:
        self._queue, self._book, self._registry, self._clock = queue, book, registry, clock
        self._undo, self._lasting, self._dice = timedelta(seconds=undo_s), timedelta(seconds=lease_s), dice

    async def next(self, caller: Caller, task: str | None = None, *, escalated: bool = False) -> Case | None:
        """Lease the most urgent item; now and then, unseen, one whose answer is known. None: nothing to do.

        Raises Forbidden, Conflict where the reviewer has enough already, Unavailable.
        """
        by, token, now = reviewer(caller), secrets.token_urlsafe(24), self._clock.now()
        if escalated and not by.lead:
            raise Forbidden("Escalated items are for leads.", needs=["lead"])
        # Before anything is chosen: who has enough learns nothing of what would have come.
        await self._room(by, now)
        item = await self._known(by, token, task, now) if not escalated else None
        item = item or await self._queue.take(by, now, token, task, escalated=escalated, lasting=self._lasting)
        return await self._case(item, by) if item is not None else None

    async def take(self, caller: Caller, review_id: str) -> Case:
        """Lease a certain item. Raises NotFound, Conflict, Forbidden, Unavailable."""
        by, token = reviewer(caller), secrets.token_urlsafe(24)
        item = await self._mine(by, review_id)
        now = self._clock.now()
        await self._room(by, now)
        return await self._case(
            await self._queue.change(item.id, lambda i: review_rules.lease(i, by, now, token, self._lasting)), by
        )

    async def renew(self, caller: Caller, review_id: str, token: str) -> Item:
        """The lease begins anew. Raises NotFound, Conflict, Unavailable."""
        return await self._leased(
            caller, review_id, lambda i, by, now: review_rules.renew(i, by, now, token, self._lasting)
        )

    async def release(self, caller: Caller, review_id: str, token: str) -> Item:
        """Back into the queue. Raises NotFound, Conflict, Unavailable."""
        return await self._leased(caller, review_id, lambda i, by, now: review_rules.release(i, by, now, token))

    async def skip(self, caller: Caller, review_id: str, token: str, reason: str) -> Item:
        """Leave it to others. Raises NotFound, Conflict, Unavailable."""
        return await self._leased(caller, review_id, lambda i, by, now: review_rules.skip(i, by, now, token, reason))

    async def decide(self, caller: Caller, review_id: str, token: str, ruling: Ruling) -> Item:
        """Settle the item with all its runs. Raises NotFound, Conflict, InvalidInput, Unavailable."""

        def rule(item: Item, by: Reviewer, now: datetime) -> Change:
            self._check_policies(item.task, ruling.policies)
            change = review_rules.decide(item, by, now, token, ruling, self._undo)
            return review_checks.followed(change, self._declared(item.task), self._clock.new_id)

        return await self._leased(caller, review_id, rule)

    async def undo(self, caller: Caller, review_id: str) -> Item:
        """Take the decision back within the window. Raises NotFound, Conflict, Forbidden, Unavailable."""
        return await self._leased(caller, review_id, review_rules.undo)

    async def mark_gold(self, caller: Caller, review_id: str) -> Item:
        """Its outcome counts as known from now on. Raises NotFound, Conflict, Forbidden, Unavailable."""
        if not reviewer(caller).lead:
            raise Forbidden("Only a lead says what is known.", needs=["lead"])
        return await self._leased(caller, review_id, lambda i, by, now: review_checks.mark_gold(i, by.actor, now))

    async def appeal(self, caller: Caller, review_id: str, reason: str) -> RunOutcome:
        """The caller team disagrees: somebody else judges. Raises NotFound, Conflict, Unavailable."""
        item = await self._of_caller(caller, review_id)
        by, now, new_id = reviewer(caller).actor, self._clock.now(), self._clock.new_id()
        await self._queue.change(item.id, lambda i: review_checks.appeal(i, by, now, reason, new_id))
        return await self.outcome(caller, review_id)

    async def outcome(self, caller: Caller, review_id: str) -> RunOutcome:
        """What became of a held run, for the team that sent it and the one that owns the task. Raises NotFound,
        Forbidden for a reviewer, who may be asked the same again.
        """
        item = await self._book.find(review_id)
        found = await self._book.outcome(review_id, self._clock.now())
        if item is None or found is None or caller.team not in (item.caller_team, item.owner_team):
            raise NotFound("There is no such review.")
        if caller.team != item.caller_team and "review" in caller.scopes and not reviewer(caller).lead:
            raise Forbidden("Who judges, judges blind.", needs=["lead"])
        return found

    async def outcome_of(self, review_id: str) -> RunOutcome | None:
        """The same for whoever may see the run, None where it has no item yet. Raises Unavailable."""
        return await self._book.outcome(review_id, self._clock.now())

    async def show(self, caller: Caller, review_id: str) -> Case:
        """An item of the team's tasks with its text; that it was read is recorded. Raises NotFound, Unavailable."""
        by = reviewer(caller)
        return await self._case(await self._mine(by, review_id), by)

    async def history(self, caller: Caller, review_id: str) -> Sequence[Event]:
        """What happened to an item of the team's tasks. Raises NotFound, Forbidden, Unavailable."""
        by = reviewer(caller)
        item = await self._mine(by, review_id)
        if not by.lead:
            # Who judges blind must not read what others said.
            raise Forbidden("The history of an item is for leads.", needs=["lead"])
        return await self._book.history(item.id)

    async def listed(self, caller: Caller, wanted: Filter) -> Sequence[Item]:
        """Items of the tasks that the team owns. Raises Unavailable."""
        return await self._book.listed(replace(wanted, owner_team=caller.team))

    async def depth(self, caller: Caller) -> Sequence[Depth]:
        """The queues of the team's tasks. Raises Unavailable."""
        return await self._book.depth(caller.team, self._clock.now())

    async def _known(self, by: Reviewer, token: str, task: str | None, now: datetime) -> Item | None:
        """A known item, as often as its task declares."""
        for name, loaded in self._registry().tasks.items():
            share = (loaded.declared.review or _UNDECLARED).gold
            if share <= 0 or loaded.declared.owner != by.team or task not in (None, name) or self._dice() >= share:
                continue
            if (root := await self._queue.known(by, name)) is not None:
                new_id = self._clock.new_id()
                await self._queue.change(
                    root.id,
                    lambda i, id_=new_id: review_checks.ask_gold(i, by.actor, by.key_id, now, id_),  # type: ignore[misc]
                )
                return await self._queue.change(new_id, lambda i: review_rules.lease(i, by, now, token, self._lasting))
        return None

    async def _leased(self, caller: Caller, review_id: str, rule: Callable[[Item, Reviewer, datetime], Change]) -> Item:
        by = reviewer(caller)
        item = await self._mine(by, review_id)
        return await self._queue.change(item.id, lambda i: rule(i, by, self._clock.now()))

    async def _mine(self, by: Reviewer, review_id: str) -> Item:
        """Another team's item looks like none at all."""
        item = await self._book.find(review_id)
        if item is None or item.owner_team != by.team:
            raise NotFound("There is no such review.")
        return item

    async def _of_caller(self, caller: Caller, review_id: str) -> Item:
        item = await self._book.find(review_id)
        if item is None or item.caller_team != caller.team:
            raise NotFound("There is no such review.")
        return item

    async def _room(self, by: Reviewer, now: datetime) -> None:
        """Nobody can keep a queue from the others by taking all of it. Raises Conflict, Unavailable."""
        wanted = Filter(owner_team=by.team, state="leased", lease_key=by.key_id)
        held = [item for item in await self._book.listed(wanted) if item.lease_until and item.lease_until > now]
        if len(held) >= LEASES:
            raise Conflict(f"You have {LEASES} items already: decide, skip or release one first.")

    async def _case(self, item: Item, by: Reviewer) -> Case:
        question = await self._book.question(item, by.actor, self._clock.now())
        if not by.lead:
            question = replace(question, input=mask(question.input), thread_id=mask(question.thread_id))
        return Case(item, question)

    def _check_policies(self, task: str, policies: Sequence[str]) -> None:
        loaded = self._registry().tasks.get(task)
        known = loaded.declared.policy if loaded else {}
        if unknown := [name for name in policies if name not in known]:
            raise InvalidInput(f"The task `{task}` has no policy `{unknown[0]}`.", policies=sorted(known))

    def _declared(self, task: str) -> Review:
        loaded = self._registry().tasks.get(task)
        return (loaded.declared.review if loaded else None) or _UNDECLARED


def reviewer(caller: Caller) -> Reviewer:
    """Who judges: the key, and whether it is a lead's."""
    return Reviewer(caller.team, caller.key_id, "lead" in caller.scopes)
