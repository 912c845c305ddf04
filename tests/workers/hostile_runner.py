"""A runner child whose table of kinds has one more, which misbehaves as it is told. Started by `test_runner.py`."""

import ctypes
import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from sightline.workers import kinds, runner
from sightline.workers.kinds import JobInput, JobOutput, KindFailed, OutputFile, Progress


def run(job: JobInput, progress: Progress) -> JobOutput:
    match job.params["do"]:
        case "print":
            _print()
        case "progress":
            progress(0, "begun")
            progress(50, "half")
            progress(1000, "over" * 200)
        case "write":
            Path(job.output_dir, "a.txt").write_text("hello")
            return JobOutput([OutputFile("a.txt", "text/plain")], {"n": 1}, {"write_ms": 1.5})
        case "escape":
            return JobOutput([OutputFile("../a.txt", "text/plain")])
        case "claim":
            return JobOutput([OutputFile("absent.txt", "text/plain")])
        case "abort":
            os.abort()
        case "exit":
            os._exit(3)
        case "garbage":
            for fd in range(3, 20):
                with suppress(OSError):
                    os.write(fd, b"\xff" * 100)
        case "memory":
            import numpy as np

            np.empty(4 << 30, np.uint8)  # never touched, so that it costs nothing where it is allowed
        case "sleep":
            time.sleep(60)
        case "bug":
            raise ValueError("secret detail")
        case "fail":
            raise KindFailed("too_blue", "the picture is too blue")
        case "socket":
            socket.socket()
        case "program":
            subprocess.run(["/bin/true"], check=True)
        case "look":
            return JobOutput(manifest=_seen())
    return JobOutput()


def run_many(jobs: Sequence[JobInput], progress: Progress) -> list[JobOutput | KindFailed]:
    """Each tells how many there were; `fail` alone fails; `bug`, `abort` and `sleep` are everybody's."""
    if any(job.params["do"] == "sleep" for job in jobs):
        time.sleep(60)
    if any(job.params["do"] == "bug" for job in jobs):
        raise ValueError("secret detail")
    if any(job.params["do"] == "abort" for job in jobs):
        os.abort()
    done = JobOutput(manifest={"together": len(jobs)})
    return [KindFailed("too_blue", "the picture is too blue") if job.params["do"] == "fail" else done for job in jobs]


def _print() -> None:
    print("stray " * 1000, flush=True)
    os.write(1, b"\xff" * 5000)
    ctypes.CDLL(None).puts(b"from C")
    print(sys.stdin.read())


def _seen() -> dict[str, object]:
    descriptors = Path("/proc/self/fd")
    return {
        "cwd": [one.name for one in Path().iterdir()],
        "environ": dict(os.environ),
        "limits": Path("/proc/self/limits").read_text(),
        "fds": [str(one.readlink()) for one in descriptors.iterdir() if one.exists()],
        "modules": sorted(sys.modules),
    }


if __name__ == "__main__":
    kinds.MODULES["hostile"] = "hostile_runner"
    runner.main()
