"""Valkey for hints, limits, fan-out and caches. Nothing in it is truth: it keeps no file, and starts empty."""

import os
import signal
import socket
from typing import ClassVar
from urllib.parse import quote

from . import binaries
from .part import STOP_TIMEOUT_S, Part
from .processes import spawn, terminate

PING_TIMEOUT_S = 1.0
GRACE_S_MAX = 0.5  # It has nothing to write: killing it loses no more than ending it.

CONFIGURATION: dict[str, str] = {
    "port": "0",  # No TCP: the socket's directory is the access control.
    "unixsocketperm": "700",
    "save": "",  # Hints are made again from PostgreSQL within a second; a snapshot would only bring back stale ones.
    "appendonly": "no",
    "maxmemory": "256mb",
    "maxmemory-policy": "noeviction",  # Full means an error, so limits fail closed; eviction would drop a counter.
    "databases": "16",
    "timeout": "0",  # Waiting clients are idle for long, and are ours.
    "tcp-keepalive": "0",
    "daemonize": "no",
    "loglevel": "notice",
}


class ValkeyServer(Part):
    """Valkey 9 on a unix socket under `data_dir/valkey`."""

    name: ClassVar[str] = "valkey"
    socket_name: ClassVar[str] = "valkey.sock"

    @property
    def url(self) -> str:
        """For `redis.asyncio.from_url`."""
        return f"unix://{quote(str(self.run_dir / self.socket_name))}?db=0"

    def launch(self) -> None:
        self.make_run_dir(os.geteuid(), os.getegid())
        options = {"dir": str(self.home), "unixsocket": str(self.run_dir / self.socket_name), **CONFIGURATION}
        flags = [word for key, value in options.items() for word in (f"--{key}", value)]
        # Killed at once when its owner dies: there is nothing to save.
        self._process = spawn(
            [binaries.valkey_server_path(), *flags],
            env={"PATH": os.defpath, "LC_ALL": "C"},
            cwd=self.home,
            log_path=self.log_path,
            death_signal=signal.SIGKILL,
        )

    def is_ready(self) -> bool:
        return self.poll() is None and self.is_reachable()

    def is_reachable(self) -> bool:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(PING_TIMEOUT_S)
            try:
                connection.connect(str(self.run_dir / self.socket_name))
                connection.sendall(b"PING\r\n")
                return connection.recv(16).startswith(b"+PONG")
            except OSError:
                return False

    def stop(self, *, timeout_s: float = STOP_TIMEOUT_S) -> None:
        if self._process:
            terminate(self._process, grace_s=min(timeout_s, GRACE_S_MAX))
            self._process = None
        if self.owned:
            self.remove_run_dir()
            self.release()
