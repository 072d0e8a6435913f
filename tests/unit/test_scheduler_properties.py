"""Random traces against a worker that checks every KV entry that it reads."""

import random
from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from fabric.core.request import GenerationRequest
from tests.unit.scheduling_world import World, expected_output

SYSTEM_PROMPTS = (tuple(range(3, 20)), tuple(range(3, 14)), (3, 4, 5, 90, 91, 92, 93, 94))


@dataclass(frozen=True)
class Arrival:
    step: int
    prompt: tuple[int, ...]
    n: int
    max_tokens: int
    ignore_eos: bool
    priority: int
    salt: str
    timeout_s: float | None
    cancel_after: int | None
    preempt_after: int | None


@st.composite
def arrivals(draw):
    start = draw(st.sampled_from(SYSTEM_PROMPTS))
    tail = draw(st.lists(st.integers(3, 5), max_size=6))
    return Arrival(
        step=draw(st.integers(0, 12)),
        prompt=(*start[: draw(st.integers(1, len(start)))], *tail),
        n=draw(st.sampled_from((1, 1, 1, 2, 3))),
        max_tokens=draw(st.integers(1, 14)),
        ignore_eos=draw(st.booleans()),
        priority=draw(st.sampled_from((0, 0, 0, 1))),
        salt=draw(st.sampled_from(("", "", "salt"))),
        timeout_s=draw(st.sampled_from((None, None, None, 6.0, 20.0))),
        cancel_after=draw(st.none() | st.none() | st.integers(0, 12)),
        preempt_after=draw(st.none() | st.integers(0, 12)),
    )


@st.composite
def pools(draw):
    block_size = draw(st.sampled_from((1, 2, 4, 8)))
    smallest = -(-(len(SYSTEM_PROMPTS[0]) + 6 + 14) // block_size)
    max_num_seqs = draw(st.integers(3, 6))
    return {
        "block_size": block_size,
        "num_blocks": smallest + draw(st.integers(0, smallest)),
        "prefix_cache": draw(st.booleans()),
        "max_num_seqs": max_num_seqs,
        "max_num_batched_tokens": max_num_seqs + draw(st.sampled_from((0, 1, 5, 60))),
        "watermark": draw(st.sampled_from((0.0, 0.1, 0.5))),
        "num_batches": draw(st.sampled_from((1, 1, 2, 3))),
    }


def play(world: World, trace: list[Arrival], swap: bool = False) -> dict[str, GenerationRequest]:
    """Bring the trace's requests and troubles to the world, then let it run dry."""
    requests = {}
    for step in range(26):
        for number, arrival in enumerate(trace):
            name = f"r{number}"
            if arrival.step == step:
                requests[name] = world.add(
                    name,
                    arrival.prompt,
                    priority=arrival.priority,
                    timeout_s=arrival.timeout_s,
                    salt=arrival.salt,
                    n=arrival.n,
                    max_tokens=arrival.max_tokens,
                    ignore_eos=arrival.ignore_eos,
                    seed=number,
                )
            if arrival.cancel_after is not None and arrival.step + arrival.cancel_after == step:
                world.scheduler.cancel(name)
            if arrival.preempt_after is not None and arrival.step + arrival.preempt_after == step:
                world.scheduler.preempt(name, swap)
        if world.scheduler.has_work:
            world.step()
    world.run()
    return requests


def check_outcome(world: World, requests: dict[str, GenerationRequest]) -> None:
    assert world.ends.keys() == requests.keys()
    for name, request in requests.items():
        end, num_output = world.ends[name], 0
        for index in range(request.sampling.n):
            tokens = world.tokens.get((name, index), [])
            expected = expected_output(request, index)
            num_output += len(tokens)
            if end.error is None:
                assert tokens == expected
                assert (name, index) in world.reasons
            else:
                assert tokens == expected[: len(tokens)]
        unfinished = {index for index, _ in end.unfinished}
        ended = {index for (owner, index) in world.reasons if owner == name}
        assert unfinished | ended == set(range(request.sampling.n))
        assert not unfinished & ended
        assert end.usage.completion_tokens == num_output
    report = world.scheduler.report()
    assert (report.num_running, report.num_waiting) == (0, 0)
    assert report.num_free_blocks == report.num_blocks
    assert world.scheduler._pool.num_slots == 0
    assert not world.scheduler._pool.sequences


@settings(max_examples=150, deadline=None)
@given(pools(), st.lists(arrivals(), min_size=1, max_size=10))
def test_every_request_ends_with_its_own_tokens_whatever_happens_around_it(pool, trace):
    world = World(**pool)
    check_outcome(world, play(world, trace))


@settings(max_examples=20, deadline=None)
@given(pools(), st.lists(arrivals(), min_size=1, max_size=8))
def test_the_same_trace_always_gives_the_same_iterations(pool, trace):
    def outputs() -> list[object]:
        world = World(**pool)
        seen: list[object] = []
        execute = world.worker.execute
        world.worker.execute = lambda output: (seen.append(output), execute(output))[1]
        play(world, trace)
        return seen

    assert outputs() == outputs()


def test_a_tiny_pool_under_a_long_random_load_neither_deadlocks_nor_leaks():
    draw = random.Random(7)
    world = World(num_blocks=8, block_size=4, max_num_seqs=6, max_num_batched_tokens=12)
    requests = {}
    for number in range(120):
        name = f"r{number}"
        prompt = SYSTEM_PROMPTS[draw.randrange(3)][: draw.randint(1, 17)]
        requests[name] = world.add(
            name, prompt, n=draw.choice((1, 1, 2, 4)), max_tokens=draw.randint(1, 16), seed=number
        )
        world.step()
    world.run()
    check_outcome(world, requests)
    assert world.scheduler.report().num_preemptions > 50
