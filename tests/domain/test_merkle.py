"""The tree against the vectors that Certificate Transparency published, and against the definition, spelled out."""

import itertools
from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sightline.domain import merkle
from sightline.domain.merkle import Frontier

# The reference tree of RFC 6962's own implementation: its leaves, and its root at each size.
LEAVES = [
    bytes.fromhex(text)
    for text in (
        "",
        "00",
        "10",
        "2021",
        "3031",
        "40414243",
        "5051525354555657",
        "606162636465666768696a6b6c6d6e6f",
    )
]
ROOTS = (
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
)
INCLUSION = {
    (0, 8): (
        "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
    ),
    (5, 8): (
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ),
    (2, 3): ("fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",),
}
CONSISTENCY = {
    (1, 8): (
        "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
    ),
    (6, 8): (
        "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ),
    (2, 5): (
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
    ),
}
HASHES = [merkle.leaf_hash(one) for one in LEAVES]
sizes = st.integers(0, 300)


def leaves(size: int) -> list[bytes]:
    return [merkle.leaf_hash(n.to_bytes(4, "big")) for n in range(size)]


def tree_hash(hashes: list[bytes]) -> bytes:
    """RFC 9162, 2.1.1, word for word."""
    if not hashes:
        return sha256(b"").digest()
    if len(hashes) == 1:
        return hashes[0]
    split = 1
    while split * 2 < len(hashes):
        split *= 2
    return sha256(b"\x01" + tree_hash(hashes[:split]) + tree_hash(hashes[split:])).digest()


def of(hashes: list[bytes]) -> merkle.RangeRoot:
    return lambda begin, end: tree_hash(hashes[begin:end])


@pytest.mark.parametrize("size", range(9))
def test_roots_are_the_published_ones(size: int) -> None:
    assert merkle.root_of(HASHES[:size]).hex() == ROOTS[size]


@pytest.mark.parametrize(("index", "size"), INCLUSION)
def test_inclusion_proofs_are_the_published_ones(index: int, size: int) -> None:
    proof = merkle.inclusion_proof(index, size, of(HASHES))
    assert tuple(one.hex() for one in proof) == INCLUSION[index, size]
    assert merkle.verify_inclusion(HASHES[index], index, size, proof, bytes.fromhex(ROOTS[size]))


@pytest.mark.parametrize(("old", "new"), CONSISTENCY)
def test_consistency_proofs_are_the_published_ones(old: int, new: int) -> None:
    proof = merkle.consistency_proof(old, new, of(HASHES))
    assert tuple(one.hex() for one in proof) == CONSISTENCY[old, new]
    assert merkle.verify_consistency(old, bytes.fromhex(ROOTS[old]), new, bytes.fromhex(ROOTS[new]), proof)


@given(st.lists(st.integers(0, 40), max_size=8))
def test_a_frontier_grown_in_any_pieces_has_the_root_of_the_definition(pieces: list[int]) -> None:
    hashes = leaves(sum(pieces))
    frontier, one_by_one, rest = Frontier(), Frontier(), iter(hashes)
    for piece in pieces:
        frontier.extend(itertools.islice(rest, piece))
    for one in hashes:
        one_by_one.append(one)
    assert frontier.root() == one_by_one.root() == tree_hash(hashes)
    assert frontier.nodes == one_by_one.nodes == Frontier(frontier.size, frontier.nodes).nodes


@given(sizes, st.data())
def test_a_proof_of_inclusion_holds_for_its_leaf_alone(size: int, data: st.DataObject) -> None:
    size += 1
    index = data.draw(st.integers(0, size - 1))
    hashes = leaves(size)
    root, proof = tree_hash(hashes), merkle.inclusion_proof(index, size, of(hashes))
    assert merkle.verify_inclusion(hashes[index], index, size, proof, root)
    other = data.draw(st.integers(0, size))
    assert not merkle.verify_inclusion(merkle.leaf_hash(b"another"), index, size, proof, root)
    assert other == index or not merkle.verify_inclusion(hashes[index], other, size, proof, root)
    assert not merkle.verify_inclusion(hashes[index], index, size, [*proof, root], root)
    assert not proof or not merkle.verify_inclusion(hashes[index], index, size, proof[1:], root)


@given(sizes, sizes)
def test_a_proof_of_consistency_holds_for_a_true_beginning_alone(one: int, other: int) -> None:
    old, new = sorted((one, other))
    hashes = leaves(new)
    old_root, new_root = tree_hash(hashes[:old]), tree_hash(hashes)
    proof = merkle.consistency_proof(old, new, of(hashes))
    assert merkle.verify_consistency(old, old_root, new, new_root, proof)
    false_root = merkle.leaf_hash(b"another")
    assert not merkle.verify_consistency(old, false_root, new, new_root, proof)
    assert not merkle.verify_consistency(old, old_root, new, new_root, [*proof, false_root])
    assert old in (0, new) or not merkle.verify_consistency(old, old_root, new, false_root, proof)
    assert old in (0, new) or not merkle.verify_consistency(old, old_root, new, new_root, proof[1:])


@given(sizes, sizes)
def test_a_rewritten_past_has_no_proof_of_consistency(old: int, more: int) -> None:
    old, new = old + 1, old + more + 2
    hashes = leaves(new)
    rewritten = [merkle.leaf_hash(b"forged"), *hashes[1:]]
    proof = merkle.consistency_proof(old, new, of(rewritten))
    assert not merkle.verify_consistency(old, tree_hash(hashes[:old]), new, tree_hash(rewritten), proof)


@given(sizes, sizes)
def test_the_complete_subtrees_of_a_right_edge_are_its_frontier(size: int, more: int) -> None:
    hashes = leaves(size + more)
    frontier = Frontier()
    frontier.extend(hashes[:size])
    nodes = [
        tree_hash(hashes[index << level : (index + 1) << level]) for level, index in merkle.complete_subtrees(0, size)
    ]
    assert nodes == frontier.nodes


def test_sizes_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="complete subtrees"):
        Frontier(3, [b"\x00" * 32])
    with pytest.raises(ValueError, match="no leaf 8"):
        merkle.inclusion_proof(8, 8, of(HASHES))
    with pytest.raises(ValueError, match="not the beginning"):
        merkle.consistency_proof(8, 7, of(HASHES))
    assert not merkle.verify_inclusion(HASHES[0], 0, 8, [b"short"], HASHES[0])
    assert not merkle.verify_consistency(8, HASHES[0], 7, HASHES[0], [])
