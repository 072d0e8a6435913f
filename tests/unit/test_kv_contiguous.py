import pytest

from fabric.core.errors import InvalidRequest
from fabric.core.request import GenerationRequest
from fabric.core.sampling import SamplingParams
from fabric.kv.block_pool import BlockPool
from fabric.kv.contiguous import ContiguousKVManager
from fabric.kv.manager import Allocation
from fabric.kv.prefix import PrefixChain, root_hash
from fabric.scheduler.lane import ScheduledModel
from fabric.scheduler.request import RequestState, SequenceState
from fabric.scheduler.reservations import ReserveMax, ReserveOracle, ReservePow2
from fabric.scheduler.scheduler import Scheduler, SchedulerConfig
from tests.unit.scheduling_world import ModelledWorker, expected_output


def chain(num_tokens: int) -> PrefixChain:
    return PrefixChain(list(range(num_tokens)), 4, root_hash("model", ""))


def opened(num_blocks: int, num_reserved_tokens: int) -> ContiguousKVManager:
    kv = ContiguousKVManager(BlockPool.fixed(num_blocks), 4)
    kv.open(1, chain(5), [])
    assert kv.allocate(1, num_reserved_tokens, 0) is not None
    return kv


def test_a_sequence_takes_its_run_at_once_and_only_uses_it_later():
    kv = opened(16, 18)
    assert kv.block_ids(1) == (0, 1, 2, 3, 4)
    assert (kv.num_own_blocks(1), kv.num_free_blocks) == (8, 8)
    assert kv.allocate(1, 6, 5) == Allocation()
    assert kv.allocate(1, 21, 20) == Allocation((5,))
    assert kv.num_free_blocks == 8
    kv.check_invariants()


def test_a_sequence_that_outgrows_its_run_must_be_admitted_again():
    kv = opened(16, 5)
    assert kv.allocate(1, 8, 7) == Allocation()
    assert kv.allocate(1, 9, 8) is None
    kv.free(1)
    assert kv.num_free_blocks == 16
    kv.check_invariants()


def test_runs_have_all_blocks_of_the_pool_and_what_they_leave_is_fragmentation():
    kv = opened(8, 9)
    assert (kv.num_blocks, kv.account.num_slabs) == (8, 1)
    assert kv.fragmented_bytes(10, 85) == 85 - 4 * 10


def test_admission_needs_one_run_and_not_only_as_many_free_blocks():
    kv = opened(8, 4)
    assert kv.num_free_blocks == 7
    assert kv.can_admit(16, [], 0)
    assert not kv.can_admit(17, [], 0)


def test_a_reservation_beyond_the_largest_run_is_cut_to_it():
    kv = opened(12, 4 * 12)
    assert kv.block_ids(1) == tuple(range(8))
    assert not kv.can_admit(48, [], 0)
    kv.free(1)
    assert kv.can_admit(48, [], 0)


def test_nothing_is_cached_or_parked():
    kv = opened(8, 9)
    kv.register(1, 9)
    assert kv.find_cached(chain(9), 9) == []
    assert not kv.park(1, 9)
    assert kv.block_ids(1) == (0, 1, 2)


def test_parallel_samples_are_refused():
    with pytest.raises(InvalidRequest, match=r"sampling\.n"):
        opened(8, 9).fork(1, 2, chain(5))


@pytest.mark.parametrize(
    ("policy", "expected"),
    [(ReserveMax(64), 64), (ReservePow2(64), 42), (ReserveOracle(64), 30), (ReservePow2(32), 32)],
)
def test_reservations_differ_in_what_is_known_of_the_output(policy, expected):
    sampling = SamplingParams(max_tokens=20)
    request = RequestState(GenerationRequest("r", "model", tuple(range(10)), sampling), 1, 0, 0.0)
    sequence = SequenceState(1, 0, request, list(range(10)), chain(10))
    assert policy.num_reserved_tokens(sequence) == expected


@pytest.mark.parametrize("policy", [ReserveMax(44), ReservePow2(44), ReserveOracle(44)])
def test_contiguous_memory_gives_every_request_its_own_tokens(policy):
    kv, worker = ContiguousKVManager(BlockPool.fixed(27), 4), ModelledWorker(4)
    scheduler = Scheduler(
        SchedulerConfig(max_num_seqs=8),
        (ScheduledModel("model", kv, frozenset(), max_model_len=44),),
        policy,
    )
    sampling = [SamplingParams(max_tokens=2 + number, ignore_eos=True) for number in range(20)]
    requests = {
        str(number): GenerationRequest(
            str(number), "model", tuple(range(number, 2 * number + 1)), s
        )
        for number, s in enumerate(sampling)
    }
    for request in requests.values():
        scheduler.add(request, 0.0)
    tokens: dict[str, list[int]] = {name: [] for name in requests}
    while scheduler.has_work:
        output = scheduler.schedule(0.0)
        for update in scheduler.update_from_output(output, worker.execute(output), 0.0):
            tokens[update.request_id] += update.token_ids
        scheduler.take_ended()
        kv.check_invariants()
    assert tokens == {name: expected_output(request, 0) for name, request in requests.items()}
    assert kv.num_free_blocks == 27
    assert scheduler.report().num_preemptions == 0
