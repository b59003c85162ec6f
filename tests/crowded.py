"""Threads that meet in the middle of what each of them does."""

import gc
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager


@contextmanager
def _hurried():
    """Switch threads as often as can be, inside the interpreter's own code, too.

    A collection calls back into Python, where the interpreter may switch; so it does under
    Hypothesis, and wherever an object has a finalizer.
    """
    interval, thresholds = sys.getswitchinterval(), gc.get_threshold()

    def look(phase: str, info: dict) -> None:
        sum(range(20))

    gc.callbacks.append(look)
    gc.set_threshold(200, 10, 10)
    sys.setswitchinterval(1e-7)
    try:
        yield
    finally:
        sys.setswitchinterval(interval)
        gc.set_threshold(*thresholds)
        gc.callbacks.remove(look)


def run_crowded(call: Callable[[], object], threads: int, times: int) -> list[object]:
    """Call a function from several threads at once.

    Args:
        call (Callable): Without arguments.
        threads (int): How many.
        times (int): Calls in all.

    Returns:
        list: What the calls returned.

    Raises:
        Exception: The first that a call raised.
    """
    with _hurried(), ThreadPoolExecutor(threads) as pool:
        return [future.result() for future in [pool.submit(call) for _ in range(times)]]
