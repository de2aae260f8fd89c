"""A queue on a real database: its stores, and the steps that tests take on it."""

from datetime import datetime, timedelta
from typing import Any

import msgspec
from msgspec.structs import replace
from stories import held, invocation, new_id, now

from gateway.adapters.sql.database import Database
from gateway.adapters.sql.ledger import SqlLedger
from gateway.adapters.sql.outbox import SqlOutbox
from gateway.adapters.sql.review_book import SqlReviewBook
from gateway.adapters.sql.review_sweep import SqlReviewSweep
from gateway.adapters.sql.reviews import SqlReviews
from gateway.adapters.sql.teams import SqlTeams
from gateway.adapters.sql.webhooks import SqlWebhooks
from gateway.core import review_rules
from gateway.core.holds import hold_of
from gateway.core.inference import Inference
from gateway.core.records import Team
from gateway.core.review_checks import followed
from gateway.core.reviews import Item, Reviewer, Ruling
from gateway.core.task import Review
from gateway.core.webhooks import Webhook

OWNER = "trust-and-safety"
ANN, BEN, LEAD = (Reviewer(OWNER, key * 16, lead) for key, lead in (("a", False), ("b", False), ("c", True)))
BLOCK, DELIVER = Ruling(outcome="block", policies=("off_platform",)), Ruling(outcome="deliver")
NO_UNDO = timedelta()


class Queue:
    """The stores of one database, and the two steps that most tests take."""

    def __init__(self, database: Database, ledger: SqlLedger) -> None:
        self.database, self.ledger = database, ledger
        self.reviews, self.book = SqlReviews(database), SqlReviewBook(database)
        self.sweep, self.outbox = SqlReviewSweep(database), SqlOutbox(database)

    async def hold(self, text: str = "", declared: Review | None = None, **changed: Any) -> Inference:
        """A held run, recorded; each text is a question of its own."""
        text = text or new_id()
        asked = invocation(canonical=msgspec.json.encode({"message": text}), input={"message": text})
        story = held(replace(asked, **changed), new_id())
        story = replace(story, hold=hold_of(story.decision, declared, asked.received_at))
        await self.ledger.record(story)
        return story

    async def take(self, by: Reviewer = ANN, at: datetime | None = None, **wanted: Any) -> Item | None:
        """The next item, leased with a token of its own."""
        return await self.reviews.take(by, at or now(), new_id(), **wanted)

    async def decide(
        self, item: Item, by: Reviewer, ruling: Ruling, undo: timedelta = NO_UNDO, declared: Review | None = None
    ) -> Item:
        """Decide what was leased."""
        token = item.lease_token or ""
        return await self.reviews.change(
            item.id,
            lambda i: followed(review_rules.decide(i, by, now(), token, ruling, undo), declared or Review(), new_id),
        )

    async def webhook(self) -> None:
        """The caller's team has one."""
        await SqlTeams(self.database).add(Team("acme", now()))
        await SqlWebhooks(self.database).put(Webhook("acme", "http://127.0.0.1/", "whsec_AAAA", now()))

    async def told(self, until: datetime | None = None) -> list[dict[str, Any]]:
        """The bodies of the messages that are due."""
        at = until or now() + timedelta(seconds=1)
        return [msgspec.json.decode(m.body) for m, _ in await self.outbox.claim(at, at + timedelta(seconds=60), 100)]
