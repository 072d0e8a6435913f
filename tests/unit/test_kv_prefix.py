import pytest

from fabric.kv.prefix import PrefixChain, block_hash, root_hash


def chain(tokens: list[int], model: str = "m", salt: str = "") -> PrefixChain:
    return PrefixChain(tokens, 2, root_hash(model, salt))


def test_a_block_hash_depends_on_everything_before_the_block():
    same, other = chain([1, 2, 3, 4]), chain([9, 2, 3, 4])
    assert chain([1, 2, 3, 4]).hash_of(1) == same.hash_of(1)
    assert same.hash_of(1) != other.hash_of(1)


@pytest.mark.parametrize(("model", "salt"), [("other", ""), ("m", "salt")])
def test_models_and_salts_share_no_hash(model, salt):
    assert chain([1, 2]).hash_of(0) != chain([1, 2], model, salt).hash_of(0)


def test_model_and_salt_can_not_be_mistaken_for_each_other():
    assert root_hash("a", "bc") != root_hash("ab", "c")
    assert root_hash("a', 'b", "") != root_hash("a", "b', '")


def test_hashes_follow_a_growing_sequence():
    tokens = [1, 2]
    growing = chain(tokens)
    first = growing.hash_of(0)
    tokens += [3, 4]
    assert growing.hash_of(1) == block_hash(first, [3, 4])
    assert growing.hash_of(0) == first


def test_a_partial_block_has_no_hash():
    with pytest.raises(AssertionError, match="full blocks"):
        chain([1, 2, 3]).hash_of(1)


def test_a_forked_chain_goes_its_own_way():
    tokens = [1, 2]
    parent = chain(tokens)
    parent.hash_of(0)
    child = parent.fork([1, 2, 7, 7])
    tokens += [8, 8]
    assert child.hash_of(0) == parent.hash_of(0)
    assert child.hash_of(1) != parent.hash_of(1)
