"""Recorded runs, and what teams say of them afterwards."""

from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
from litestar import Request, get, post
from litestar.handlers import HTTPRouteHandler
from msgspec import Meta, Struct

from gateway.core.errors import Forbidden, NotFound
from gateway.core.inference import Caller
from gateway.core.meaning import labels_of
from gateway.core.problems import did_you_mean
from gateway.core.records import Feedback, Run
from gateway.web.answers import RunAnswer, of_run
from gateway.web.contract import contract
from gateway.web.doors import Doors, WebSettings
from gateway.web.envelope import Id, invalid, parse
from gateway.web.exchange import exchange_of
from gateway.web.limits import read_body
from gateway.web.reply import Reply, json_reply

AnyRequest = Request[Any, Any, Any]


class FeedbackBody(Struct, frozen=True, forbid_unknown_fields=True):
    """The label that would have been right, a comment, or both."""

    run_id: Id
    label: Annotated[str, Meta(min_length=1, max_length=64)] | None = None
    comment: Annotated[str, Meta(min_length=1, max_length=2000)] | None = None


class FeedbackAnswer(Struct, frozen=True):
    """The id under which the feedback is kept."""

    feedback_id: str


class RunPages:
    """A team sees the runs that it caused and those of the tasks that it owns."""

    def __init__(self, doors: Doors, settings: WebSettings) -> None:
        self._doors, self._settings = doors, settings
        self._feedback_decoder = msgspec.json.Decoder(FeedbackBody)

    def routes(self) -> Sequence[HTTPRouteHandler]:
        """The handlers with their paths and contracts."""
        show = contract("read", answer=RunAnswer, errors=(NotFound,))
        give = contract("invoke", "review", body=FeedbackBody, answer=FeedbackAnswer, status=201, errors=(NotFound,))
        return (
            get("/tasks/{task:str}/runs/{run_id:str}", opt=show)(self.show_run),
            post("/tasks/{task:str}/feedback", status_code=201, opt=give)(self.give_feedback),
        )

    async def show_run(self, request: AnyRequest) -> Reply:
        """A recorded run: its decision, every attempt, what it cost, and what became of it where it was held.

        Never the text that was judged.
        """
        exchange = exchange_of(request, self._doors.clock)
        run = await self._run(request.path_params["task"], request.path_params["run_id"], exchange.caller)
        review = await self._doors.desk.outcome_of(run.review_id) if run.review_id else None
        return json_reply(of_run(run, review), exchange.headers())

    async def give_feedback(self, request: AnyRequest) -> Reply:
        """Say which label a run should have had, or comment on it. Feedback is added, never changed."""
        exchange = exchange_of(request, self._doors.clock)
        body = parse(self._feedback_decoder, await read_body(request, self._settings), self._settings)
        if body.label is None and body.comment is None:
            raise invalid("Feedback says something.", ("$", "needs a label, a comment or both"))
        run = await self._run(request.path_params["task"], body.run_id, exchange.caller)
        self._check_label(run.task, body.label)
        feedback = Feedback(
            id=self._doors.clock.new_id(),
            run_id=run.id,
            team=exchange.caller.team,
            key_id=exchange.caller.key_id,
            created_at=self._doors.clock.now(),
            label=body.label,
            comment=body.comment,
        )
        await self._doors.feedback.add(feedback)
        return json_reply(FeedbackAnswer(feedback.id), exchange.headers(), 201)

    def _check_label(self, task: str, label: str | None) -> None:
        """A task that is not served any more may have had any label."""
        served = self._doors.registry().every.get(task)
        if label is None or served is None or label in (labels := labels_of(served.declared)):
            return
        raise invalid("The task has no such label.", ("$.label", did_you_mean(label, labels) or "it has none"))

    async def _run(self, task: str, run_id: str, caller: Caller) -> Run:
        run = await self._doors.runs.find(run_id)
        if run is None or run.task != task:
            raise NotFound("There is no such run of this task.")
        if caller.team not in (run.caller_team, run.owner_team):
            raise Forbidden("This run belongs to another team.")
        return run
