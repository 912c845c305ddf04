"""How a worker bears with what fails: each subject rests for longer after each try, and the others go on meanwhile."""

import time
from collections import OrderedDict
from collections.abc import Sequence
from uuid import UUID

RESTING_MAX = 10_000  # that are remembered; whoever failed longest ago is forgotten first, and tried as if anew


class Patience:
    """What failed, how often, and until when it is left alone. Of one process: after a restart all of it is tried.

    Args:
        pauses_s: seconds of rest after the first try, the second, and so on; the last one stays.
    """

    def __init__(self, pauses_s: Sequence[float]) -> None:
        self._pauses_s = pauses_s
        self._failed: OrderedDict[UUID, tuple[int, float]] = OrderedDict()  # tries, and when it may be tried again

    def failed(self, subject: UUID) -> int:
        """It failed just now; how often it has."""
        tries = self._failed.pop(subject, (0, 0.0))[0] + 1
        pause_s = self._pauses_s[min(tries, len(self._pauses_s)) - 1]
        self._failed[subject] = tries, time.monotonic() + pause_s
        if len(self._failed) > RESTING_MAX:
            self._failed.popitem(last=False)
        return tries

    def forget(self, subject: UUID) -> None:
        """It went well, or is over."""
        self._failed.pop(subject, None)

    def resting(self) -> list[UUID]:
        """Those that are not to be tried now."""
        moment = time.monotonic()
        return [subject for subject, (_, until) in self._failed.items() if until > moment]
