"""Does nothing, for as long as it is told; for benchmarks and for tests of the engine itself."""

import time

from ...domain.kinds import Noop
from . import JobInput, JobOutput, KindFailed, Progress, params_of


def run(job: JobInput, progress: Progress) -> JobOutput:
    """Sleeps `sleep_s`, then fails if it was told to.

    Raises:
        KindFailed: `noop_failed`, retryable.
    """
    params = params_of(job, Noop)
    if params.sleep_s:
        progress(0, "sleeping")
        time.sleep(params.sleep_s)
    if params.fail:
        raise KindFailed("noop_failed", "it was told to fail", retryable=True)
    return JobOutput()
