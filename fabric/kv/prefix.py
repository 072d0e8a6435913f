"""Names for prefixes: a chain of digests, one for each full block of a sequence."""

from array import array
from collections.abc import Sequence
from hashlib import blake2b

DIGEST_BYTES = 16


def root_hash(model: str, salt: str) -> bytes:
    """The parent of a sequence's first block; another model or salt shares nothing with it."""
    return blake2b(repr((model, salt)).encode(), digest_size=DIGEST_BYTES).digest()


def block_hash(parent: bytes, token_ids: Sequence[int]) -> bytes:
    """The digest of a full block's tokens and, through ``parent``, of everything before them."""
    tokens = array("q", token_ids).tobytes()
    return blake2b(parent + tokens, digest_size=DIGEST_BYTES).digest()


class PrefixChain:
    """The hashes of one sequence's full blocks, each computed once, when first asked for.

    ``token_ids`` is the sequence's own list: it is not copied, and it may only grow.
    """

    __slots__ = ("_block_size", "_hashes", "_root", "_token_ids")

    def __init__(self, token_ids: list[int], block_size: int, root: bytes) -> None:
        self._token_ids = token_ids
        self._block_size = block_size
        self._root = root
        self._hashes: list[bytes] = []

    def hash_of(self, block_index: int) -> bytes:
        """The hash of the sequence's full block number ``block_index``."""
        hashes = self._hashes
        while len(hashes) <= block_index:
            start = len(hashes) * self._block_size
            tokens = self._token_ids[start : start + self._block_size]
            assert len(tokens) == self._block_size, "only full blocks have a hash"
            hashes.append(block_hash(hashes[-1] if hashes else self._root, tokens))
        return hashes[block_index]

    def fork(self, token_ids: list[int]) -> "PrefixChain":
        """A chain for a copy of the sequence that goes its own way from here."""
        child = PrefixChain(token_ids, self._block_size, self._root)
        child._hashes = self._hashes.copy()
        return child
