"""How often Python looks for garbage in cycles."""

import gc

THRESHOLDS = (10_000, 50, 100)  # allocations; collections of the youngest; of the middle ones


def settle() -> None:
    """Once all is loaded: the collector need not look again at what stays for good, nor after every few requests.

    Looking through the whole application, its OpenAPI document and the cached states again and again took an eighth of
    a busy process's time, and held up every request of that moment.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*THRESHOLDS)
