"""Signed checkpoints of the log's tree: C2SP's signed-note and tlog-checkpoint formats, with Ed25519.

https://c2sp.org/signed-note and https://c2sp.org/tlog-checkpoint. A checkpoint is text that a person can read:

    sightline/log-8d1c0f3a5b7e9d21
    4711
    bBpe7FyVYjTJdJrDkUJDHMm2jfTWdDjzJqN5w0j1GhQ=
    epoch 6f6f1f6e-4b5b-4cf4-9f3e-0f8a7d0c3a10

    — sightline/log-8d1c0f3a5b7e9d21 Rk1xT0N0...

the origin (which log), the tree's size, its root, extension lines; a blank line; signatures.
"""

import base64
import binascii
import hashlib
import re
import secrets
from collections.abc import Sequence
from pathlib import Path

import structlog
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from msgspec import Struct

from ..domain.merkle import HASH_BYTES, SIZE_MAX
from . import keyfiles

KEY_FILE = "notary.key"
PUBLIC_KEY_FILE = "notary.pub"
NOTE_BYTES_MAX = 64 * 1024
SIGNATURES_MAX = 100
KEYS_MAX = 100

_ED25519 = b"\x01"
_ID_BYTES, _KEY_BYTES, _SIGNATURE_BYTES = 4, 32, 64
_PRIVATE = "PRIVATE+KEY+"
_SIZE = re.compile(r"0|[1-9][0-9]{0,18}")
_NAME = re.compile(r"[^\s+]{1,200}")

log = structlog.get_logger(__name__)


class NoteRefused(ValueError):
    """Not a note of this form, or not signed by a key that is trusted; the text says which."""


class Checkpoint(Struct, frozen=True):
    """What a verified note says.

    Attributes:
        origin: which log.
        root: of the tree over the first `tree_size` events.
        extensions: further lines, as they are.
    """

    origin: str
    tree_size: int
    root: bytes
    extensions: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """What is signed."""
        lines = (self.origin, str(self.tree_size), base64.b64encode(self.root).decode(), *self.extensions)
        return "".join(f"{line}\n" for line in lines)


class _Key(Struct, frozen=True):
    name: str
    id: bytes
    public: bytes


class Signer:
    """The key of one notary. `origin` names its log and, as C2SP advises, the key too.

    Attributes:
        public_key: in C2SP's verifier key form, `name+id+key`.
        public_keys: it, and those that signed before it, one a line: what its earlier checkpoints verify under.
    """

    def __init__(self, name: str, private: Ed25519PrivateKey, earlier: Sequence[str] = ()) -> None:
        public = private.public_key().public_bytes_raw()
        self.origin = name
        self.public_key = _verifier_key(name, public)
        self.public_keys = "".join(f"{key}\n" for key in (self.public_key, *earlier))
        self._private = private
        self._id = _key_id(name, public)

    @classmethod
    def load(cls, directory: Path) -> "Signer":
        """The key in `directory`; made, with its public half beside it, if there is none.

        Where only the public half is left, the key is being changed: the new one keeps the name, and the old public
        key stays listed after it.

        Raises:
            NoteRefused: a file is there and is not a key.
            OSError: the directory cannot be written.
        """
        public_path = directory / PUBLIC_KEY_FILE
        known = public_path.read_text().split() if public_path.exists() else []
        name = _parse_key(known[0]).name if known else f"sightline/log-{secrets.token_hex(8)}"
        path = directory / KEY_FILE
        if not path.exists():
            seed = secrets.token_bytes(_KEY_BYTES)
            public = Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw()
            text = f"{_PRIVATE}{name}+{_key_id(name, public).hex()}+{base64.b64encode(_ED25519 + seed).decode()}\n"
            keyfiles.made_once(path, text.encode())
            log.warning("notary_key_made", name=name, earlier_keys=len(known))
        name, private = _parse_private(path.read_text())
        signer = cls(name, private, [])
        if not known or known[0] != signer.public_key:
            known = [signer.public_key, *(key for key in known if key != signer.public_key)]
            keyfiles.put(public_path, "".join(f"{key}\n" for key in known).encode())
        return cls(name, private, known[1:])

    def sign_checkpoint(self, origin: str, tree_size: int, root: bytes, extensions: Sequence[str] = ()) -> str:
        """A signed note.

        Raises:
            NoteRefused: a line that cannot stand in a note, or a size or root that cannot be.
        """
        checkpoint = Checkpoint(origin, tree_size, root, tuple(extensions))
        signature = base64.b64encode(self._id + self._private.sign(checkpoint.text.encode())).decode()
        note = f"{checkpoint.text}\n— {self.origin} {signature}\n"
        if verify_checkpoint(note, self.public_key) != checkpoint:
            raise NoteRefused("the checkpoint would not be read as it was meant")
        return note

    def __repr__(self) -> str:
        return f"Signer({self.origin!r}, …)"


def read_public_keys(directory: Path) -> str:
    """The public keys in `directory`, the one that signs now first; empty if no notary has been there."""
    path = directory / PUBLIC_KEY_FILE
    return path.read_text() if path.exists() else ""


def verify_checkpoint(note: str, public_key: str) -> Checkpoint:
    """What `note` says, if one of the keys signed it: `public_key` has one verifier key or, after a change of keys,
    several, separated by white space.

    Signatures of other keys, those of witnesses, are skipped, as the format says; a false one of a given key is not.

    Raises:
        NoteRefused: the form, the keys or the signature are not right.
    """
    keys = [_parse_key(text) for text in public_key.split()]
    if not 1 <= len(keys) <= KEYS_MAX:
        raise NoteRefused("one verifier key at least is needed" if not keys else f"more than {KEYS_MAX} keys")
    text, signatures = _split(note)
    verified = 0
    for name, key_id, signature in signatures:
        for key in keys:
            if (key.name, key.id) == (name, key_id):
                _verify(key, signature, text)
                verified += 1
    if not verified:
        raise NoteRefused("none of the given keys signed it")
    return _checkpoint(text)


def _verify(key: _Key, signature: bytes, text: str) -> None:
    try:
        Ed25519PublicKey.from_public_bytes(key.public).verify(signature, text.encode())
    except (InvalidSignature, ValueError) as error:
        raise NoteRefused(f"the signature of {key.name} is false") from error


def _split(note: str) -> tuple[str, list[tuple[str, bytes, bytes]]]:
    """The signed text, and each signature's name, key id and bytes."""
    try:
        size_bytes = len(note.encode())
    except UnicodeEncodeError as error:
        raise NoteRefused("half of a surrogate pair") from error
    if size_bytes > NOTE_BYTES_MAX:
        raise NoteRefused(f"longer than {NOTE_BYTES_MAX} bytes")
    if any(character < " " and character != "\n" for character in note):
        raise NoteRefused("a control character")
    text, blank, tail = note.rpartition("\n\n")
    if not blank or not tail.endswith("\n"):
        raise NoteRefused("no blank line before signatures that end in a newline")
    lines = tail.removesuffix("\n").split("\n")
    if len(lines) > SIGNATURES_MAX:
        raise NoteRefused(f"more than {SIGNATURES_MAX} signatures")
    return f"{text}\n", [_signature(line) for line in lines]


def _signature(line: str) -> tuple[str, bytes, bytes]:
    dash, space, rest = line.partition(" ")
    name, gap, blob = rest.partition(" ")
    if (dash, space, gap) != ("—", " ", " ") or _NAME.fullmatch(name) is None:
        raise NoteRefused("a signature line is not `— name base64`")
    decoded = _base64(blob, "a signature")
    if len(decoded) <= _ID_BYTES:
        raise NoteRefused("a signature is too short")
    return name, decoded[:_ID_BYTES], decoded[_ID_BYTES:]


def _checkpoint(text: str) -> Checkpoint:
    lines = text.split("\n")
    if len(lines) < 4 or lines[-1] or not all(lines[:-1]):  # noqa: PLR2004  # three lines and the end of the last
        raise NoteRefused("a checkpoint has an origin, a size and a root, and no empty line")
    origin, size, root, *extensions = lines[:-1]
    if _SIZE.fullmatch(size) is None or int(size) > SIZE_MAX:
        raise NoteRefused("the size is not a decimal number without leading zeros")
    hashed = _base64(root, "the root")
    if len(hashed) != HASH_BYTES:
        raise NoteRefused(f"the root has not {HASH_BYTES} bytes")
    return Checkpoint(origin, int(size), hashed, tuple(extensions))


def _parse_key(text: str) -> _Key:
    name, plus, rest = text.partition("+")
    hashed, second, encoded = rest.partition("+")
    if not (plus and second) or _NAME.fullmatch(name) is None or re.fullmatch(r"[0-9a-f]{8}", hashed) is None:
        raise NoteRefused("a verifier key is `name+id+base64`")
    key = _base64(encoded, "the verifier key")
    if key[:1] != _ED25519 or len(key) != 1 + _KEY_BYTES:
        raise NoteRefused("the verifier key is not one of Ed25519")
    if _key_id(name, key[1:]).hex() != hashed:
        raise NoteRefused("the verifier key's id is not its own: mistyped?")
    return _Key(name, bytes.fromhex(hashed), key[1:])


def _parse_private(text: str) -> tuple[str, Ed25519PrivateKey]:
    name, _, rest = text.strip().removeprefix(_PRIVATE).partition("+")
    hashed, _, encoded = rest.partition("+")
    seed = _base64(encoded, "the private key")
    if not text.startswith(_PRIVATE) or seed[:1] != _ED25519 or len(seed) != 1 + _KEY_BYTES:
        raise NoteRefused(f"{KEY_FILE} is not an Ed25519 key of this form")
    private = Ed25519PrivateKey.from_private_bytes(seed[1:])
    if _key_id(name, private.public_key().public_bytes_raw()).hex() != hashed:
        raise NoteRefused(f"{KEY_FILE} is damaged: its id is not its own")
    return name, private


def _verifier_key(name: str, public: bytes) -> str:
    return f"{name}+{_key_id(name, public).hex()}+{base64.b64encode(_ED25519 + public).decode()}"


def _key_id(name: str, public: bytes) -> bytes:
    return hashlib.sha256(name.encode() + b"\n" + _ED25519 + public).digest()[:_ID_BYTES]


def _base64(text: str, what: str) -> bytes:
    """Strictly: what it decodes to has this one spelling."""
    try:
        decoded = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise NoteRefused(f"{what} is not base64") from error
    if base64.b64encode(decoded).decode() != text:
        raise NoteRefused(f"{what} is not base64 in its one spelling")
    return decoded
