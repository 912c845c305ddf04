"""Bodies, read once and within bounds: JSON straight into its struct, forms and files part by part.

Litestar would decode JSON to dictionaries first and then convert with forgiveness ("4" for 4), and keep every part of
a form in memory.
"""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import parse_qsl

import msgspec
from litestar import Request
from msgspec import Struct
from multipart import (  # type: ignore[import-untyped]  # it ships no types
    MultipartError,
    MultipartSegment,
    ParserLimitReached,
    PushMultipartParser,
)

from ..adapters.event_store.codec import holds_nul
from ..adapters.objects.streams import Intake, write_file
from .problems import FieldsRefused, Malformed, MalformedJson, TooLarge, WrongMediaType

JSON_TYPES = frozenset({"application/json", "text/json"})
MULTIPART = "multipart/form-data"
URLENCODED = "application/x-www-form-urlencoded"
DEPTH_MAX = 32  # of arrays and objects in each other; what decodes it, stores it or shows it again recurses
FIELDS_MAX = 50
FIELD_BYTES_MAX = 64 * 1024
FORM_BYTES_MAX = 1024 * 1024  # of a form without its file


# Possessive, and good for a text that is cut off as well: it is looked at once, whatever it holds.
_STRING = re.compile(rb'"(?:[^"\\]++|\\.|\\\Z)*+(?:"|\Z)', re.DOTALL)
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_ONE_KIND = bytes.maketrans(b"{}", b"[]")


@lru_cache(maxsize=256)
def _decoder(annotation: Any) -> "msgspec.json.Decoder[Any]":
    return msgspec.json.Decoder(annotation)


def decode(body: bytes, annotation: Any) -> Any:
    """A JSON body as what its handler declares, strictly.

    Raises:
        MalformedJson: not UTF-8, NUL in a string, not JSON, or nested too deeply.
        FieldsRefused: JSON, but not this.
    """
    try:
        body.decode()  # msgspec looks only at the strings that it keeps
        if holds_nul(body):
            raise MalformedJson("a string holds a NUL character")
        if is_deeper(body, DEPTH_MAX):
            raise MalformedJson(f"nested deeper than {DEPTH_MAX}, or not JSON")
        return _decoder(annotation).decode(body)
    except UnicodeDecodeError as error:
        raise MalformedJson("the body is not UTF-8") from error
    except RecursionError as error:
        raise MalformedJson("nested too deeply") from error
    except msgspec.ValidationError as error:
        raise FieldsRefused.of(str(error)) from error
    except msgspec.DecodeError as error:
        raise MalformedJson(str(error)) from error


def is_deeper(body: bytes, depth: int) -> bool:
    """Whether arrays and objects in this JSON text lie deeper in each other; also true of brackets without a partner.

    Without recursion, and at the speed of bytes.replace(): each pass takes one level of pairs out.
    """
    if body.count(b"[") + body.count(b"{") <= depth:
        return False
    brackets = _STRING.sub(b"", body).translate(_ONE_KIND, _NO_BRACKETS)
    for _ in range(depth):
        if not brackets:
            return False
        brackets = brackets.replace(b"[]", b"")
    return bool(brackets)


class JsonRequest(Request[Any, Any, Any]):
    """A request whose JSON is decoded into the type of its handler's `data`."""

    async def json(self) -> Any:
        """Raises: WrongMediaType: the body is declared to be something else."""
        named = self.content_type[0].lower()
        if named not in JSON_TYPES and not named.endswith("+json"):
            raise WrongMediaType("this path takes application/json")
        field = self.route_handler.parsed_fn_signature.parameters["data"]
        return decode(await self.body(), field.annotation)


class Upload(Struct, frozen=True):
    """A file as it came in a form.

    Attributes:
        path: where its bytes lie, for as long as the context lasts.
        filename: as it was sent.
        content_type: as it was declared, or "".
    """

    path: Path
    filename: str
    content_type: str
    size_bytes: int
    sha256: str


def announced_bytes(request: Request[Any, Any, Any], size_bytes_max: int) -> int:
    """How much space to keep for a body: what Content-Length says, to which the server holds it, else the most."""
    length = request.headers.get("content-length", "")
    return min(int(length), size_bytes_max) if length.isdecimal() and length.isascii() else size_bytes_max


@asynccontextmanager
async def read_upload(request: Request[Any, Any, Any], field: str, *, size_bytes_max: int) -> AsyncIterator[Upload]:
    """The one file of a multipart form, written to disk as it comes.

    Raises:
        TooLarge: as soon as it is, whatever Content-Length said.
        WrongMediaType, Malformed: not such a form; truncated; without the file, or with two.
    """
    with TemporaryDirectory(prefix="sightline-upload-") as directory:
        parts = _parts(request, bytes_max=size_bytes_max + FORM_BYTES_MAX)
        upload: Upload | None = None
        async for part, chunks in parts:
            if part.filename is None or part.name != field:
                await _text(part, chunks)
                continue
            if upload is not None:
                raise Malformed(f"{field} was sent twice")
            upload = await _write(Path(directory) / "file", part, chunks, size_bytes_max)
        if upload is None:
            raise FieldsRefused.of(f"a file is missing - at `$.{field}`")
        yield upload


async def read_form(request: Request[Any, Any, Any]) -> dict[str, str]:
    """The fields of a form, multipart or URL-encoded; an empty one counts as not sent.

    Raises:
        TooLarge, WrongMediaType, Malformed: as read_upload; also for a field sent twice, or a file.
    """
    if request.content_type[0].lower() == URLENCODED:
        pairs = _urlencoded(await read_bounded(request, FORM_BYTES_MAX))
    else:
        pairs = []
        async for part, chunks in _parts(request, bytes_max=FORM_BYTES_MAX):
            if part.filename is not None:
                raise Malformed(f"{part.name} is a file where a value is expected")
            pairs.append((part.name, await _text(part, chunks)))
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise Malformed("a field was sent twice")
    if any("\0" in name or "\0" in value for name, value in pairs):
        raise Malformed("a field holds a NUL character")
    return {name: value for name, value in fields.items() if value}


async def read_bounded(request: Request[Any, Any, Any], size_bytes_max: int) -> bytes:
    """A body, of a handler that takes more or less than JSON may have.

    Raises:
        TooLarge: as soon as it is, whatever Content-Length said.
    """
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > size_bytes_max:
            raise TooLarge(f"at most {size_bytes_max} bytes")
    return bytes(body)


def _urlencoded(body: bytes) -> list[tuple[str, str]]:
    try:
        return parse_qsl(body.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=FIELDS_MAX)
    except ValueError as error:
        raise Malformed("not a URL-encoded form") from error


async def _parts(
    request: Request[Any, Any, Any], *, bytes_max: int
) -> AsyncIterator[tuple[MultipartSegment, AsyncIterator[bytes]]]:
    """Each part with its chunks, which are to be taken before the next part."""
    named, options = request.content_type
    if named.lower() != MULTIPART:
        raise WrongMediaType(f"this path takes {MULTIPART}")
    events = _events(request, options.get("boundary", ""), bytes_max)
    async for event in events:
        if isinstance(event, MultipartSegment):
            yield event, _chunks(events)


async def _events(request: Request[Any, Any, Any], boundary: str, bytes_max: int) -> AsyncIterator[Any]:
    """What the parser sees: a part's head, its chunks, None at its end; errors in our words."""
    taken = 0
    try:
        with PushMultipartParser(boundary, max_segment_count=FIELDS_MAX, strict=True) as parser:
            async for chunk in request.stream():
                taken += len(chunk)
                if taken > bytes_max:
                    raise TooLarge(f"more than {bytes_max} bytes")
                if chunk and not parser.closed:  # Litestar ends with an empty chunk: to the parser, a cut
                    for event in parser.parse(chunk):
                        yield event
    except ParserLimitReached as error:
        raise TooLarge("a form with too many parts, or too long a header") from error
    except (MultipartError, UnicodeDecodeError) as error:
        raise Malformed(f"not a whole multipart form: {error}") from error


async def _chunks(events: AsyncIterator[Any]) -> AsyncIterator[bytes]:
    async for event in events:
        if event is None:
            return
        yield bytes(event)


async def _text(part: MultipartSegment, chunks: AsyncIterator[bytes]) -> str:
    value = bytearray()
    async for chunk in chunks:
        value += chunk
        if len(value) > FIELD_BYTES_MAX:
            raise TooLarge(f"{part.name} has more than {FIELD_BYTES_MAX} bytes")
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise Malformed(f"{part.name} is not UTF-8") from error


async def _write(path: Path, part: MultipartSegment, chunks: AsyncIterator[bytes], size_bytes_max: int) -> Upload:
    intake = Intake(size_bytes_max)
    size_bytes = await write_file(path, intake.blocks(chunks))
    if not size_bytes:
        await asyncio.to_thread(path.touch)
    return Upload(path, part.filename or "", part.content_type or "", size_bytes, intake.sha256)
