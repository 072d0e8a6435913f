"""The store that ranks meet in, and its protocol."""

import socket
import threading
from collections.abc import Iterator

import pytest

from fabric.core.errors import GroupError, GroupTimeout, StaleEpoch
from fabric.parallel.rendezvous import Membership, Rendezvous
from fabric.parallel.rendezvous_server import RendezvousServer
from fabric.parallel.store import MAX_KEY_CHARS, MAX_KEYS, MAX_VALUE_BYTES, EpochStore
from fabric.parallel.wire import MAX_FRAME_BYTES, prove_secret, recv_frame, send_frame


class SetClock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def server() -> Iterator[RendezvousServer]:
    with RendezvousServer(epoch=1, silence_s=30.0) as running:
        yield running


@pytest.fixture
def client(server: RendezvousServer) -> Iterator[Rendezvous]:
    with Rendezvous(server.address, epoch=1, timeout_s=5.0) as connected:
        yield connected


def test_a_reader_waits_for_the_writer(server: RendezvousServer, client: Rendezvous):
    with Rendezvous(server.address, epoch=1) as writer:
        thread = threading.Thread(target=writer.set, args=("key", b"value"))
        thread.start()
        assert client.get("key") == b"value"
        thread.join()


def test_a_key_that_nobody_sets_is_a_timeout(server: RendezvousServer):
    with (
        Rendezvous(server.address, epoch=1, timeout_s=0.05) as client,
        pytest.raises(GroupTimeout, match="'key'"),
    ):
        client.get("key")


def test_numbers_add_up_and_prefixes_are_deleted(client: Rendezvous):
    assert [client.add("a/count", 2), client.add("a/count", -5)] == [2, -3]
    assert client.peek("a/count") == b"-3"
    client.set("b", b"")
    assert client.delete("a/") == 1
    assert (client.peek("a/count"), client.peek("b")) == (None, b"")


def test_adding_to_what_is_no_number_is_refused(client: Rendezvous):
    client.set("key", b"value")
    with pytest.raises(GroupError, match="isn't a number"):
        client.add("key", 1)


def test_raising_the_epoch_forgets_and_refuses_the_one_before(
    server: RendezvousServer, client: Rendezvous
):
    client.set("key", b"old")
    server.raise_epoch(2)
    with Rendezvous(server.address, epoch=2) as later:
        assert later.peek("key") is None
    with pytest.raises(StaleEpoch, match="epoch 1"):
        client.set("key", b"late")
    with pytest.raises(GroupError, match="doesn't follow"):
        server.raise_epoch(2)


def test_raising_the_epoch_wakes_those_who_wait(server: RendezvousServer, client: Rendezvous):
    timer = threading.Timer(0.05, server.raise_epoch, args=(2,))
    timer.start()
    with pytest.raises(StaleEpoch):
        client.get("key")
    timer.join()


def test_a_member_whose_connection_ends_is_lost(server: RendezvousServer, client: Rendezvous):
    with Rendezvous(server.address, epoch=1) as dying:
        dying.beat("rank-3")
        assert client.lost() == []
    while not client.lost():
        pass
    assert client.lost() == ["rank-3"]
    server.raise_epoch(2)
    assert server.lost(2) == []


def test_a_member_that_leaves_is_not_lost(server: RendezvousServer, client: Rendezvous):
    Membership(client, "rank-0").close()
    Membership(client, "rank-1").close()
    assert client.lost() == []


def test_a_silent_member_is_lost_and_stays_so():
    clock = SetClock()
    store = EpochStore(epoch=0, silence_s=1.0, now=clock)
    store.beat(0, "a")
    store.beat(0, "b")
    clock.now_s = 0.9
    store.beat(0, "b")
    assert store.lost(0) == []
    clock.now_s = 1.1
    assert store.lost(0) == ["a"]
    store.beat(0, "a")
    assert store.lost(0) == ["a"]


def test_sizes_are_bounded(client: Rendezvous):
    with pytest.raises(GroupError, match="refuses"):
        client.set("k" * (MAX_KEY_CHARS + 1), b"")
    with pytest.raises(GroupError, match="refuses"):
        client.set("key", b"x" * (MAX_VALUE_BYTES + 1))
    store = EpochStore(epoch=0, silence_s=1.0)
    for number in range(MAX_KEYS):
        store.set(0, str(number), b"")
    with pytest.raises(GroupError, match="more than"):
        store.set(0, "one more", b"")


@pytest.mark.parametrize(
    "fields",
    [[], ["no such call", 1], ["get", 1], ["set", 1, "key", "text"], ["add", 1, "key", True], [[]]],
)
def test_a_call_that_is_none_ends_its_connection_alone(
    server: RendezvousServer, client: Rendezvous, fields: list[object]
):
    with socket.create_connection(server.address) as connection:
        prove_secret(connection, "")
        send_frame(connection, fields)
        with pytest.raises(ConnectionError):
            recv_frame(connection)
    client.set("key", b"still served")


def test_rubbish_ends_its_connection_alone(server: RendezvousServer, client: Rendezvous):
    too_long = (MAX_FRAME_BYTES + 1).to_bytes(4, "big")
    for rubbish in (too_long, b"\0\0\0\1\xc1", b"\0\0\0\1\x01"):
        with socket.create_connection(server.address) as connection:
            prove_secret(connection, "")
            connection.sendall(rubbish)
            with pytest.raises(ConnectionError):
                recv_frame(connection)
    client.set("key", b"still served")


def test_a_server_that_is_gone_is_an_error_of_the_group():
    server = RendezvousServer(epoch=1)
    with Rendezvous(server.address, epoch=1) as client:
        client.set("key", b"")
        address = server.address
        server.close()
        with pytest.raises(GroupError, match="doesn't answer"):
            client.peek("key")
    with pytest.raises(GroupError, match="can't be reached"):
        Rendezvous(address, epoch=1)


def test_a_client_that_does_not_know_the_secret_is_turned_away():
    with RendezvousServer(epoch=1, secret="right") as server:
        with Rendezvous(server.address, epoch=1, secret="right") as client:
            client.set("key", b"value")
        with (
            Rendezvous(server.address, epoch=1, secret="wrong") as stranger,
            pytest.raises(GroupError),
        ):
            stranger.set("key", b"other")
