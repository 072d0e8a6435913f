"""The fenced movement of KV against all interleavings of a small model, and random ones of a big.

``FABRIC_SEARCH_STATES`` sets how many states each search goes through.
"""

import os
from dataclasses import replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from fabric.kv.parking import Parking
from tests.unit import kv_mutants
from tests.unit.kv_model import Action, Case, MovementModel
from tests.unit.kv_search import search

NUM_STATES = int(os.environ.get("FABRIC_SEARCH_STATES", "1000"))
SMALL = Case(((1,), (3,)), num_host_slots=1, num_disk_slots=0)
TIGHT = replace(SMALL, num_blocks=2, num_host_slots=2)
LONE = Case(((1, 2),), num_blocks=2, num_host_slots=1)
CASES = {
    "one_transfer_at_a_time": Case(((1, 2), (3, 4)), max_transfers=1),
    "two_transfers": Case(((1, 2), (3, 4))),
    "blocks_of_two": Case(((1, 2, 3), (4, 5, 6)), block_size=2),
    "prefix_cache": Case(((1, 2), (3, 4)), prefix_cache=True),
    "shared_prefix": Case(((1, 2), (1, 4)), prefix_cache=True),
    "forks": Case(((1, 2, 3), (1, 4, 5)), block_size=2, forks=True),
    "forks_and_prefix_cache": Case(
        ((1, 2, 3), (1, 4, 5)), block_size=2, forks=True, prefix_cache=True
    ),
}
MUTANTS = {
    kv_mutants.EventBeforeCopy: TIGHT,
    kv_mutants.WaitsNeverMatch: TIGHT,
    kv_mutants.NoSlotQuarantine: TIGHT,
    kv_mutants.NoBlockQuarantine: replace(SMALL, num_blocks=2),
    kv_mutants.AbandonedIsOver: replace(SMALL, num_blocks=2),
    kv_mutants.NoEpoch: TIGHT,
    kv_mutants.SharedBlocksLeave: CASES["shared_prefix"],
    kv_mutants.FirstTransferIsEnough: LONE,
    kv_mutants.FailureIsSuccess: TIGHT,
    kv_mutants.HalfMovedResumes: TIGHT,
    kv_mutants.SlotsKnownTooEarly: CASES["shared_prefix"],
}


def test_no_interleaving_of_three_blocks_and_two_requests_breaks_a_fence():
    finding = search(SMALL, 100_000)
    assert not finding.violation, str(finding)
    assert finding.is_complete
    assert finding.num_states > 900


@pytest.mark.parametrize("name", CASES)
def test_the_first_states_of_a_larger_model_break_no_fence(name, record_property):
    finding = search(CASES[name], NUM_STATES)
    record_property("num_states", finding.num_states)
    assert not finding.violation, str(finding)
    assert finding.is_complete or finding.num_states >= NUM_STATES


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.__name__)
def test_a_protocol_with_a_fence_missing_is_found_out(mutant, record_property):
    finding = search(replace(MUTANTS[mutant], parking=mutant), 8000, drain=False)
    record_property("counterexample", str(finding))
    assert finding.violation, str(finding)


def test_every_mutant_is_tried():
    assert set(MUTANTS) == set(kv_mutants.Mutant.__subclasses__())


PREFIX = tuple(range(1, 8))
BIG = Case(
    tuple((*PREFIX[: 7 - key], *range(20 * key + 20, 20 * key + 32)) for key in range(5)),
    num_blocks=12,
    block_size=3,
    num_host_slots=5,
    num_disk_slots=3,
    forks=True,
    max_transfers=6,
    chunks=(1, 4),
)


class Movement(RuleBasedStateMachine):
    """Random moves of a model with shared prefixes, forks and copy-on-write."""

    def __init__(self) -> None:
        super().__init__()
        self.model = MovementModel(self.case)

    case = BIG

    def _do(self, data: st.DataObject, *kinds: str) -> None:
        actions = [action for action in self.model.actions() if action.kind in kinds]
        if actions:
            self.model.apply(data.draw(st.sampled_from(actions)))

    @rule(data=st.data())
    def compute(self, data: st.DataObject) -> None:
        self._do(data, "admit", "token", "fork")

    @rule()
    def step(self) -> None:
        self.model.apply(Action("step"))

    @rule(data=st.data())
    def move(self, data: st.DataObject) -> None:
        self._do(data, "park", "resume", "fetch", "park_idle")

    @precondition(lambda self: self.model.running)
    @rule(data=st.data())
    def copy(self, data: st.DataObject) -> None:
        self._do(data, "copy", "finish")

    @precondition(lambda self: self.model.running)
    @rule(data=st.data())
    def spoil(self, data: st.DataObject) -> None:
        self._do(data, "fail", "abandon")

    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        self._do(data, "free")

    @invariant()
    def nobody_holds_what_a_transfer_writes(self) -> None:
        self.model.check()

    def teardown(self) -> None:
        self.model.drain()


class CachedMovement(Movement):
    case = replace(BIG, prefix_cache=True)


Movement.TestCase.settings = settings(max_examples=40, stateful_step_count=60, deadline=None)
CachedMovement.TestCase.settings = Movement.TestCase.settings
TestMovement = Movement.TestCase
TestCachedMovement = CachedMovement.TestCase


def test_the_real_protocol_is_what_is_searched():
    assert type(MovementModel(SMALL).kv._parking) is Parking
