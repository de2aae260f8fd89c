"""What the customer did not say is no fact: places, dates and budgets that are not in the request are dropped."""

import re

from langchain_core.runnables import RunnableLambda, RunnablePassthrough

from gateway.core.text import fold


def build(stage, model):
    """The prompt and the model as they would be without this file, and then `grounded`."""
    return RunnablePassthrough.assign(facts=stage.prompt | stage.json_model) | RunnableLambda(grounded)


def grounded(item):
    """The facts, without those that the request does not hold."""
    request, facts = fold(item["request"]), item["facts"]
    said = {name: facts[name] if facts[name] and fold(facts[name]) in request else None for name in ("place", "date")}
    amounts = {float(amount.replace(",", "")) for amount in re.findall(r"\d[\d,]*(?:\.\d+)?", item["request"])}
    return {**facts, **said, "budget": facts["budget"] if facts["budget"] in amounts else None}
