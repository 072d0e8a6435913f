"""A gang's transfer is finished when every rank has finished it."""

import threading

import pytest

from fabric.core.errors import PeerLost
from fabric.core.weights import WeightResult
from fabric.engine.gang_transfers import GangTransfers
from fabric.kv.transfer import TransferResult


def test_a_transfer_is_finished_when_all_ranks_have_finished_it() -> None:
    transfers = GangTransfers(2)
    transfers.add(0, [TransferResult(1, "", 100, 0.5, 0.1), TransferResult(2)])
    assert transfers.take(0.0) == []
    transfers.add(1, [TransferResult(1, "", 60, 0.2, 0.3)])
    assert transfers.take(0.0) == [TransferResult(1, "", 160, 0.5, 0.3)]
    assert transfers.take(0.0) == []
    transfers.add(1, [TransferResult(2)])
    assert transfers.take(0.0) == [TransferResult(2)]


def test_the_first_error_wins_and_names_its_rank() -> None:
    transfers = GangTransfers(3)
    transfers.add(2, [TransferResult(1)])
    transfers.add(1, [TransferResult(1, "disk: slot 3 can't be read")])
    assert transfers.take(0.0) == []
    transfers.add(0, [TransferResult(1, "another")])
    (result,) = transfers.take(0.0)
    assert result.error == "rank 1: disk: slot 3 can't be read"


def test_moves_of_weights_and_of_blocks_have_numbers_of_their_own() -> None:
    transfers = GangTransfers(2)
    transfers.add(0, [WeightResult(1, num_bytes=10, seconds=0.5)])
    transfers.add(1, [TransferResult(1)])
    assert transfers.take(0.0) == []
    transfers.add(1, [WeightResult(1, num_bytes=20, seconds=0.2)])
    assert transfers.take(0.0) == [WeightResult(1, num_bytes=30, seconds=0.5)]
    transfers.add(0, [TransferResult(1)])
    assert transfers.take(0.0) == [TransferResult(1)]


def test_a_model_can_begin_when_all_ranks_have_its_first_layers() -> None:
    transfers = GangTransfers(2)
    begun, over = WeightResult(7, is_last=False), WeightResult(7)
    transfers.add(0, [begun, over])
    assert transfers.take(0.0) == []
    transfers.add(1, [begun])
    assert transfers.take(0.0) == [begun]
    transfers.add(1, [over])
    assert transfers.take(0.0) == [over]


def test_a_load_that_fails_on_one_rank_never_begins_and_has_failed() -> None:
    transfers = GangTransfers(2)
    transfers.add(0, [WeightResult(7, is_last=False), WeightResult(7)])
    transfers.add(1, [WeightResult(7, "no memory")])
    assert transfers.take(0.0) == [WeightResult(7, "rank 1: no memory")]
    assert transfers.take(0.0) == []


def test_take_waits_for_the_first_transfer_only() -> None:
    transfers = GangTransfers(1)
    timer = threading.Timer(0.05, transfers.add, (0, [TransferResult(1)]))
    timer.start()
    assert transfers.take(10.0) == [TransferResult(1)]
    timer.join()


def test_a_failed_gang_is_raised_to_who_waits() -> None:
    transfers = GangTransfers(1)
    timer = threading.Timer(0.05, transfers.fail, (PeerLost(1),))
    timer.start()
    with pytest.raises(PeerLost, match="rank 1 is lost"):
        transfers.take(10.0)
    timer.join()
