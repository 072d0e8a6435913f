from tests.unit.scheduling_world import World, expected_output


def test_running_sequences_are_shared_out_among_the_batches_in_flight():
    world = World(num_batches=2)
    for i in range(4):
        world.add(f"r{i}", 4, max_tokens=8)
    world.step()
    world.step()
    first, second = world.step(), world.step()
    assert world.counts(first) == world.counts(second) == [1, 1]
    assert not {item.key for item in first.scheduled} & {item.key for item in second.scheduled}


def test_a_sequence_is_not_scheduled_while_its_next_token_is_unknown():
    world = World(num_batches=3)
    world.add("a", 4, max_tokens=4)
    assert world.counts(world.step()) == [4]
    assert world.counts(world.step()) == []
    assert world.counts(world.step()) == [1]


def test_chunks_of_a_prompt_follow_each_other_without_waiting():
    world = World(num_batches=2, max_num_batched_tokens=8)
    world.add("a", 24, max_tokens=2)
    outputs = [world.scheduler.schedule(float(i)) for i in range(3)]
    assert [item.num_computed_tokens for o in outputs for item in o.scheduled] == [0, 8, 16]
    assert [item.num_samples for o in outputs for item in o.scheduled] == [0, 0, 1]


def test_the_result_of_an_iteration_in_flight_is_dropped_when_its_sequence_was_preempted():
    world = World(num_batches=2)
    request = world.add("a", 6, max_tokens=5)
    world.step()
    world.scheduler.preempt("a")
    world.run()
    assert world.tokens["a", 0] == expected_output(request, 0)
    assert world.ends["a"].timing.num_preemptions == 1
