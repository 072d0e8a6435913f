from tests.unit.scheduling_world import World, expected_output


def grown() -> World:
    """Two sequences that outgrow the pool together, in the third iteration."""
    world = World(num_blocks=4, prefix_cache=False)
    for name in ("old", "new"):
        world.add(name, 7, max_tokens=8)
    return world


def test_a_full_pool_preempts_the_newest():
    world = grown()
    world.step()
    world.step()
    assert world.scheduler.report().num_preemptions == 0
    key = world.key_of("old")
    assert [item.key for item in world.step().scheduled] == [key]
    assert world.scheduler.report().num_preemptions == 1
    assert world.scheduler.report().num_waiting == 1


def test_a_preempted_request_keeps_its_tokens_and_ends_as_if_alone():
    world = World(num_blocks=4)
    requests = {name: world.add(name, 7, max_tokens=8) for name in ("old", "new")}
    world.run()
    for name, request in requests.items():
        assert world.tokens[name, 0] == expected_output(request, 0)
    assert world.ends["new"].timing.num_preemptions == 1
    assert world.ends["old"].timing.num_preemptions == 0


def test_a_resumed_sequence_is_introduced_again_with_all_of_its_tokens():
    world = grown()
    key = world.key_of("new")
    world.step()
    world.step()
    assert world.step().released == (key,)
    while not (output := world.step()).new_sequences:
        pass
    (new,) = output.new_sequences
    assert new.key == key
    assert new.num_prompt_tokens == 7
    assert list(new.token_ids[7:]) == world.tokens["new", 0][:2]


def test_a_preempted_request_resumes_before_new_arrivals():
    world = grown()
    for _ in range(3):
        world.step()
    world.add("late", 2)
    keys = [world.key_of("new"), world.key_of("late")]
    introduced = []
    while world.scheduler.has_work:
        introduced += [new.key for new in world.step().new_sequences]
    assert introduced[:2] == keys


def test_nobody_is_admitted_in_an_iteration_that_preempts():
    world = World(num_blocks=5)
    world.add("old", 7, max_tokens=9)
    world.add("new", 11, max_tokens=9)
    world.step()
    world.add("tiny", 1, max_tokens=1, priority=-1)
    world.step()
    assert world.scheduler.report().num_preemptions == 0
    output = world.step()
    assert world.scheduler.report().num_preemptions == 1
    assert len(output.scheduled) == 1
    assert world.scheduler.report().num_waiting == 2
    world.step()
    assert "tiny" in world.ends


def test_a_newest_sequence_that_needs_a_block_gives_way_itself():
    world = World(num_blocks=4)
    world.add("old", 6, max_tokens=2)
    request = world.add("new", 8, max_tokens=8)
    world.step()
    assert len(world.step().scheduled) == 1
    assert world.scheduler.report().num_preemptions == 1
    world.run()
    assert world.tokens["new", 0] == expected_output(request, 0)


def test_forced_preemption_at_every_iteration_changes_no_token():
    world = World(max_num_batched_tokens=64)
    requests = {name: world.add(name, 9, max_tokens=6) for name in "ab"}
    while world.scheduler.has_work:
        world.step()
        for name in requests:
            world.scheduler.preempt(name)
        for sequence in world.scheduler._pool.sequences.values():
            assert sequence.num_computed_tokens == 0
        assert world.kv.num_free_blocks == world.kv.num_blocks
    for name, request in requests.items():
        assert world.tokens[name, 0] == expected_output(request, 0)
        assert world.ends[name].timing.num_preemptions == 5


def test_of_a_result_for_a_sequence_preempted_meanwhile_only_the_token_is_taken():
    world = World()
    request = world.add("a", 5)
    output = world.scheduler.schedule(0.0)
    result = world.worker.execute(output)
    world.scheduler.preempt("a")
    (update,) = world.scheduler.update_from_output(output, result, 0.0)
    world._note(update)
    assert world.counts(world.step()) == [6]
    world.run()
    assert world.tokens["a", 0] == expected_output(request, 0)


def test_nothing_of_a_preempted_sequence_is_scheduled_until_the_token_in_flight_has_come():
    world = World()
    world.add("a", 5)
    output = world.scheduler.schedule(0.0)
    world.scheduler.preempt("a")
    assert world.counts(world.scheduler.schedule(1.0)) == []
    world.scheduler.update_from_output(output, world.worker.execute(output), 2.0)
    assert world.counts(world.scheduler.schedule(3.0)) == [6]


def test_preempting_an_unknown_request_does_nothing():
    World().scheduler.preempt("nobody")
