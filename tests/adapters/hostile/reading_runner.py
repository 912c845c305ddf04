"""A runner child whose kind does with a model what a hijacked one would: opens files, kills others."""

import errno
import os
import signal
from pathlib import Path

from sightline.workers import kinds, runner
from sightline.workers.kinds import JobInput, JobOutput, KindFailed, Progress


def run(job: JobInput, progress: Progress) -> JobOutput:
    assert job.model is not None
    wanted = Path(job.model.path).read_text()
    try:
        if wanted == "kill":
            os.kill(os.getppid(), signal.SIGCONT)  # harmless, if it is let
        else:
            Path(wanted).read_bytes()
    except OSError as error:
        raise KindFailed("refused", errno.errorcode[error.errno or 0]) from None
    raise KindFailed("let", "read")


if __name__ == "__main__":
    kinds.MODULES["layer-photo-realistic"] = "reading_runner"
    runner.main()
