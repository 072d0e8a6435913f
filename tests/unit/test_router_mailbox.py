"""Tokens wait in the mailbox, merged only with what is ready at the same time."""

import asyncio

import pytest

from fabric.core.errors import InternalError, Overloaded, Unavailable
from fabric.core.generation import Completed
from fabric.core.request import FinishReason, SequenceDelta, Timing, Usage
from fabric.router.forecast import Demand
from fabric.router.journal import Journal
from fabric.router.ledger import InflightLedger
from fabric.router.mailbox import Mailbox
from fabric.rpc.frames import Failure, StreamOutput


def token(number, index=0, reason=None):
    return SequenceDelta(index, number, (100 + number,), f"{number} ", (), reason)


def output(*deltas, usage=None, failure=None):
    return StreamOutput(0, deltas, usage, Timing() if usage else None, failure)


async def test_a_token_alone_is_taken_alone():
    mailbox = Mailbox()
    mailbox.put(output(token(0)))
    assert (await mailbox.take()).deltas == (token(0),)
    mailbox.put(output(token(1)))
    assert (await mailbox.take()).deltas == (token(1),)


async def test_tokens_that_wait_together_are_merged_by_sequence():
    mailbox = Mailbox()
    mailbox.put(output(token(0), token(0, index=1)))
    mailbox.put(output(token(1, reason=FinishReason.LENGTH), token(1, index=1)))
    left, right = (await mailbox.take()).deltas
    assert left == SequenceDelta(0, 0, (100, 101), "0 1 ", (), FinishReason.LENGTH)
    assert right == SequenceDelta(1, 0, (100, 101), "0 1 ")


async def test_a_waiting_reader_is_woken_by_the_first_token():
    mailbox = Mailbox()
    taking = asyncio.create_task(mailbox.take())
    await asyncio.sleep(0)
    mailbox.put(output(token(0)))
    assert (await taking).deltas == (token(0),)


async def test_the_end_comes_with_the_last_tokens():
    mailbox = Mailbox()
    mailbox.put(output(token(0), usage=Usage(1, 1)))
    letters = await mailbox.take()
    assert letters.deltas == (token(0),)
    assert letters.end == Completed(Usage(1, 1), Timing())
    assert mailbox.has_ended


async def test_tokens_before_a_failure_are_still_taken():
    mailbox = Mailbox()
    mailbox.put(output(token(0)))
    mailbox.fail(Unavailable("gone", 1.0))
    mailbox.put(output(token(1)))
    letters = await mailbox.take()
    assert letters.deltas == (token(0),)
    assert isinstance(letters.end, Unavailable)


async def test_a_failure_of_the_group_is_an_error_again():
    mailbox = Mailbox()
    mailbox.put(output(failure=Failure("Overloaded", "full", (), 1.0)))
    assert isinstance((await mailbox.take()).end, Overloaded)


@pytest.mark.parametrize("number", [0, 2])
async def test_a_repeated_or_missing_token_is_an_error_of_ours(number):
    mailbox = Mailbox()
    mailbox.put(output(token(0)))
    mailbox.put(output(token(number)))
    assert isinstance((await mailbox.take()).end, InternalError)


async def test_the_ledger_refuses_what_is_over_its_bound():
    ledger = InflightLedger(1)
    with ledger.admitted(), pytest.raises(Overloaded), ledger.admitted():
        raise AssertionError("two were admitted")
    assert ledger.num_inflight == 0


async def test_the_ledger_counts_a_group_until_the_end_even_of_a_failed_request():
    ledger = InflightLedger(1)

    def fail_in_flight():
        with ledger.dispatched("left", Demand("m", 10, 20), False):
            assert ledger.work.num_tokens("left") == 30
            raise ValueError("boom")

    with pytest.raises(ValueError, match="boom"):
        fail_in_flight()
    assert (ledger.work.num_tokens("left"), ledger.work.num_requests("left")) == (0, 0)


async def test_waiting_for_idle_ends_when_the_last_request_does():
    ledger = InflightLedger(2)
    with ledger.admitted():
        assert await ledger.wait_idle("", 0.01) == 1
        waiting = asyncio.create_task(ledger.wait_idle("", 5))
        await asyncio.sleep(0)
    assert await waiting == 0


def test_the_journal_forgets_a_request_at_its_end():
    journal = Journal()
    with journal.entry(None) as entry:  # type: ignore[arg-type]
        entry.record(token(0))
        entry.record(token(1))
        assert entry.emitted == {0: [100, 101]}
        assert len(journal) == 1
    assert len(journal) == 0
