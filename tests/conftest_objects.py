"""A real S3 for the tests: OpenStack Swift with its s3api, four processes on loopback, gone with the test run.

Swift checks signatures, bound headers and checksums, which an emulation of S3 in the test's own process would not.
"""

import os
import pwd
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from msgspec import Struct

START_TIMEOUT_S = 120.0
STARTS_MAX = 3  # A free port may be taken by another process between being chosen and being used.
STORAGE_SERVERS = ("account", "container", "object")

# Runs in the child. The rings say which server holds what: one device, one replica of everything.
BUILD_RINGS = """
import sys
from swift.common.ring import RingBuilder
directory, *ports = sys.argv[1:]
for name, port in zip(("account", "container", "object"), map(int, ports), strict=True):
    ring = RingBuilder(part_power=4, replicas=1, min_part_hours=0)
    ring.add_dev({"region": 1, "zone": 1, "ip": "127.0.0.1", "port": port, "device": "disk", "weight": 1.0,
                  "replication_ip": "127.0.0.1", "replication_port": port})
    ring.rebalance()
    ring.get_ring().save(f"{directory}/{name}.ring.gz")
"""

# Runs in each child. The parent may have died before the signal was asked for: hence the look at its id.
SERVE = """
import ctypes, os, signal, sys
parent, server, conf = sys.argv[1:]
ctypes.CDLL(None).prctl(1, signal.SIGKILL)
if os.getppid() != int(parent):
    sys.exit("the test run is gone")
from swift.common.wsgi import run_wsgi
sys.exit(run_wsgi(conf, server))
"""

SWIFT_CONF = """
[swift-hash]
swift_hash_path_suffix = tests
[storage-policy:0]
name = one
default = yes
"""

SERVER_CONF = """
[DEFAULT]
swift_dir = {directory}
devices = {directory}/devices
mount_check = false
bind_ip = 127.0.0.1
bind_port = {port}
workers = 0
user = {user}
"""

STORAGE_CONF = """
[pipeline:main]
pipeline = {name}-server
[app:{name}-server]
use = egg:swift#{name}
"""

# tempauth keeps its tokens in memcached, which nothing here needs: an S3 signature is checked against the conf itself.
PROXY_CONF = """
[pipeline:main]
pipeline = catch_errors gatekeeper listing_formats s3api tempauth slo proxy-server
[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
[filter:catch_errors]
use = egg:swift#catch_errors
[filter:gatekeeper]
use = egg:swift#gatekeeper
[filter:listing_formats]
use = egg:swift#listing_formats
[filter:s3api]
use = egg:swift#s3api
location = us-east-1
[filter:tempauth]
use = egg:swift#tempauth
user_test_tester = testing .admin
[filter:slo]
use = egg:swift#slo
"""


class SwiftS3(Struct, frozen=True, kw_only=True):
    """How to reach the S3 of this test run."""

    endpoint_url: str
    access_key_id: str = "test:tester"
    secret_access_key: str = "testing"
    region: str = "us-east-1"


@pytest.fixture(scope="session")
def swift_s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SwiftS3]:
    with _directory_with_xattrs(tmp_path_factory.getbasetemp()) as home:
        for start in range(STARTS_MAX):
            swift = _Swift(Path(home) / str(start))
            try:
                if swift.listens():
                    yield SwiftS3(endpoint_url=f"http://127.0.0.1:{swift.ports[0]}")
                    return
                logs = swift.last_words()
            finally:
                swift.stop()
    pytest.fail(f"Swift did not start in {STARTS_MAX} attempts; the last one said:\n{logs}")


class _Swift:
    """Four processes: the proxy, which is the S3 door, and behind it one server each for accounts, buckets, objects."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.ports = _free_ports(1 + len(STORAGE_SERVERS))
        (directory / "devices" / "disk").mkdir(parents=True)
        rings = [sys.executable, "-c", BUILD_RINGS, str(directory), *map(str, self.ports[1:])]
        subprocess.run(rings, check=True, timeout=START_TIMEOUT_S)
        (directory / "swift.conf").write_text(SWIFT_CONF)
        self._processes = [
            self._serve("proxy", self.ports[0], PROXY_CONF),
            *(
                self._serve(name, port, STORAGE_CONF.format(name=name))
                for name, port in zip(STORAGE_SERVERS, self.ports[1:], strict=True)
            ),
        ]

    def _serve(self, name: str, port: int, conf: str) -> subprocess.Popen[bytes]:
        user = pwd.getpwuid(os.geteuid()).pw_name
        path = self._directory / f"{name}.conf"
        path.write_text(SERVER_CONF.format(directory=self._directory, port=port, user=user) + conf)
        command = [sys.executable, "-c", SERVE, str(os.getpid()), f"{name}-server", str(path)]
        with path.with_suffix(".log").open("wb") as log:
            return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)

    def listens(self) -> bool:
        """Waits until every port answers; False as soon as one of the processes has ended instead."""
        deadline_s = time.monotonic() + START_TIMEOUT_S
        waiting = list(self.ports)
        while waiting and time.monotonic() < deadline_s:
            if any(process.poll() is not None for process in self._processes):
                return False
            try:
                socket.create_connection(("127.0.0.1", waiting[0]), timeout=1).close()
                waiting.pop(0)
            except OSError:
                time.sleep(0.02)
        return not waiting

    def last_words(self) -> str:
        return "\n".join(f"{log.name}: {log.read_text()[-1000:]}" for log in sorted(self._directory.glob("*.log")))

    def stop(self) -> None:
        """Kills: nothing that they hold is wanted any more."""
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.wait()


def _directory_with_xattrs(first: Path) -> "TemporaryDirectory[str]":
    """Swift keeps an object's description in user extended attributes, which some file systems do not have."""
    refusals = []
    for parent in (first, Path("/var/tmp"), Path("/dev/shm")):
        try:
            home = TemporaryDirectory(prefix="sightline-swift-", dir=parent, ignore_cleanup_errors=True)
        except OSError as error:
            refusals.append(str(error))
            continue
        try:
            os.setxattr(home.name, "user.swift.metadata", b"x" * 2048)
        except OSError as error:
            refusals.append(str(error))
            home.cleanup()
        else:
            return home
    pytest.fail(f"Swift needs a directory with user extended attributes; point --basetemp at one: {refusals}")


def _free_ports(count: int) -> list[int]:
    """Ports free at this moment, all held until the last is chosen so that they differ."""
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
