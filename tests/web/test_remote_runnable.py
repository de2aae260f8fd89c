"""LangChain's own client of runnables over HTTP, unchanged, against a task."""

import asyncio

import httpx
import pytest

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture
async def runnable(served):
    """A client of the moderation task with the key of `market`."""
    from langserve import RemoteRunnable

    headers = {"authorization": f"Bearer {served.memory.tokens['market']}"}
    client = RemoteRunnable(f"{served.url}/tasks/message-moderation/", headers=headers, timeout=20)
    yield client
    client.sync_client.close()
    await client.async_client.aclose()


def item(message: str) -> dict[str, str]:
    """An input of the task."""
    return {"message": message, "sender_role": "pro"}


async def test_invoke_and_its_async_twin(runnable):
    """`invoke` and `ainvoke` return the output."""
    assert (await asyncio.to_thread(runnable.invoke, item("spam x")))["label"] == "violation"
    assert (await runnable.ainvoke(item("hello"))) == {"label": "clean"}


async def test_batch_and_its_async_twin(runnable):
    """`batch` and `abatch`, which send one config per input, return the outputs in order."""
    inputs = [item("spam x"), item("hello"), item("break it")]
    for outputs in (await asyncio.to_thread(runnable.batch, inputs), await runnable.abatch(inputs)):
        assert [o and o["label"] for o in outputs] == ["violation", "clean", None]


async def test_stream(runnable):
    """`astream` yields the output as one chunk."""
    assert [chunk async for chunk in runnable.astream(item("hello"))] == [{"label": "clean"}]


async def test_tags_and_metadata_of_a_config_attribute_the_run(runnable, served):
    """What a chain's config says arrives in the ledger; everything else that it holds is tolerated."""
    config = {"tags": ["nightly"], "metadata": {"item_id": "m-9", "other": 1}, "recursion_limit": 7, "run_name": "r"}
    await runnable.ainvoke(item("hello"), config)
    said = list(served.memory.ledger.inferences.values())[-1].invocation.attribution
    assert (said.item_id, said.tags) == ("m-9", ("nightly",))


async def test_a_wrong_input_raises_with_the_problem(runnable):
    """The client's exception shows the problem document."""
    with pytest.raises(httpx.HTTPStatusError, match="invalid_input"):
        await runnable.ainvoke({"message": 1})
