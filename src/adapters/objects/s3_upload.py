"""One upload to S3: in one request if it fits, in parts if not; published by its last request or not at all."""

import asyncio
from collections.abc import Awaitable
from contextlib import suppress
from typing import Any
from uuid import uuid4

from .port import ObjectStoreError
from .s3_errors import in_our_words


class Upload:
    """Begun by `whole`, or by `begin`, `part`…, and then `complete` or `abort`."""

    def __init__(self, client: Any, bucket: str, key: str, content_type: str, *, if_absent: bool) -> None:
        self._client = client  # Any: botocore makes its methods at run time.
        self._target = {"Bucket": bucket, "Key": key}
        self._key = key
        self._content_type = content_type
        self._condition = {"IfNoneMatch": "*"} if if_absent else {}
        self._token = uuid4().hex
        self._upload_id = ""
        self._parts: list[dict[str, object]] = []

    async def whole(self, body: bytes, sha256: str) -> None:
        """Raises ObjectExists and ObjectStoreUnavailable, as does every method here."""
        await self._publish(
            self._client.put_object(
                **self._target,
                **self._condition,
                Body=body,
                ContentType=self._content_type,
                Metadata=self._metadata(sha256),
            )
        )

    async def begin(self, sha256: str | None) -> None:
        """Metadata is sent now or never: of a stream whose digest is not announced, the store will not know it."""
        with in_our_words(self._key):
            answer = await self._client.create_multipart_upload(
                **self._target, ContentType=self._content_type, Metadata=self._metadata(sha256)
            )
        self._upload_id = answer["UploadId"]

    async def part(self, block: bytes) -> None:
        number = len(self._parts) + 1
        with in_our_words(self._key):
            answer = await self._client.upload_part(
                **self._target, UploadId=self._upload_id, PartNumber=number, Body=block
            )
        self._parts.append({"PartNumber": number, "ETag": answer["ETag"]})

    async def complete(self) -> None:
        await self._publish(
            self._client.complete_multipart_upload(
                **self._target, **self._condition, UploadId=self._upload_id, MultipartUpload={"Parts": self._parts}
            )
        )

    async def abort(self) -> None:
        """Frees the parts, even while the caller is being cancelled. If that fails, the sweep finds them."""
        await asyncio.shield(self._abort())

    async def _abort(self) -> None:
        with suppress(ObjectStoreError), in_our_words(self._key):
            await self._client.abort_multipart_upload(**self._target, UploadId=self._upload_id)

    async def _publish(self, request: Awaitable[Any]) -> None:
        """Sends the request that makes the object visible.

        When an answer is lost the client sends the request again, and the service refuses the second one because
        of what the first one wrote: a conflict with ourselves. So a refusal is believed only after a look.
        """
        try:
            with in_our_words(self._key):
                await request
        except ObjectStoreError:
            if not await self._is_ours():
                raise

    async def _is_ours(self) -> bool:
        with suppress(ObjectStoreError), in_our_words(self._key):
            answer = await self._client.head_object(**self._target)
            return bool(answer["Metadata"].get("upload") == self._token)
        return False

    def _metadata(self, sha256: str | None) -> dict[str, str]:
        return {"upload": self._token} | ({"sha256": sha256} if sha256 else {})
