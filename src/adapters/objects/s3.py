"""The object store in production: any service that speaks S3, through aioboto3, addressed by path."""

import asyncio
import base64
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import aioboto3  # type: ignore[import-untyped]  # ships no types
from botocore.config import Config  # type: ignore[import-untyped]  # ships no types
from botocore.exceptions import ClientError  # type: ignore[import-untyped]  # ships no types

from .port import (
    PAGE_LENGTH_MAX,
    ObjectEntry,
    ObjectExists,
    ObjectInfo,
    ObjectMissing,
    ObjectStore,
    SignedRequest,
    attachment,
    checked_content_type,
    checked_expiry_s,
    checked_key,
    checked_prefix,
    checked_span,
)
from .s3_errors import code_of, in_our_words
from .s3_upload import Upload
from .streams import BLOCK_BYTES, Intake, file_chunks, file_sha256, in_thread, write_file

PART_BYTES = 8 * 1024 * 1024  # S3 wants at least 5 MiB in every part but the last.
PARTS_MAX = 1000  # AWS takes 10,000, Swift 1,000; a larger bound on the object makes larger parts.
CONNECT_TIMEOUT_S = 3
READ_TIMEOUT_S = 30
ATTEMPTS_MAX = 3
CONNECTIONS_MAX = 32
DELETES_AT_ONCE_MAX = 8


class S3Store(ObjectStore):
    """One bucket, made on first use. Holds one client, made by `connect`, until `close`."""

    def __init__(self, client: Any, held: AsyncExitStack, *, bucket: str, region: str) -> None:
        self._client = client  # Any: botocore makes its methods at run time.
        self._held = held
        self._bucket = bucket
        self._region = region
        self._bucket_found = False

    @classmethod
    async def connect(
        cls, *, endpoint_url: str, region: str, bucket: str, access_key_id: str = "", secret_access_key: str = ""
    ) -> "S3Store":
        """Makes the client; nothing is sent yet. Empty credentials mean the usual chain (role, profile, files)."""
        config = Config(
            signature_version="s3v4",  # Unsaid, presigned URLs fall back to version 2, which binds no size.
            s3={"addressing_style": "path"},
            connect_timeout=CONNECT_TIMEOUT_S,
            read_timeout=READ_TIMEOUT_S,
            retries={"mode": "standard", "total_max_attempts": ATTEMPTS_MAX},
            max_pool_connections=CONNECTIONS_MAX,
            # The default sends and asks for checksums in ways that stores other than AWS may not understand.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        )
        held = AsyncExitStack()
        client = await held.enter_async_context(
            aioboto3.Session().client(
                "s3",
                endpoint_url=endpoint_url,
                region_name=region,
                aws_access_key_id=access_key_id or None,
                aws_secret_access_key=secret_access_key or None,
                config=config,
            )
        )
        return cls(client, held, bucket=bucket, region=region)

    async def put(
        self,
        key: str,
        chunks: AsyncIterable[bytes],
        *,
        content_type: str,
        size_bytes_max: int,
        if_absent: bool = True,
        size_bytes: int | None = None,
        sha256: str | None = None,
    ) -> ObjectInfo:
        checked_key(key)
        checked_content_type(content_type)
        await self._ensure_bucket()
        if if_absent and await self.stat(key) is not None:
            raise ObjectExists(key)  # Known before the body is read; the service decides at the end.
        intake = Intake(size_bytes_max)
        part_bytes = max(PART_BYTES, -(-size_bytes_max // PARTS_MAX))
        upload = Upload(self._client, self._bucket, key, content_type, if_absent=if_absent)
        async with aclosing(intake.blocks(chunks, part_bytes)) as blocks:
            block = await anext(blocks, b"")
            if len(block) < part_bytes:
                info = intake.finish(key, content_type, size_bytes=size_bytes, sha256=sha256)
                await upload.whole(block, intake.sha256)
                return info
            await upload.begin(sha256)
            try:
                while block:
                    await upload.part(block)
                    block = await anext(blocks, b"")
                info = intake.finish(key, content_type, size_bytes=size_bytes, sha256=sha256)
                await upload.complete()
            except BaseException:
                await upload.abort()
                raise
        return info

    async def put_file(self, key: str, path: Path, *, content_type: str, if_absent: bool = True) -> ObjectInfo:
        size_bytes = (await in_thread(path.stat)).st_size
        sha256 = await in_thread(file_sha256, path)  # Read twice, so that `stat` knows the digest of a large file too.
        async with aclosing(file_chunks(path)) as chunks:
            return await self.put(
                key,
                chunks,
                content_type=content_type,
                size_bytes_max=size_bytes,
                if_absent=if_absent,
                size_bytes=size_bytes,
                sha256=sha256,
            )

    @asynccontextmanager
    async def open(
        self, key: str, *, offset_bytes: int = 0, length_bytes: int | None = None
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        checked_key(key)
        checked_span(offset_bytes, length_bytes)
        last = "" if length_bytes is None else str(offset_bytes + length_bytes - 1)
        span = {"Range": f"bytes={offset_bytes}-{last}"} if offset_bytes or last else {}
        async with AsyncExitStack() as held:
            body = None
            with in_our_words(key):
                try:
                    answer = await self._client.get_object(Bucket=self._bucket, Key=key, **span)
                    body = answer["Body"]
                    await held.enter_async_context(
                        body
                    )  # Its own value would be aiohttp's answer, which cannot read by size.
                except ClientError as error:
                    if code_of(error) != "InvalidRange":
                        raise
            yield await held.enter_async_context(aclosing(_read(key, body)))

    async def download(self, key: str, path: Path) -> int:
        async with self.open(key) as chunks:
            return await write_file(path, chunks)

    async def stat(self, key: str) -> ObjectInfo | None:
        checked_key(key)
        try:
            with in_our_words(key):
                head = await self._client.head_object(Bucket=self._bucket, Key=key)
        except ObjectMissing:
            return None
        return ObjectInfo(
            key=key,
            size_bytes=head["ContentLength"],
            sha256=head["Metadata"].get("sha256"),
            content_type=head["ContentType"],
        )

    async def delete(self, key: str) -> None:
        checked_key(key)
        await self._ensure_bucket()
        with in_our_words(key):
            await self._client.delete_object(Bucket=self._bucket, Key=key)

    async def delete_prefix(self, prefix: str) -> None:
        if not checked_prefix(prefix):
            raise ValueError("an empty prefix would delete the whole store")
        free = asyncio.Semaphore(DELETES_AT_ONCE_MAX)

        # One by one: the batch call wants a checksum, and services disagree about which.
        async def delete(key: str) -> None:
            async with free:
                await self.delete(key)

        after = ""
        while page := await self.list_page(prefix, after=after):
            await asyncio.gather(*(delete(entry.key) for entry in page))
            after = page[-1].key

    async def list_page(
        self, prefix: str = "", *, after: str = "", limit: int = PAGE_LENGTH_MAX
    ) -> Sequence[ObjectEntry]:
        checked_prefix(prefix)
        await self._ensure_bucket()
        with in_our_words(prefix):
            page = await self._client.list_objects_v2(
                Bucket=self._bucket, Prefix=prefix, StartAfter=after, MaxKeys=max(1, min(limit, PAGE_LENGTH_MAX))
            )
        return [
            ObjectEntry(key=item["Key"], size_bytes=item["Size"], modified_at=item["LastModified"])
            for item in page.get("Contents", [])
        ]

    async def presign_put(
        self, key: str, *, content_type: str, size_bytes: int, expires_s: int, sha256: str | None = None
    ) -> SignedRequest:
        parameters: dict[str, Any] = {
            "Bucket": self._bucket,
            "Key": checked_key(key),
            "ContentType": checked_content_type(content_type),
            "ContentLength": size_bytes,
            "IfNoneMatch": "*",
        }
        headers = {"Content-Length": str(size_bytes), "Content-Type": content_type, "If-None-Match": "*"}
        if sha256 is not None:
            checksum = base64.b64encode(bytes.fromhex(sha256)).decode()
            parameters |= {"ChecksumSHA256": checksum, "Metadata": {"sha256": sha256}}
            headers |= {"x-amz-checksum-sha256": checksum, "x-amz-meta-sha256": sha256}
        await self._ensure_bucket()
        url = await self._presigned("put_object", parameters, expires_s)
        return SignedRequest(method="PUT", url=url, headers=headers)

    async def presign_get(self, key: str, *, filename: str, content_type: str | None = None, expires_s: int) -> str:
        parameters = {
            "Bucket": self._bucket,
            "Key": checked_key(key),
            "ResponseContentDisposition": attachment(filename),
        }
        if content_type is not None:
            parameters["ResponseContentType"] = checked_content_type(content_type)
        return await self._presigned("get_object", parameters, expires_s)

    async def sweep_unfinished(self, before: datetime) -> int:
        await self._ensure_bucket()
        swept = 0
        page: dict[str, Any] = {}
        while page.get("IsTruncated", True):
            marker = {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page["NextUploadIdMarker"]} if page else {}
            with in_our_words("unfinished uploads"):
                page = await self._client.list_multipart_uploads(Bucket=self._bucket, **marker)
                for upload in page.get("Uploads", []):
                    if upload["Initiated"] < before:
                        await self._client.abort_multipart_upload(
                            Bucket=self._bucket, Key=upload["Key"], UploadId=upload["UploadId"]
                        )
                        swept += 1
        return swept

    async def ready(self) -> None:
        self._bucket_found = False
        await self._ensure_bucket()

    async def close(self) -> None:
        await self._held.aclose()

    async def _presigned(self, operation: str, parameters: dict[str, Any], expires_s: int) -> str:
        with in_our_words(parameters["Key"]):
            return str(
                await self._client.generate_presigned_url(
                    operation, Params=parameters, ExpiresIn=checked_expiry_s(expires_s)
                )
            )

    async def _ensure_bucket(self) -> None:
        """Looks once for the bucket and makes it if there is none."""
        if self._bucket_found:
            return
        try:
            with in_our_words(self._bucket):
                await self._client.head_bucket(Bucket=self._bucket)
        except ObjectMissing:
            await self._create_bucket()
        self._bucket_found = True

    async def _create_bucket(self) -> None:
        # AWS refuses the name of its first region here, and wants every other one.
        elsewhere = self._region not in {"", "us-east-1"}
        place = {"CreateBucketConfiguration": {"LocationConstraint": self._region}} if elsewhere else {}
        with in_our_words(self._bucket):
            try:
                await self._client.create_bucket(Bucket=self._bucket, **place)
            except ClientError as error:
                if code_of(error) != "BucketAlreadyOwnedByYou":  # Another process of ours was first.
                    raise


async def _read(key: str, body: Any) -> AsyncGenerator[bytes, None]:
    """Chunks as they come off the wire. Any: the body is a proxy that botocore makes."""
    while body is not None:
        with in_our_words(key):
            chunk = await body.read(BLOCK_BYTES)
        if not chunk:
            return
        yield chunk
