import pytest

from fabric.serve.shard_actors import stage_order


@pytest.mark.parametrize(
    ("nodes", "tensor", "order"),
    [
        ("aabb", 2, "aabb"),
        ("abab", 2, "aabb"),
        ("abba", 2, "aabb"),
        ("baaab", 1, "bbaaa"),
        ("abbb", 2, "bbab"),
        ("abacbcaa", 4, "aaaabcbc"),
        ("abc", 3, "abc"),
    ],
)
def test_stages_share_a_node_in_whatever_order_ray_places_bundles(
    nodes: str, tensor: int, order: str
) -> None:
    places = stage_order(tuple(nodes), tensor)
    assert sorted(places) == list(range(len(nodes)))
    stages = [{nodes[p] for p in places[i : i + tensor]} for i in range(0, len(nodes), tensor)]
    wanted = [set(order[i : i + tensor]) for i in range(0, len(nodes), tensor)]
    assert stages == wanted
