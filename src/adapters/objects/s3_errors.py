"""What an S3 service says, in the port's words."""

from collections.abc import Iterator
from contextlib import contextmanager

import aiohttp
from botocore.exceptions import BotoCoreError, ClientError  # type: ignore[import-untyped]  # ships no types

from .port import ObjectExists, ObjectMismatch, ObjectMissing, ObjectStoreError, ObjectStoreUnavailable, ObjectTooLarge

# Anything else, refused credentials and a missing bucket included, is a store that cannot be used. So is a 409
# (AWS: another write of this key is in flight): nothing was decided, and trying again will tell.
_ERRORS: dict[str, type[ObjectStoreError]] = {
    "404": ObjectMissing,  # A HEAD has no body to name a code in.
    "NoSuchKey": ObjectMissing,
    "PreconditionFailed": ObjectExists,
    "EntityTooLarge": ObjectTooLarge,
    "BadDigest": ObjectMismatch,
}


@contextmanager
def in_our_words(key: str) -> Iterator[None]:
    """Around a call of the service, and nothing else: what a caller's stream raises is not ours to rename."""
    try:
        yield
    except ClientError as error:
        raise _ERRORS.get(code_of(error), ObjectStoreUnavailable)(f"{key}: {error}") from error
    except (BotoCoreError, aiohttp.ClientError, OSError) as error:
        raise ObjectStoreUnavailable(f"{key}: {error}") from error


def code_of(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))
