"""Bytes on their way out: always an attachment, of a type from a fixed list, never sniffed, whole, in blocks."""

from collections.abc import AsyncIterator, Iterable

import structlog
from litestar import Response
from litestar.response import Redirect, Stream

from ..adapters.objects.port import ObjectMissing, ObjectStoreError, attachment
from ..domain.assets import PURPOSES, normal_type
from .services import Services

UNKNOWN_TYPE = "application/octet-stream"
# Nothing that a browser would run: no HTML, no SVG, no PDF. Whatever else is stored, goes out as mere bytes.
SERVED_TYPES = PURPOSES["artifact"].content_types
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    # For whoever opens it all the same: a document without origin, scripts, forms, or anything to load.
    "Content-Security-Policy": "default-src 'none'; base-uri 'none'; frame-ancestors 'none'; sandbox",
    "Accept-Ranges": "none",
}

log = structlog.get_logger(__name__)


async def stream(services: Services, key: str, *, filename: str, content_type: str | None = None) -> Stream:
    """An object as the answer's body.

    Raises:
        ObjectMissing: nothing is there, known before the answer begins.
    """
    headers = await _headers(services, key, filename, content_type)

    async def chunks() -> AsyncIterator[bytes]:
        async with services.objects.open(key) as opened:
            async for chunk in opened:
                yield chunk

    return Stream(chunks(), headers=headers, media_type=headers["Content-Type"])


async def describe(services: Services, key: str, *, filename: str, content_type: str | None = None) -> Response[None]:
    """The head of the same answer.

    Raises:
        ObjectMissing: nothing is there.
    """
    return Response(None, headers=await _headers(services, key, filename, content_type), media_type="text/plain")


async def _headers(services: Services, key: str, filename: str, content_type: str | None) -> dict[str, str]:
    info = await services.objects.stat(key)
    if info is None:
        raise ObjectMissing(key)
    headers = HEADERS | {
        "Content-Type": served_type(content_type or info.content_type),
        "Content-Length": str(info.size_bytes),
        "Content-Disposition": attachment(filename),
    }
    return headers if info.sha256 is None else headers | {"ETag": f'"{info.sha256}"'}


def served_type(content_type: str) -> str:
    """As which of SERVED_TYPES something goes out."""
    named = normal_type(content_type)
    return named if named in SERVED_TYPES else UNKNOWN_TYPE


async def redirect(services: Services, key: str, *, filename: str, content_type: str) -> Redirect:
    """To a signed URL that serves the object for a while."""
    url = await signed_url(services, key, filename=filename, content_type=content_type)
    return Redirect(url, status_code=302, headers={"Cache-Control": "no-store"})


async def signed_url(services: Services, key: str, *, filename: str, content_type: str) -> str:
    return await services.objects.presign_get(
        key,
        filename=filename,
        content_type=served_type(content_type),
        expires_s=services.settings.upload_url_expires_s,
    )


async def discard(services: Services, keys: Iterable[str]) -> None:
    """Remove bytes that nothing names any more. What fails here is left for the janitor: the log is the truth."""
    for key in keys:
        try:
            await services.objects.delete(key)
        except ObjectStoreError as error:
            log.warning("object_not_removed", key=key, error=repr(error))
