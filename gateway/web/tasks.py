"""What tasks there are, and what they read and answer."""

from collections.abc import Sequence
from typing import Any

from litestar import Request, get
from litestar.handlers import HTTPRouteHandler
from msgspec import Struct

from gateway.core.errors import Forbidden, UnknownTask
from gateway.core.loaded import LoadedTask
from gateway.web.api import may_call
from gateway.web.contract import contract
from gateway.web.doors import Doors
from gateway.web.exchange import exchange_of
from gateway.web.reply import Reply, json_reply

AnyRequest = Request[Any, Any, Any]


class TaskView(Struct, frozen=True):
    """A task as its callers see it: nothing of its thresholds, prompts or rules."""

    name: str
    description: str
    owner: str
    payer: str
    stages: list[str]
    actions: dict[str, str]
    policies: dict[str, int]
    fingerprint: str


class TaskList(Struct, frozen=True):
    """The tasks that the caller's team may call, by name."""

    tasks: list[TaskView]


class TaskPages:
    """The pages about tasks."""

    def __init__(self, doors: Doors) -> None:
        self._doors = doors

    def routes(self) -> Sequence[HTTPRouteHandler]:
        """The handlers with their paths and contracts."""
        errors = (UnknownTask,)
        schema = contract("invoke", "read", answer=dict[str, Any], errors=errors)
        return (
            get("/tasks", opt=contract("invoke", "read", answer=TaskList))(self.list_tasks),
            get("/tasks/{task:str}", opt=contract("invoke", "read", answer=TaskView, errors=errors))(self.show_task),
            get("/tasks/{task:str}/input_schema", opt=schema)(self.input_schema),
            get("/tasks/{task:str}/output_schema", opt=schema)(self.output_schema),
        )

    async def list_tasks(self, request: AnyRequest) -> Reply:
        """The tasks that the caller's team may call."""
        exchange = exchange_of(request, self._doors.clock)
        tasks = self._doors.registry().tasks
        views = [_view(task) for _, task in sorted(tasks.items()) if may_call(task, exchange.caller.team)]
        return json_reply(TaskList(views), exchange.headers())

    async def show_task(self, request: AnyRequest) -> Reply:
        """One task: its owner, stages, actions and policies, and the fingerprint that answers now."""
        return self._reply(request, _view(offered_task(self._doors, request)))

    async def input_schema(self, request: AnyRequest) -> Reply:
        """The JSON schema of the task's input."""
        return self._reply(request, offered_task(self._doors, request).input_schema)

    async def output_schema(self, request: AnyRequest) -> Reply:
        """The JSON schema of the task's output."""
        return self._reply(request, offered_task(self._doors, request).output_schema)

    def _reply(self, request: AnyRequest, value: object) -> Reply:
        return json_reply(value, exchange_of(request, self._doors.clock).headers())


def offered_task(doors: Doors, request: AnyRequest) -> LoadedTask:
    """The task of the path. Raises UnknownTask, and Forbidden where it is not offered to the caller's team."""
    caller = exchange_of(request, doors.clock).caller
    task = doors.registry().task(request.path_params["task"])
    if not may_call(task, caller.team):
        raise Forbidden(f"The team `{caller.team}` is not among the callers of the task `{task.name}`.")
    return task


def _view(task: LoadedTask) -> TaskView:
    declared = task.declared
    return TaskView(
        name=task.name,
        description=declared.description,
        owner=declared.owner,
        payer=declared.payer,
        stages=[stage.name for stage in declared.stage],
        actions=declared.actions,
        policies={name: policy.severity for name, policy in declared.policy.items()},
        fingerprint=task.fingerprint,
    )
