"""Ranks, places and hosts."""

import pytest

from fabric.core.errors import ConfigError
from fabric.core.plan import ParallelConfig
from fabric.parallel.mesh import Axis, Coordinates, Device, Mesh


def mesh(pipeline: int, tensor: int, hosts: str) -> Mesh:
    devices = tuple(Device(host, index) for index, host in enumerate(hosts))
    return Mesh(ParallelConfig(pipeline, tensor), devices)


def test_places_and_ranks_are_each_others_inverse():
    grid = mesh(2, 3, "aaabbb")
    assert grid.coordinates(4) == Coordinates(pp_rank=1, tp_rank=1)
    assert [grid.rank_at(grid.coordinates(rank)) for rank in range(grid.size)] == list(range(6))


def test_axes_cut_the_mesh_into_groups():
    grid = mesh(2, 3, "aaabbb")
    assert grid.ranks_along(Axis.TENSOR, 4) == (3, 4, 5)
    assert grid.ranks_along(Axis.PIPELINE, 4) == (1, 4)
    assert grid.ranks_along(Axis.ALL, 4) == (0, 1, 2, 3, 4, 5)


def test_neighbours_end_with_the_mesh():
    grid = mesh(3, 2, "aabbcc")
    assert grid.neighbour(Axis.PIPELINE, 3, 1) == 5
    assert grid.neighbour(Axis.PIPELINE, 3, -1) == 1
    assert grid.neighbour(Axis.PIPELINE, 1, -1) is None
    assert grid.neighbour(Axis.TENSOR, 3, 1) is None


def test_hosts_are_in_the_order_of_their_first_ranks():
    grid = mesh(1, 5, "babca")
    assert grid.hosts((0, 1, 2, 3, 4)) == ((0, 2), (1, 4), (3,))
    assert grid.hosts((1, 3)) == ((1,), (3,))


def test_a_mesh_of_too_few_devices_is_refused():
    with pytest.raises(ConfigError, match="needs 4 devices, not 3"):
        mesh(2, 2, "aab")
