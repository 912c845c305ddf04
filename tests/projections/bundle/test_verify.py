"""What is checked besides the bytes: signatures that are there at all, where they end, rows, and who is left out."""

import io
from pathlib import Path

import msgspec
import pytest
from msgspec import Raw
from msgspec.structs import replace
from tests.projections.bundle.conftest import Exported, exported_from
from tests.projections.bundle.forgeries import signed_again
from tests.projections.bundle.unpacked import Unpacked

from sightline.projections.bundle.format import QUARANTINE, BundleRefused, FrontierPart, QuarantineLine
from sightline.projections.bundle.verify import Report, verify


def checked(exported: Exported, unpacked: Unpacked) -> Report:
    return verify(io.BytesIO(unpacked.packed()), exported.public_key)


def test_without_checkpoints_nothing_is_proven(exported: Exported) -> None:
    bare = Unpacked.of(exported.packed)
    bare.checkpoints.clear()
    with pytest.raises(BundleRefused, match="no signed checkpoint"):
        checked(exported, bare)


def test_what_nobody_signed_yet_is_told(exported: Exported) -> None:
    cut = Unpacked.of(exported.packed)
    signed = cut.checkpoints[-3].tree_size
    del cut.checkpoints[-2:]
    report = checked(exported, cut)
    assert report.unsigned == exported.last - signed
    assert f"positions {signed + 1} to {exported.last} are not signed yet" in "\n".join(report.lines())


def test_checkpoints_of_another_order_or_log(exported: Exported, tmp_path: Path) -> None:
    honest = Unpacked.of(exported.packed)
    turned = honest.copy()
    turned.checkpoints.reverse()
    with pytest.raises(BundleRefused, match="stands after"):
        checked(exported, turned)
    renamed = honest.copy()
    renamed.manifest = replace(renamed.manifest, origin="sightline/another")
    with pytest.raises(BundleRefused, match="is of 'sightline/log-"):
        checked(exported, renamed)
    resized = honest.copy()
    resized.checkpoints[0] = replace(resized.checkpoints[0], tree_size=1)
    with pytest.raises(BundleRefused, match="is one of"):
        checked(exported, resized)


def test_a_bundle_that_ends_before_its_last_checkpoint(exported: Exported) -> None:
    short = Unpacked.of(exported.packed)
    del short.events[-1]
    with pytest.raises(BundleRefused, match=f"position {exported.last}: .* the bundle ends before"):
        checked(exported, short)


def test_the_first_wrong_position_is_named(exported: Exported) -> None:
    """The first of two faults, whether a root or a number tells it."""
    honest = Unpacked.of(exported.packed)
    sizes = [one.tree_size for one in honest.checkpoints]
    edited = honest.copy()
    edited.events[sizes[1]] = replace(edited.events[sizes[1]], recorded_at_us=0)
    del edited.events[sizes[3]]
    with pytest.raises(BundleRefused) as caught:
        checked(exported, edited)
    assert caught.value.position == sizes[1] + 1
    holed = honest.copy()
    del holed.events[sizes[3]]
    with pytest.raises(BundleRefused) as caught:
        checked(exported, holed)
    assert caught.value.position == sizes[3] + 1


@pytest.mark.parametrize(
    "changed",
    [{"version": 99}, {"version": 2**63}, {"position": 2**70}, {"recorded_at_us": 2**63}, {"data": Raw(b"5")}],
)
def test_numbers_beyond_all_bounds(exported: Exported, changed: dict[str, int]) -> None:
    absurd = Unpacked.of(exported.packed)
    absurd.events[5] = replace(absurd.events[5], **changed)
    with pytest.raises(BundleRefused) as caught:
        checked(exported, absurd)
    assert caught.value.position is not None
    assert caught.value.position <= 6


def test_an_event_that_cannot_be_folded_though_it_was_signed(exported: Exported) -> None:
    poisoned = Unpacked.of(exported.packed)
    poisoned.events[5] = replace(poisoned.events[5], topic="job.unheard_of")
    signed_again(poisoned, exported.signer)
    with pytest.raises(BundleRefused, match="position 6: cannot be replayed"):
        checked(exported, poisoned)


def test_a_quarantined_stream_is_told_and_left_out(exported: Exported) -> None:
    unpacked = Unpacked.of(exported.packed)
    poisoned = unpacked.events[5]
    at = poisoned.position
    unpacked.events[5] = replace(poisoned, topic="job.unheard_of")
    line = QuarantineLine(poisoned.stream_id, at)
    unpacked.others[QUARANTINE] = msgspec.json.Encoder().encode_lines([line])
    signed_again(unpacked, exported.signer)
    with pytest.raises(BundleRefused, match="read_models/"):
        checked(exported, unpacked)  # whose rows go on past the quarantine
    unpacked.refolded({line.stream_id: line.position})
    report = checked(exported, unpacked)
    assert report.content.quarantined == 1
    assert "1 streams are quarantined" in "\n".join(report.lines())


async def test_a_false_tree_before_the_first_event(exported: Exported) -> None:
    packed = await exported_from(exported.settings, first=40)
    part = Unpacked.of(packed)
    assert verify(io.BytesIO(packed), exported.public_key).manifest.first == 40
    tree = msgspec.json.decode(part.others["frontier.json"], type=FrontierPart)
    for forged in (
        replace(tree, size=38),
        replace(tree, nodes=tree.nodes[1:]),
        replace(tree, nodes=["00" * 32, *tree.nodes[1:]]),
        replace(tree, nodes=["zz", *tree.nodes[1:]]),
    ):
        part.others["frontier.json"] = msgspec.json.encode(forged)
        with pytest.raises(BundleRefused):
            verify(io.BytesIO(part.packed(last=exported.last)), exported.public_key)


def test_two_processes_find_what_one_finds(exported: Exported, tmp_path: Path) -> None:
    path = tmp_path / "bundle.zip"
    path.write_bytes(exported.packed)
    told: set[str] = set()

    def tell(what: str, *_: int) -> None:
        told.add(what)

    report = verify(path, exported.public_key, exported.witness, alone=False, progress=tell)
    assert report == verify(path, exported.public_key, exported.witness, alone=True)
    assert told >= {"hashed", "replayed", "compared"}
    wrong = Unpacked.of(exported.packed)
    wrong.others["read_models/jobs.ndjson"] = b"{}\n"
    path.write_bytes(wrong.packed())
    for alone in (False, True):
        with pytest.raises(BundleRefused, match=r"read_models/jobs\.ndjson, line 1"):
            verify(path, exported.public_key, alone=alone)
