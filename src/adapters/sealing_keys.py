"""The sealing keys: they wrap what lies in the database, and lie outside it and its backups.

In a file of the data directory, or in a setting where several nodes share one. Two at once only while one takes over
from the other.
"""

import base64
import binascii
import fcntl
import hashlib
import hmac
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from .keyfiles import made_once, put
from .settings import SettingsError

KEY_FILE = "sealing.key"
PREVIOUS_KEY_FILE = "sealing.previous.key"
KEY_BYTES = 32
KEY_ID_BYTES = 8
NONCE_BYTES = 12


class VaultLocked(SettingsError):
    """The sealing key that the database was sealed with is not here, or is no key."""


class SealBroken(VaultLocked):
    """What was sealed does not fit its key: it was changed, or put where it does not belong."""


class KeyRing:
    """The sealing keys that this process may use, by their ids, the newest first.

    Args:
        keys_dir: where the key file lies.
        given: keys from a setting instead: base64, comma-separated, the newest first; empty for the files.
    """

    def __init__(self, keys_dir: Path, given: str = "") -> None:
        self.path = keys_dir / KEY_FILE
        self.previous_path = keys_dir / PREVIOUS_KEY_FILE
        self.is_given = bool(given)
        self._given = [_given_key(one) for one in given.split(",")] if given else []
        self._keys: dict[bytes, bytes] = {}

    def __repr__(self) -> str:
        return "KeyRing(…)"

    def find(self, key_id: bytes) -> bytes:
        """
        Raises:
            VaultLocked: the key of this id is not here.
        """
        if not self.knows(key_id):
            where = "SIGHTLINE_SEALING_KEY" if self.is_given else str(self.path)
            raise VaultLocked(
                f"the database was sealed with another key than the one in {where}: put back the right one; without it"
                " nothing that was sealed can be opened"
            )
        return self._keys[key_id]

    def knows(self, key_id: bytes) -> bool:
        """Whether the key of this id is here; the files are read again if it is not known."""
        if key_id not in self._keys:
            self._keys = self.load()
        return key_id in self._keys

    def load(self) -> dict[bytes, bytes]:
        """
        Raises:
            VaultLocked: a file does not hold a key.
        """
        keys = list(self._given)
        for path in () if self.is_given else (self.path, self.previous_path):
            with suppress(FileNotFoundError):  # A rotation of another process ends while we look.
                keys.append(_read_key(path))
        return {_key_id(key): key for key in keys}

    def newest(self) -> bytes:
        """The id of the key to wrap with from now on; made where there is none yet."""
        if not self.is_given and not self.path.exists():
            made_once(self.path, secrets.token_bytes(KEY_BYTES))
        self._keys = self.load()
        return next(iter(self._keys))

    @contextmanager
    def rotating(self) -> Iterator[bytes]:
        """The id of a new key, beside the one until now, which is destroyed at the end. What was cut off is resumed.
        Of given keys, the first; nothing is destroyed.

        Raises:
            VaultLocked: another process is about it.
        """
        if self.is_given:
            yield self.newest()
            return
        with _locked(self.path.parent):
            if not self.previous_path.exists():
                put(self.previous_path, _read_key(self.path))  # First: at no moment is the old key in neither file.
            if _read_key(self.previous_path) == _read_key(self.path):
                put(self.path, secrets.token_bytes(KEY_BYTES))
            yield self.newest()
            self.previous_path.unlink()
            self._keys = self.load()


def encrypt(key: bytes, plain: bytes, binding: bytes) -> bytes:
    """AES-256-GCM under a random nonce, which stands first."""
    nonce = secrets.token_bytes(NONCE_BYTES)
    return nonce + AESGCM(key).encrypt(nonce, plain, binding)


def decrypt(key: bytes, box: bytes, binding: bytes) -> bytes:
    """Raises: SealBroken: it was not sealed with this key and binding, or was changed."""
    try:
        return AESGCM(key).decrypt(box[:NONCE_BYTES], box[NONCE_BYTES:], binding)
    except (InvalidTag, ValueError) as error:
        raise SealBroken("what was sealed does not fit its key") from error


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Two rotations at once would each make a new key, and one of them be lost with all that it wrapped."""
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise VaultLocked("another process rotates the sealing key") from error
        yield
    finally:
        os.close(handle)


def _key_id(key: bytes) -> bytes:
    return hmac.digest(key, b"sightline-sealing-key-id-1", hashlib.sha256)[:KEY_ID_BYTES]


def _read_key(path: Path) -> bytes:
    key = path.read_bytes()
    if len(key) != KEY_BYTES:
        raise VaultLocked(f"{path} holds {len(key)} bytes where a sealing key has {KEY_BYTES}")
    return key


def _given_key(text: str) -> bytes:
    """Never quoted in the error: it may be nearly right."""
    try:
        key = base64.b64decode(text.strip(), validate=True)
    except binascii.Error as error:
        raise VaultLocked("SIGHTLINE_SEALING_KEY is not base64") from error
    if len(key) != KEY_BYTES:
        raise VaultLocked(f"a key in SIGHTLINE_SEALING_KEY has {len(key)} bytes instead of {KEY_BYTES}")
    return key
