"""What a confined process may still open. The same through a real child: `hostile/test_models.py`."""

import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from sightline.adapters import landlock

pytestmark = pytest.mark.skipif(landlock.version() == 0, reason="this kernel has no Landlock")

CONFINED = """
import errno, os, sys, threading
from pathlib import Path
from sightline.adapters import landlock

readable, writable, outside = map(Path, sys.argv[1:])

def refused(call):
    try:
        call()
    except OSError as error:
        return error.errno in {errno.EACCES, errno.EXDEV}  # the latter for links and moves across
    return False

def write(path):
    return lambda: path.write_bytes(b"x")

opened = (outside / "file").open("rb")
assert not any(map(refused, [(outside / "file").read_bytes, write(outside / "new"), lambda: os.listdir("/etc")]))
assert landlock.allow_only(readable=[str(readable), "/no/such/place", ""], writable=[str(writable)])

outside_calls = [
    (outside / "file").read_bytes,
    (readable / "link").read_bytes,
    (readable / os.path.relpath(outside, readable) / "file").read_bytes,
    write(outside / "new"),
    write(outside / "other"),
    write(readable / "new"),
    (readable / "file").unlink,
    lambda: os.listdir("/etc"),
    lambda: os.link(outside / "file", writable / "linked"),
    lambda: (writable / "a").rename(outside / "a"),
    lambda: open("/etc/passwd"),
    lambda: open(f"/proc/{os.getppid()}/environ"),
    lambda: open(f"/proc/{os.getppid()}/mem", "rb"),
]
let = [number for number, call in enumerate(outside_calls) if not refused(call)]
assert let == [], let
found = []
thread = threading.Thread(target=lambda: found.append(refused((outside / "file").read_bytes)))
thread.start()
thread.join()
assert found == [True]

assert opened.read() == b"outside"  # what was open stays open
assert (readable / "file").read_bytes() == b"inside"
(writable / "a").write_bytes(b"x")
(writable / "a").rename(writable / "b")
(writable / "b").unlink()
(writable / "c").mkdir()
(writable / "c").rmdir()
open("/dev/null", "w").write("x")
import decimal, sqlite3  # libraries are found
"""


def test_only_what_is_named_can_be_opened(tmp_path: Path) -> None:
    with TemporaryDirectory(dir="/var/tmp") as elsewhere:
        outside = Path(elsewhere)
        (outside / "file").write_bytes(b"outside")
        readable, writable = tmp_path / "readable", tmp_path / "writable"
        readable.mkdir()
        writable.mkdir()
        (readable / "file").write_bytes(b"inside")
        (readable / "link").symlink_to(outside / "file")
        (writable / "a").write_bytes(b"x")
        subprocess.run([sys.executable, "-P", "-c", CONFINED, readable, writable, outside], check=True)


CPU = """
import resource, time
from sightline.adapters.confinement import CpuTime
cpu = CpuTime()
cpu.allow(0)
soft, _ = resource.getrlimit(resource.RLIMIT_CPU)
assert 1 <= soft <= 3, soft
cpu.allow(3600)
assert resource.getrlimit(resource.RLIMIT_CPU)[0] >= 3600
cpu.allow(0)
while True:
    pass
"""


def test_a_process_that_nobody_stops_stops() -> None:
    done = subprocess.run([sys.executable, "-P", "-c", CPU], check=False, timeout=120, stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (-24, b"")  # SIGXCPU
