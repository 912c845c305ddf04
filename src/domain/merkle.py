"""The Merkle tree of RFC 9162 (section 2.1) over SHA-256: roots, inclusion and consistency proofs, and their checks.

A tree of n leaves is left-heavy: its left child holds the largest power of two below n. Whoever keeps the roots of its
complete subtrees, one for each bit of n (a frontier), can append for ever and never needs an earlier leaf again.
"""

from collections.abc import Callable, Iterable, Sequence
from hashlib import sha256

HASH_BYTES = 32
SIZE_MAX = 2**63 - 1  # a proof of 63 hashes is the longest there is
EMPTY_ROOT = sha256(b"").digest()

# The hash of the leaves [begin, end) as a tree of their own. Asked only for ranges that are a node of the tree:
# `begin` is a multiple of the next power of two that is not below `end - begin`.
RangeRoot = Callable[[int, int], bytes]


def leaf_hash(data: bytes) -> bytes:
    """SHA-256(0x00 || data). The prefix keeps a leaf from being passed off as a node."""
    return sha256(b"\x00" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """SHA-256(0x01 || left || right)."""
    return sha256(b"\x01" + left + right).digest()


class Frontier:
    """The right edge of a growing tree.

    Attributes:
        size: leaves so far.
        nodes: the roots of its complete subtrees, the largest (leftmost) first: one for each bit that `size` has.

    Raises:
        ValueError: the nodes are not as many as the bits of the size.
    """

    __slots__ = ("nodes", "size")

    def __init__(self, size: int = 0, nodes: Sequence[bytes] = ()) -> None:
        if not 0 <= size <= SIZE_MAX or len(nodes) != size.bit_count():
            raise ValueError(f"a tree of {size} leaves does not have {len(nodes)} complete subtrees")
        self.size = size
        self.nodes = list(nodes)

    def append(self, hashed: bytes) -> None:
        """Add one leaf by its hash."""
        size = self.size
        while size & 1:
            hashed = node_hash(self.nodes.pop(), hashed)
            size >>= 1
        self.nodes.append(hashed)
        self.size += 1

    def extend(self, hashes: Iterable[bytes]) -> None:
        """Add leaves by their hashes, a level of the tree at a time."""
        row = list(hashes)
        edge, kept = self.nodes, []
        before, grown = self.size, self.size + len(row)
        if grown > SIZE_MAX:
            raise ValueError(f"a tree has at most {SIZE_MAX} leaves")
        while row or edge:
            if before & 1:
                row = [edge.pop(), *row]
            if len(row) & 1:
                kept.append(row[-1])
            pairs = iter(row)
            # node_hash, spelled out: the calls would be half of the time.
            row = [sha256(b"\x01" + left + right).digest() for left, right in zip(pairs, pairs, strict=False)]
            before >>= 1
        self.nodes = kept[::-1]
        self.size = grown

    def root(self) -> bytes:
        """The hash of the whole tree."""
        if not self.nodes:
            return EMPTY_ROOT
        *rest, hashed = self.nodes
        for left in reversed(rest):
            hashed = node_hash(left, hashed)
        return hashed

    def copy(self) -> "Frontier":
        return Frontier(self.size, self.nodes)


def root_of(hashes: Iterable[bytes]) -> bytes:
    """The root of the tree with these leaf hashes."""
    frontier = Frontier()
    frontier.extend(hashes)
    return frontier.root()


def complete_subtrees(begin: int, end: int) -> list[tuple[int, int]]:
    """The complete subtrees, (level, index), that the leaves [begin, end) of a RangeRoot consist of, left to right.

    Node (level, index) stands over the leaves index * 2^level and the 2^level - 1 after it.
    """
    size = end - begin
    return [
        (level, (begin >> level) + (size >> level + 1 << 1))
        for level in range(size.bit_length() - 1, -1, -1)
        if size >> level & 1
    ]


def inclusion_proof(index: int, size: int, roots: RangeRoot) -> list[bytes]:
    """That leaf `index` is in the tree of `size` leaves: the sibling at each step from the leaf to the root.

    `roots` has the hashes of ranges of the tree's leaves; of a list, `lambda begin, end: root_of(hashes[begin:end])`.

    Raises:
        ValueError: the tree has no such leaf.
    """
    if not 0 <= index < size <= SIZE_MAX:
        raise ValueError(f"a tree of {size} leaves has no leaf {index}")
    proof, begin, end = [], 0, size
    while end - begin > 1:
        middle = begin + _split(end - begin)
        if index < middle:
            proof.append(roots(middle, end))
            end = middle
        else:
            proof.append(roots(begin, middle))
            begin = middle
    return proof[::-1]


def verify_inclusion(leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes) -> bool:
    """Whether `proof` shows that the tree of `size` leaves with this root has the leaf hash `leaf` at `index`."""
    if not 0 <= index < size <= SIZE_MAX or not _hashes([leaf, root, *proof]):
        return False
    last, hashed = size - 1, leaf
    for sibling in proof:
        if last == 0:
            return False
        if index & 1 or index == last:
            hashed = node_hash(sibling, hashed)
            while not index & 1 and index:
                index >>= 1
                last >>= 1
        else:
            hashed = node_hash(hashed, sibling)
        index >>= 1
        last >>= 1
    return last == 0 and hashed == root


def consistency_proof(old_size: int, new_size: int, roots: RangeRoot) -> list[bytes]:
    """That the tree of `old_size` leaves is the beginning of the one of `new_size`; empty where they are one, and for
    an empty tree, with which everything begins.

    Raises:
        ValueError: the old tree is the larger one.
    """
    if not 0 <= old_size <= new_size <= SIZE_MAX:
        raise ValueError(f"a tree of {old_size} leaves is not the beginning of one of {new_size}")
    if old_size in (0, new_size):
        return []
    proof, begin, end = [], 0, new_size
    while end != old_size:
        middle = begin + _split(end - begin)
        if old_size <= middle:
            proof.append(roots(middle, end))
            end = middle
        else:
            proof.append(roots(begin, middle))
            begin = middle
    if begin:  # otherwise the verifier has this hash: it is the old root
        proof.append(roots(begin, end))
    return proof[::-1]


def verify_consistency(old_size: int, old_root: bytes, new_size: int, new_root: bytes, proof: Sequence[bytes]) -> bool:
    """Whether `proof` shows that the tree with the new root begins with the whole tree that has the old root."""
    if not 0 <= old_size <= new_size <= SIZE_MAX or not _hashes([old_root, new_root, *proof]):
        return False
    if old_size == new_size:
        return not proof and old_root == new_root
    if old_size == 0:
        return not proof and old_root == EMPTY_ROOT
    path = list(proof)
    if old_size & (old_size - 1) == 0:
        path.insert(0, old_root)
    if not path:
        return False
    old_last, new_last = old_size - 1, new_size - 1
    while old_last & 1:
        old_last >>= 1
        new_last >>= 1
    old_hash = new_hash = path[0]
    for sibling in path[1:]:
        if new_last == 0:
            return False
        if old_last & 1 or old_last == new_last:
            old_hash = node_hash(sibling, old_hash)
            new_hash = node_hash(sibling, new_hash)
            while not old_last & 1 and old_last:
                old_last >>= 1
                new_last >>= 1
        else:
            new_hash = node_hash(new_hash, sibling)
        old_last >>= 1
        new_last >>= 1
    return new_last == 0 and old_hash == old_root and new_hash == new_root


def _split(size: int) -> int:
    """The largest power of two below `size`."""
    return 1 << (size - 1).bit_length() - 1


def _hashes(given: Sequence[bytes]) -> bool:
    return all(len(one) == HASH_BYTES for one in given)
