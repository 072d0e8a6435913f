"""The sync portal: the same client from ordinary threads."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from fabric.client import (
    Client,
    Completed,
    InvalidRequest,
    PolicyChange,
    RequestCancelled,
    Residence,
    Started,
    WeightState,
)
from tests.unit.fake_router import (
    EXPLANATION,
    HANG,
    STARTED,
    TWO_TOKENS,
    delta,
    serving_in_thread,
)


@pytest.fixture
def router():
    with serving_in_thread() as fake:
        yield fake


@pytest.fixture
def client(router):
    with Client(router.target) as connected:
        yield connected


def test_calls_return_what_the_async_client_returns(client):
    assert client.generate("tiny", "x", max_tokens=2).text == " w0 w1"
    assert client.tokenize("tiny", "ab").token_ids == (97, 98)
    assert client.detokenize("tiny", [97]) == "a"
    assert client.models() == (client.model("tiny"),)
    assert client.status().num_inflight == 3
    assert client.drain("left").drained
    assert client.explain("left", limit=5) == EXPLANATION
    assert client.set_policy("srw", "left") == (PolicyChange("left", "fcfs", "srw"),)
    (moved,) = client.set_residence("tiny", WeightState.HOST, group="left", timeout_s=5)
    assert moved == Residence("left", WeightState.HOST, False, "", 1.5)
    assert client.health()


def test_a_stream_is_an_iterator_of_events(router, client):
    router.scripts = [TWO_TOKENS]
    events = list(client.stream("tiny", "x"))
    assert isinstance(events[0], Started)
    assert isinstance(events[-1], Completed)


def test_a_streams_text_and_result(router, client):
    router.scripts = [TWO_TOKENS, TWO_TOKENS]
    with client.stream("tiny", "x") as stream:
        assert list(stream.text()) == ["Hello", " world"]
    assert stream.result == client.stream("tiny", "x").collect()


def test_errors_come_through(client):
    with pytest.raises(InvalidRequest):
        client.generate("tiny", [-1])


def test_closing_a_stream_cancels_the_request(router, client):
    router.scripts = [[STARTED, delta(0, "a"), HANG]]
    with client.stream("tiny", "x") as stream:
        assert next(stream.text()) == "a"
    router.await_cancellation()


def test_many_threads_share_one_client(client):
    with ThreadPoolExecutor(8) as pool:
        texts = pool.map(
            lambda n: "".join(client.stream("tiny", "x", max_tokens=n).text()), range(1, 25)
        )
        assert [text.count("w") for text in texts] == list(range(1, 25))


def test_closing_the_client_ends_a_thread_that_waits(router):
    router.scripts = [[STARTED, HANG]]
    client = Client(router.target)
    stream = client.stream("tiny", "x")
    next(stream)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(stream.collect)
        client.close()
        with pytest.raises(RequestCancelled):
            waiting.result(10)


def test_a_closed_client_refuses_calls_and_leaves_no_thread(router):
    client = Client(router.target)
    client.close()
    client.close()
    with pytest.raises(RequestCancelled, match="is closed"):
        client.models()
    assert not [thread for thread in threading.enumerate() if thread.name == "fabric-client"]
