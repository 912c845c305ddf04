"""A file that is not a bundle, or not a whole one, is refused in one line."""

import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from msgspec import Raw
from tests.projections.bundle.conftest import Exported
from tests.projections.bundle.unpacked import repacked, written

from sightline.adapters.notes import Signer
from sightline.projections.bundle.format import MANIFEST, BundleReader, BundleRefused, exact, raw
from sightline.projections.bundle.verify import verify


@pytest.mark.parametrize(
    "stored",
    [b'{"a": 1}', b'{"a":"\xc3\xa9"}', b' {"a":1}', b'{"a":1}\n', b"[1]", b"null", b'"text"', b'{"a":\n1}', b"1e400"],
)
def test_stored_text_comes_back_byte_for_byte(stored: bytes) -> None:
    line = msgspec.json.encode({"data": raw(stored)})
    assert exact(msgspec.json.decode(line, type=dict[str, Raw])["data"]) == stored


@pytest.mark.parametrize("content", [b"", b"PK", b"not a zip at all" * 100, b"PK\x05\x06" + bytes(18)])
def test_what_is_no_bundle(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "bundle.zip"
    path.write_bytes(content)
    with pytest.raises(BundleRefused):
        BundleReader(path)


def test_a_cut_stream_is_refused_wherever_it_was_cut(exported: Exported) -> None:
    packed = exported.packed
    assert verify(io.BytesIO(packed), exported.public_key)
    for size in {*range(0, len(packed), max(1, len(packed) // 200)), len(packed) - 1}:
        with pytest.raises(BundleRefused):
            verify(io.BytesIO(packed[:size]), exported.public_key)


def test_a_flipped_byte_is_refused_wherever_it_is(exported: Exported) -> None:
    """But in what nobody reads: times, and the local headers' copies of what the directory says."""
    packed = exported.packed
    passed = 0
    for place in range(0, len(packed), max(1, len(packed) // 300)):
        spoiled = bytearray(packed)
        spoiled[place] ^= 0x10
        try:
            report = verify(io.BytesIO(bytes(spoiled)), exported.public_key)
        except BundleRefused:
            continue
        passed += 1
        assert report.chain.signed == exported.last
    assert passed < 30


def _members(change: Callable[[dict[str, bytes]], None], exported: Exported) -> bytes:
    return repacked(exported.packed, change)


def test_members_that_the_manifest_does_not_say(exported: Exported) -> None:
    def without_rows(members: dict[str, bytes]) -> None:
        del members["read_models/jobs.ndjson"]

    def with_more(members: dict[str, bytes]) -> None:
        members["events/000009.ndjson"] = b""

    def with_another(members: dict[str, bytes]) -> None:
        members["README.txt"] = members["README.txt"].replace(b"public key", b"publik key")

    def with_an_intruder(members: dict[str, bytes]) -> None:
        members["../../etc/passwd"] = b"root"

    for change in (without_rows, with_more, with_another, with_an_intruder):
        with pytest.raises(BundleRefused):
            verify(io.BytesIO(_members(change, exported)), exported.public_key)


def test_a_manifest_that_is_not_ours(exported: Exported) -> None:
    with BundleReader(io.BytesIO(exported.packed)) as reader:
        members = {name: reader.read(name) for name in reader.manifest.members}
        manifest = msgspec.json.decode(reader.read(MANIFEST, digest=False))
    for changed in ({"format_version": 2}, {"format": "another"}, {"to": "many"}, {"surprise": 1}):
        text = msgspec.json.encode(manifest | changed)
        with pytest.raises(BundleRefused, match=r"manifest|version"):
            BundleReader(io.BytesIO(written(members, text)))
    assert BundleReader(io.BytesIO(written(members, msgspec.json.encode(manifest)))).manifest


def test_a_member_that_would_unpack_to_far_too_much() -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr(MANIFEST, bytes(65 * 1024**2))
    with pytest.raises(BundleRefused, match="too many"):
        BundleReader(packed)


def test_a_member_that_is_there_twice() -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as made:
        made.writestr(MANIFEST, b"{}")
        with pytest.warns(UserWarning, match="Duplicate"):
            made.writestr(MANIFEST, b"{}")
    with pytest.raises(BundleRefused, match="twice"):
        BundleReader(packed)


def test_another_key(exported: Exported, tmp_path: Path) -> None:
    for key in (Signer.load(tmp_path).public_key, "", "not a key", exported.public_key[:-4]):
        with pytest.raises(BundleRefused):
            verify(io.BytesIO(exported.packed), key)
