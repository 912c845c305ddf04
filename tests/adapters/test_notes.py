"""Signed notes: the published example verifies, what was changed anywhere does not, and keys are kept well."""

import base64
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sightline.adapters import notes
from sightline.adapters.notes import Checkpoint, NoteRefused, Signer, verify_checkpoint
from sightline.domain.merkle import leaf_hash

ROOT = leaf_hash(b"a tree")
EPOCH = "epoch 6f6f1f6e-4b5b-4cf4-9f3e-0f8a7d0c3a10"


@pytest.fixture(scope="module")
def signer(tmp_path_factory: pytest.TempPathFactory) -> Signer:
    return Signer.load(tmp_path_factory.mktemp("keys"))


@pytest.fixture(scope="module")
def note(signer: Signer) -> str:
    return signer.sign_checkpoint(signer.origin, 4711, ROOT, [EPOCH])


# From the documentation of golang.org/x/mod/sumdb/note, whose form C2SP's signed-note describes.
GO_KEY = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
GO_NOTE = (
    "If you think cryptography is the answer to your problem,\n"
    "then you don't know what your problem is.\n"
    "\n"
    "— PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n"
)


def test_a_note_of_another_implementation_verifies() -> None:
    """Up to what it says, which is no checkpoint."""
    with pytest.raises(NoteRefused, match=r"origin, a size and a root"):
        verify_checkpoint(GO_NOTE, GO_KEY)
    with pytest.raises(NoteRefused, match="signature of PeterNeumann is false"):
        verify_checkpoint(GO_NOTE.replace("think", "thunk"), GO_KEY)


def test_what_was_signed_is_what_is_read(signer: Signer, note: str) -> None:
    assert verify_checkpoint(note, signer.public_key) == Checkpoint(signer.origin, 4711, ROOT, (EPOCH,))
    lines = note.split("\n")
    assert lines[:5] == [signer.origin, "4711", base64.b64encode(ROOT).decode(), EPOCH, ""]
    assert lines[5].startswith(f"— {signer.origin} ")


@given(st.data())
def test_no_character_can_be_changed(signer: Signer, note: str, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(note) - 1))
    character = data.draw(st.characters(codec="utf-8").filter(lambda one: one != note[at]))
    with pytest.raises(NoteRefused):
        verify_checkpoint(note[:at] + character + note[at + 1 :], signer.public_key)


@given(st.text(max_size=300))
def test_nonsense_is_refused_with_a_reason(signer: Signer, text: str) -> None:
    with pytest.raises(NoteRefused, match=r"\w"):
        verify_checkpoint(text, signer.public_key)
    with pytest.raises(NoteRefused, match=r"\w"):
        verify_checkpoint(signer.sign_checkpoint("log", 0, ROOT), text)


def test_of_several_keys_one_is_enough_and_strangers_signatures_are_skipped(
    signer: Signer, note: str, tmp_path: Path
) -> None:
    other = Signer.load(tmp_path)
    theirs = other.sign_checkpoint(signer.origin, 4711, ROOT, [EPOCH]).rpartition("\n\n")[2]
    both = note + theirs
    for keys in (signer.public_key, other.public_key, f"{other.public_key}\n{signer.public_key}"):
        assert verify_checkpoint(both, keys).tree_size == 4711
    with pytest.raises(NoteRefused, match="none of the given keys"):
        verify_checkpoint(note, other.public_key)
    with pytest.raises(NoteRefused, match="is false"):  # a given key's false signature is not skipped
        verify_checkpoint(both.replace("4711", "4712"), signer.public_key)


@pytest.mark.parametrize(
    ("origin", "size", "root", "extensions"),
    [
        ("", 1, ROOT, ()),
        ("two\nlines", 1, ROOT, ()),
        ("log", -1, ROOT, ()),
        ("log", 2**63, ROOT, ()),
        ("log", 1, b"short", ()),
        ("log", 1, ROOT, ("",)),
        ("log", 1, ROOT, ("a\rb",)),
    ],
)
def test_what_would_not_be_read_is_not_signed(
    signer: Signer, origin: str, size: int, root: bytes, extensions: tuple[str, ...]
) -> None:
    with pytest.raises(NoteRefused):
        signer.sign_checkpoint(origin, size, root, extensions)


def test_the_key_is_made_once_and_readable_by_its_owner_alone(tmp_path: Path) -> None:
    first, second = Signer.load(tmp_path), Signer.load(tmp_path)
    assert first.public_key == second.public_key == notes.read_public_keys(tmp_path).strip()
    assert (tmp_path / notes.KEY_FILE).stat().st_mode & 0o777 == 0o600
    secret = (tmp_path / notes.KEY_FILE).read_text().strip().rpartition("+")[2]
    assert secret not in repr(first)


def test_after_a_change_of_keys_old_checkpoints_verify(tmp_path: Path) -> None:
    old = Signer.load(tmp_path)
    note = old.sign_checkpoint(old.origin, 1, ROOT)
    (tmp_path / notes.KEY_FILE).unlink()
    new = Signer.load(tmp_path)
    assert new.origin == old.origin
    assert new.public_key != old.public_key
    assert new.public_keys.split() == [new.public_key, old.public_key]
    assert verify_checkpoint(note, new.public_keys).tree_size == 1
    with pytest.raises(NoteRefused):  # whoever trusts the new key alone
        verify_checkpoint(note, new.public_key)
    assert notes.read_public_keys(tmp_path) == Signer.load(tmp_path).public_keys == new.public_keys


def test_a_damaged_key_is_told(tmp_path: Path) -> None:
    Signer.load(tmp_path)
    path = tmp_path / notes.KEY_FILE
    text = path.read_text()
    for damaged in ("", "nonsense", text.replace("+KEY+", "+LOCK+"), text.replace("log-", "lag-")):
        path.write_text(damaged)
        with pytest.raises(NoteRefused):
            Signer.load(tmp_path)
