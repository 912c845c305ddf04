"""The virus scanner: the real one where it is installed, and every odd answer from one that is told what to say."""

import asyncio
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from tests.adapters.clamd_daemon import INFECTED, STREAM_BYTES_MAX, daemon, program, told

from sightline.adapters.clamd import SIGNATURE_CHARS_MAX, Clamd, ScannerUnavailable


@pytest.fixture(scope="module")
def real() -> Iterator[Path]:
    clamd = program()
    if clamd is None:
        pytest.skip("clamd is not installed (Debian: clamav-daemon)")
    with daemon(clamd) as path:
        yield path


def written(directory: Path, content: bytes) -> Path:
    path = directory / "upload"
    path.write_bytes(content)
    return path


async def test_the_real_one_finds_what_it_knows_and_nothing_else(real: Path, tmp_path: Path) -> None:
    clamd = Clamd(real)
    assert await clamd.scan(written(tmp_path, b"harmless")) == ""
    assert await clamd.scan(written(tmp_path, b"")) == ""
    found = await clamd.scan(written(tmp_path, bytes(1_500_000) + INFECTED + bytes(500_000)))
    assert found.startswith("Sightline.Test")


async def test_many_at_once_get_each_their_own_verdict(real: Path, tmp_path: Path) -> None:
    clamd = Clamd(real)
    paths = []
    for number in range(40):
        path = tmp_path / str(number)
        path.write_bytes(INFECTED if number % 3 == 0 else b"harmless")
        paths.append(path)
    found = await asyncio.gather(*map(clamd.scan, paths))
    assert [bool(one) for one in found] == [number % 3 == 0 for number in range(40)]


async def test_more_than_the_real_one_takes_is_no_verdict(real: Path, tmp_path: Path) -> None:
    """It answers before it has everything, and closes."""
    with pytest.raises(ScannerUnavailable, match=r"size limit|no whole line"):
        await Clamd(real).scan(written(tmp_path, bytes(STREAM_BYTES_MAX * 3)))


async def test_the_whole_file_is_sent(tmp_path: Path) -> None:
    content = bytes(range(256)) * 10_000
    seen = []

    def answering(got: bytes) -> bytes:
        seen.append(got)
        return b"stream: OK\0"

    async with told(tmp_path, answering) as path:
        assert await Clamd(path).scan(written(tmp_path, content)) == ""
    assert seen == [content]


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        (b"stream: Eicar-Test-Signature FOUND\0", "Eicar-Test-Signature"),
        (b"stream: a\x1b[31m\nb FOUND\0", "a?[31m?b"),
        (b"stream:  FOUND\0", "unnamed"),
        (b"stream: OK\nstream: FOUND\n\0", "OK?stream:"),
        (b"stream: " + b"x" * 1000 + b" FOUND\0", "x" * SIGNATURE_CHARS_MAX),
        (b"stream: \xff\xfe FOUND\0", "\ufffd\ufffd"),
    ],
)
async def test_what_was_found(tmp_path: Path, answer: bytes, found: str) -> None:
    async with told(tmp_path, lambda _: answer) as path:
        assert await Clamd(path).scan(written(tmp_path, b"x")) == found


@pytest.mark.parametrize(
    "answer",
    [
        None,
        b"",
        b"\0",
        b"stream: OK",  # no end: more was to come
        b"OK\0",
        b"stream: OKAY\0",
        b"stream: ERROR\0",
        b"INSTREAM size limit exceeded. ERROR\0",
        b"Can't allocate memory ERROR\0",
        b"UNKNOWN COMMAND\0",
        b"x" * 100_000 + b"\0",
        bytes(range(1, 256)) + b"\0",
    ],
)
async def test_no_other_answer_is_a_pass(tmp_path: Path, answer: bytes | None) -> None:
    async with told(tmp_path, lambda _: answer) as path:
        with pytest.raises(ScannerUnavailable):
            await Clamd(path).scan(written(tmp_path, b"x"))


async def test_one_that_is_silent_is_not_waited_for(tmp_path: Path) -> None:
    async with AsyncExitStack() as opened:
        silent = asyncio.Event()

        async def say_nothing(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await silent.wait()
            writer.close()

        path = tmp_path / "clamd.socket"
        server = await asyncio.start_unix_server(say_nothing, path)
        opened.callback(server.close)
        opened.callback(silent.set)
        for content in (b"x", bytes(8 << 20)):  # the second one does not even fit into the socket
            with pytest.raises(ScannerUnavailable, match="within"):
                await Clamd(path, timeout_s=0.2).scan(written(tmp_path, content))


async def test_one_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ScannerUnavailable, match="reached"):
        await Clamd(tmp_path / "nothing").scan(written(tmp_path, b"x"))
    (tmp_path / "file").touch()
    with pytest.raises(ScannerUnavailable, match="reached"):
        await Clamd(tmp_path / "file").scan(written(tmp_path, b"x"))


async def test_a_missing_file_is_the_callers_mistake(tmp_path: Path) -> None:
    async with told(tmp_path, lambda _: b"stream: OK\0") as path:
        with pytest.raises(FileNotFoundError):
            await Clamd(path).scan(tmp_path / "absent")
