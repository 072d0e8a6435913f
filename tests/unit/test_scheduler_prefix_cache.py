from tests.unit.scheduling_world import World, expected_output

PROMPT = tuple(range(100, 112))


def test_a_repeated_prompt_computes_only_its_last_block():
    world = World()
    world.add("a", PROMPT)
    world.run()
    request = world.add("b", PROMPT)
    output = world.step()
    assert output.scheduled[0].num_computed_tokens == 8
    assert output.scheduled[0].num_new_tokens == 4
    world.run()
    assert world.ends["a"].usage.cached_tokens == 0
    assert world.ends["b"].usage.cached_tokens == 8
    assert world.tokens["b", 0] == expected_output(request, 0)


def test_a_running_requests_computed_blocks_are_shared():
    world = World(num_blocks=16)
    world.add("a", PROMPT, max_tokens=20)
    world.step()
    world.add("b", (*PROMPT, 7))
    world.step()
    assert world.kv.num_free_blocks == 16 - 4 - 1
    world.run()
    assert world.ends["b"].usage.cached_tokens == 12


def test_blocks_of_the_same_iteration_are_not_shared():
    world = World()
    world.add("a", PROMPT)
    world.add("b", PROMPT)
    assert world.counts(world.step()) == [12, 12]
    world.run()


def test_output_tokens_are_cached_too():
    world = World()
    world.add("a", PROMPT, max_tokens=9)
    world.run()
    world.add("b", (*PROMPT, *world.tokens["a", 0]))
    world.run()
    assert world.ends["b"].usage.cached_tokens == 20


def test_requests_with_different_salts_share_nothing():
    world = World()
    world.add("a", PROMPT, salt="alice")
    world.run()
    world.add("b", PROMPT, salt="bob")
    world.add("c", PROMPT, salt="alice")
    world.run()
    assert world.ends["b"].usage.cached_tokens == 0
    assert world.ends["c"].usage.cached_tokens == 8


def test_hits_are_counted_at_the_first_admission_only():
    world = World()
    world.add("a", PROMPT)
    world.step()
    world.scheduler.preempt("a")
    output = world.step()
    assert output.scheduled[0].num_computed_tokens == 12
    world.run()
    assert world.ends["a"].usage.cached_tokens == 0
    report = world.scheduler.report()
    assert (report.prefix_hit_tokens, report.prefix_query_tokens) == (0, 12)


def test_cached_blocks_are_evicted_when_others_need_them():
    world = World(num_blocks=4)
    world.add("a", PROMPT)
    world.run()
    assert world.scheduler.report().num_cached_blocks == 3
    world.add("b", 13, max_tokens=3)
    world.run()
    world.add("c", PROMPT)
    world.run()
    assert world.ends["c"].usage.cached_tokens == 0


def test_without_a_prefix_cache_every_token_is_computed():
    world = World(prefix_cache=False)
    for name in "ab":
        request = world.add(name, PROMPT)
        world.run()
        assert world.tokens[name, 0] == expected_output(request, 0)
    assert world.scheduler.report().num_cached_blocks == 0
    assert world.ends["b"].usage.cached_tokens == 0
