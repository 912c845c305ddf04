"""Signatures of Standard Webhooks (standardwebhooks.com, specification 1.0).

A message is signed as `id.timestamp.body`: with HMAC-SHA256 under a secret that its receiver has (`v1`), or with
Ed25519 under a key of ours whose public half everybody may have (`v1a`), for receivers who never registered.
"""

import base64
import binascii
import hashlib
import hmac
import re
import secrets
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from . import keyfiles

ID, TIMESTAMP, SIGNATURE = "webhook-id", "webhook-timestamp", "webhook-signature"
SECRET_PREFIX = "whsec_"  # noqa: S105  # what a secret begins with, not one
PUBLIC_PREFIX = "whpk_"
SECRET_BYTES = 32
SECRET_BYTES_MIN, SECRET_BYTES_MAX = 24, 64
TOLERANCE_S = 5 * 60
SIGNATURES_MAX = 10
KEY_FILE = "callbacks.key"
PREVIOUS_KEY_FILE = "callbacks.previous.key"
PUBLIC_KEY_FILE = "callbacks.pub"

_TIMESTAMP = re.compile(r"[1-9][0-9]{0,11}")  # in its one spelling, as it was signed


class NotSigned(Exception):
    """The message is not from whoever has the secret, was changed, or is too old."""


def new_secret() -> str:
    return secret_text(secrets.token_bytes(SECRET_BYTES))


def secret_text(secret: bytes) -> str:
    return SECRET_PREFIX + base64.b64encode(secret).decode()


def secret_bytes(text: str) -> bytes:
    """
    Raises:
        ValueError: it is no secret; the text is not quoted.
    """
    try:
        secret = base64.b64decode(text.removeprefix(SECRET_PREFIX), validate=True)
    except ValueError:
        raise ValueError("a secret is whsec_ and base64") from None
    if not SECRET_BYTES_MIN <= len(secret) <= SECRET_BYTES_MAX:
        raise ValueError(f"a secret has {SECRET_BYTES_MIN} to {SECRET_BYTES_MAX} bytes")
    return secret


def signature(secret: str, message_id: str, timestamp_s: int, body: bytes) -> str:
    """One `v1,…`; a message may carry several, separated by spaces."""
    digest = hmac.digest(secret_bytes(secret), _signed(message_id, timestamp_s, body), hashlib.sha256)
    return f"v1,{base64.b64encode(digest).decode()}"


def headers(message_id: str, timestamp_s: int, signatures: Sequence[str]) -> dict[str, str]:
    return {ID: message_id, TIMESTAMP: str(timestamp_s), SIGNATURE: " ".join(signatures)}


def verify(given: Mapping[str, str], body: bytes, keys: Sequence[str], now: datetime) -> str:
    """What a receiver does: any of the message's signatures fits any of `keys` (`whsec_…`, `whpk_…`).

    Header names are in lower case.

    Returns:
        The message's id, by which a repeat is known.

    Raises:
        NotSigned: none fits, or the timestamp is more than TOLERANCE_S from `now`.
        ValueError: a key is none.
    """
    try:
        message_id, stamp, signed = given[ID], given[TIMESTAMP], given[SIGNATURE]
    except KeyError as error:
        raise NotSigned("a header is missing") from error
    if _TIMESTAMP.fullmatch(stamp) is None or abs(now.timestamp() - int(stamp)) > TOLERANCE_S:
        raise NotSigned("the timestamp is too far from now")
    found = signed.split(" ")[:SIGNATURES_MAX]
    if not any(_fits(key, one, message_id, int(stamp), body) for key in keys for one in found):
        raise NotSigned("no signature fits")
    return message_id


class CallbackSigner:
    """The service's own key, for callbacks of jobs; the one before it signs too for as long as its file is there.

    Attributes:
        public_keys: `whpk_…`, the newest first.
    """

    def __init__(self, private: Sequence[Ed25519PrivateKey]) -> None:
        self._private = private
        self.public_keys = [_public_text(one.public_key()) for one in private]

    def __repr__(self) -> str:
        return f"CallbackSigner({', '.join(self.public_keys)})"

    @classmethod
    def load(cls, keys_dir: Path) -> "CallbackSigner":
        """From files; the first process of all makes them.

        Raises:
            ValueError: a file is there and holds no key.
            OSError: the directory cannot be written.
        """
        if not (keys_dir / KEY_FILE).exists():
            keyfiles.made_once(keys_dir / KEY_FILE, secrets.token_bytes(SECRET_BYTES))
        seeds = [(keys_dir / KEY_FILE).read_bytes()]
        with suppress(FileNotFoundError):
            seeds.append((keys_dir / PREVIOUS_KEY_FILE).read_bytes())
        signer = cls([Ed25519PrivateKey.from_private_bytes(seed) for seed in seeds])
        public = "".join(f"{key}\n" for key in signer.public_keys).encode()
        path = keys_dir / PUBLIC_KEY_FILE
        if not path.exists() or path.read_bytes() != public:
            keyfiles.put(path, public)
        return signer

    def signatures(self, message_id: str, timestamp_s: int, body: bytes) -> list[str]:
        """One `v1a,…` for each key."""
        signed = _signed(message_id, timestamp_s, body)
        return [f"v1a,{base64.b64encode(one.sign(signed)).decode()}" for one in self._private]


def rotate_callback_key(keys_dir: Path) -> None:
    """Make a new key; the one until now signs beside it until the next rotation, the one before that is gone.

    Raises:
        OSError: the directory cannot be written.
    """
    CallbackSigner.load(keys_dir)
    keyfiles.put(keys_dir / PREVIOUS_KEY_FILE, (keys_dir / KEY_FILE).read_bytes())  # First: never in neither file.
    keyfiles.put(keys_dir / KEY_FILE, secrets.token_bytes(SECRET_BYTES))
    CallbackSigner.load(keys_dir)


def _fits(key: str, signed: str, message_id: str, timestamp_s: int, body: bytes) -> bool:
    if not key.startswith(PUBLIC_PREFIX):
        return hmac.compare_digest(signature(key, message_id, timestamp_s, body).encode(), signed.encode())
    version, _, text = signed.partition(",")
    if version != "v1a":
        return False
    try:
        public = Ed25519PublicKey.from_public_bytes(base64.b64decode(key.removeprefix(PUBLIC_PREFIX)))
        public.verify(base64.b64decode(text, validate=True), _signed(message_id, timestamp_s, body))
    except (InvalidSignature, binascii.Error):
        return False
    return True


def _signed(message_id: str, timestamp_s: int, body: bytes) -> bytes:
    return f"{message_id}.{timestamp_s}.".encode() + body


def _public_text(key: Ed25519PublicKey) -> str:
    return PUBLIC_PREFIX + base64.b64encode(key.public_bytes_raw()).decode()
