"""Frames, and what a confined child may not do. Its life and death are in `workers/test_runner.py`."""

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from sightline.adapters.child import (
    FRAME_BYTES_MAX,
    SAID_CHARS_MAX,
    SAID_LINES_MAX,
    BrokenFrame,
    Child,
    ChildDied,
    Frames,
    framed,
)


@given(st.lists(st.binary(max_size=300), max_size=20), st.integers(1, 50))
def test_frames_arrive_whole_however_the_bytes_are_cut(payloads: list[bytes], step: int) -> None:
    stream = b"".join(map(framed, payloads))
    frames = Frames()
    found = [frame for at in range(0, len(stream), step) for frame in frames.feed(stream[at : at + step])]
    assert found == payloads


def test_a_length_that_nobody_would_write_is_refused_before_it_is_waited_for() -> None:
    with pytest.raises(BrokenFrame):
        Frames().feed(b"\xff\xff\xff\xff")
    with pytest.raises(BrokenFrame):
        framed(bytes(FRAME_BYTES_MAX + 1))


async def test_a_program_that_is_no_child_is_not_waited_for() -> None:
    child = Child("this", memory_bytes_max=0)  # prints a poem instead of frames
    with pytest.raises(ChildDied):
        await child.start()
    assert child.pid is None


async def test_killing_what_never_started_or_is_gone_says_nothing() -> None:
    child = Child("sightline.adapters.image_decoder", memory_bytes_max=0)
    await child.kill()
    child.interrupt()
    await child.start()
    await child.kill()
    await child.kill()
    assert child.pid is None


async def test_a_cancelled_start_leaves_no_process() -> None:
    child = Child("sightline.adapters.image_decoder", memory_bytes_max=0)
    task = asyncio.create_task(child.start())
    async with asyncio.timeout(60):
        while child.pid is None:  # noqa: ASYNC110  nobody tells when the process is there, but not yet ready
            await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert child.pid is None


TALKATIVE = """
from sightline.adapters.confinement import enter
channel = enter()
for question in channel:
    print("stray\\nlevel=error \\x1b[31mred", flush=True)
    for _ in range(500):
        print("x" * 5000)
    channel.send(b"done")
"""


async def test_what_a_child_prints_is_a_few_short_entries_of_the_log(tmp_path: Path) -> None:
    (tmp_path / "talkative.py").write_text(TALKATIVE)
    child = Child("talkative", memory_bytes_max=0, environ={"PYTHONPATH": str(tmp_path)})
    with capture_logs() as logged:
        await child.start()
        child.send([b"x"])
        assert await child.receive() == b"done"
        async with asyncio.timeout(60):
            while len(logged) < SAID_LINES_MAX:  # noqa: ASYNC110  it is read beside the answers
                await asyncio.sleep(0.001)
        child.send([b"x"])
        assert await child.receive() == b"done"  # nobody waits for it to be read
        await child.kill()
    assert [entry["said"] for entry in logged[:2]] == ["stray", "level=error \x1b[31mred"]
    assert len(logged) == SAID_LINES_MAX
    assert max(len(entry["said"]) for entry in logged) == SAID_CHARS_MAX


CONFINED = """
import errno, os, socket, threading
from sightline.adapters.confinement import refuse_sockets_and_programs

def refused(call):
    try:
        call()
    except OSError as error:
        return error.errno == errno.EPERM
    return False

calls = [socket.socket, lambda: socket.socket(socket.AF_UNIX), lambda: os.execv("/bin/true", ["true"])]
assert not refused(calls[0])  # the control
assert refuse_sockets_and_programs()
assert all(map(refused, calls))
found = []
thread = threading.Thread(target=lambda: found.extend(map(refused, calls)))
thread.start()
thread.join()
assert found == [True, True, True]
open("/dev/null").close()
"""


def test_sockets_and_programs_are_refused_in_every_thread_and_files_are_not() -> None:
    subprocess.run([sys.executable, "-P", "-c", CONFINED], check=True)
