from itertools import pairwise, product

import numpy as np
import pytest

from placement import _native

BLOCKS = 4
LAYOUTS = 3


def random_ways(random: np.random.Generator) -> "_native.Ways":
    num = 12
    ends = [random.integers(0, LAYOUTS, num).astype(np.int32) for _ in range(2)]
    sizes = random.integers(0, 40, num).astype(np.int64)
    return LAYOUTS, LAYOUTS, ends[0], ends[1], sizes, random.random(num).round(2)


def every_chain(
    templates: list["_native.Ways"], order: list[int]
) -> list[tuple[int, float, list[int]]]:
    """Bytes, cost and ways of all chains, by trying them."""
    found = []
    for ways in product(range(12), repeat=len(order)):
        picks = [(templates[number], way) for number, way in zip(order, ways, strict=True)]
        links = pairwise(picks)
        if all(one[3][way] == other[2][next_way] for (one, way), (other, next_way) in links):
            num_bytes = sum(int(one[4][way]) for one, way in picks)
            found.append((num_bytes, sum(float(one[5][way]) for one, way in picks), list(ways)))
    return found


@pytest.mark.parametrize("seed", range(4))
def test_chain_is_the_cheapest_of_all_within_every_budget(seed: int) -> None:
    random = np.random.default_rng(seed)
    templates = [random_ways(random) for _ in range(2)]
    order = [0, 1, 1, 0]
    every = every_chain(templates, order)
    chain = _native.Chain(templates, order)
    assert chain.min_bytes() == min(num_bytes for num_bytes, _, _ in every)
    for budget in range(chain.min_bytes(), 160, 7):
        least = min(cost for num_bytes, cost, _ in every if num_bytes <= budget)
        cost, num_bytes, ways = chain.solve(budget, np.inf)
        assert cost == pytest.approx(least)
        assert num_bytes <= budget
        assert any(each[0] == num_bytes and each[2] == ways for each in every)


def test_chain_finds_nothing_below_its_least_bytes_or_a_limit() -> None:
    random = np.random.default_rng(0)
    chain = _native.Chain([random_ways(random)], [0] * BLOCKS)
    assert chain.solve(chain.min_bytes() - 1, np.inf)[2] == []
    cost, _, _ = chain.solve(1000, np.inf)
    assert chain.solve(1000, cost * 0.99)[2] == []


@pytest.mark.parametrize("tail", [-1, 1])
def test_front_with_a_bucket_for_each_byte_has_all_chains_that_none_beats(tail: int) -> None:
    random = np.random.default_rng(1)
    templates = [random_ways(random) for _ in range(2)]
    order = [0, 0, 0]
    every = every_chain(templates, order if tail < 0 else [*order, tail])
    chain = _native.Chain(templates, order)
    chain.sweep(100, 10_000)
    found = [(num_bytes, cost) for cost, num_bytes, _ in chain.front(3, tail, 1000)]
    expected: list[tuple[int, float]] = []
    for num_bytes, cost, _ in sorted(every, key=lambda each: each[:2]):
        if num_bytes <= 100 and (not expected or cost < expected[-1][1] - 1e-9):
            expected.append((num_bytes, cost))
    assert [each[0] for each in found] == [each[0] for each in expected]
    assert [each[1] for each in found] == pytest.approx([each[1] for each in expected])


def test_blocks_that_do_not_fit_together_are_refused() -> None:
    ways = random_ways(np.random.default_rng(0))
    with pytest.raises(ValueError, match="other layouts"):
        _native.Chain([ways, (5, *ways[1:])], [0, 1])
