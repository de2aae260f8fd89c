"""Models that teams may ask without a task of their own: each becomes a task of one stage.

It is called `model:<name>`, as no folder can be, and under that name it stands in quotas, the ledger, runs and reports.
So nothing of the request path knows that there is no folder behind it.
"""

from typing import Any

from gateway.core.cascade import Step
from gateway.core.examples import PLATFORM
from gateway.core.fingerprint import config_hash, model_fingerprint
from gateway.core.loaded import Builder, LoadedModel, LoadedTask
from gateway.core.task import ChainStage, Task
from gateway.core.versions import identity

PREFIX = "model:"

_TIMEOUT_S = 60.0
"""For a whole answer; nobody but the caller knows how long theirs may be."""
_MOST_TOKENS = 512
"""Of an answer whose length the caller leaves open."""

_TURN = {
    "type": "object",
    "required": ["role", "content"],
    "additionalProperties": False,
    "properties": {"role": {"enum": ["system", "user", "assistant"]}, "content": {"type": "string"}},
}
CONVERSATION: dict[str, Any] = {
    "type": "object",
    "required": ["messages"],
    "additionalProperties": False,
    "properties": {
        "messages": {"type": "array", "minItems": 1, "items": _TURN},
        "max_tokens": {"type": "integer", "minimum": 1, "maximum": 1_000_000},
        "temperature": {"type": "number", "minimum": 0, "maximum": 2},
        "top_p": {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
        "seed": {"type": "integer", "minimum": 0},
        "stop": {"type": "array", "maxItems": 4, "items": {"type": "string", "minLength": 1}},
    },
}
ANSWER: dict[str, Any] = {
    "type": "object",
    "required": ["content", "finish_reason"],
    "properties": {"content": {"type": "string"}, "finish_reason": {"type": "string"}},
}


def direct_task(model: LoadedModel, builder: Builder) -> LoadedTask:
    """The task that asks a model, for the teams that models.toml names. Raises InvalidConfig."""
    stage = ChainStage(
        name="model",
        prompt="",
        model=model.name,
        answer="text",
        timeout_s=_TIMEOUT_S,
        deadline_s=_TIMEOUT_S,
        retries=1,
        max_output_tokens=_MOST_TOKENS,
    )
    declared = Task(
        owner=PLATFORM.team,
        description=f"The model {model.name}, without a task.",
        input="",
        output="",
        stage=(stage,),
        callers=model.declared.callers,
    )
    file = "models.toml"
    return LoadedTask(
        name=PREFIX + model.name,
        declared=declared,
        steps=(Step(stage, builder.conversation(stage, model)),),
        input_schema=CONVERSATION,
        output_schema=ANSWER,
        input=builder.schema(CONVERSATION, file),
        output=builder.schema(ANSWER, file),
        limits=(),
        examples=(),
        fingerprint=model_fingerprint(model.declared),
        config_hash=config_hash(declared, {model.name: model.declared}),
        config={"models": {model.name: identity(model.declared)}},
    )


def is_direct(task: LoadedTask) -> bool:
    """Whether the task is a model alone."""
    return task.name.startswith(PREFIX)
