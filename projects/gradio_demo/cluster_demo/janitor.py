"""What is left behind goes: files, visitors who never said goodbye, freed memory."""

import ctypes
import gc
import logging
import os
import platform
import threading
import time
from pathlib import Path

from .desk import Desk

__all__ = ['Janitor', 'bound_arenas', 'give_memory_back']

_LOG = logging.getLogger(__name__)
_ARENA_MAX = -8  # malloc.h
_GLIBC = platform.libc_ver()[0] == 'glibc'


def bound_arenas(count: int = 2) -> bool:
    """Keep glibc from giving every thread a heap of its own, which it never hands back.

    Args:
        count (int): Heaps of the process. Defaults to 2.

    Returns:
        bool: Whether it was told and understood.
    """
    return _GLIBC and ctypes.CDLL(None).mallopt(_ARENA_MAX, count) == 1


def give_memory_back() -> None:
    """Free what only cycles hold, and return freed pages to the system."""
    gc.collect()
    if _GLIBC:
        ctypes.CDLL(None).malloc_trim(0)


class Janitor(threading.Thread):
    """Tidies up until the process ends.

    Args:
        desk (Desk): Whose visitors and files these are.
        page (gr.Blocks): What gradio remembers of files is pruned, too.
        keep (float): Seconds after which a visitor of whom nothing was heard is forgotten
            and a file that nobody holds is deleted. Defaults to 1800.
        examples (str): Folder beside the uploads whose files stay. Defaults to 'examples'.
    """

    def __init__(self, desk: Desk, page, keep: float = 1800, examples: str = 'examples'):
        super().__init__(name='janitor', daemon=True)
        self.desk, self.page, self.keep, self.examples = desk, page, keep, examples
        self._worked = None

    def run(self) -> None:
        """Tidy up every now and then."""
        while True:
            time.sleep(min(10, max(1, self.keep / 180)))
            try:
                self.tidy()
            except Exception:  # the next time may go well, and must come
                _LOG.exception('tidying up failed')

    def tidy(self) -> None:
        """Forget idle visitors, delete stale files, hand memory back after work."""
        self.desk.forget_idle(self.keep)
        self._delete_stale(time.time() - self.keep)
        for remembered in list(self.page.temp_file_sets):
            for path in list(remembered):
                if not os.path.lexists(path):
                    remembered.discard(path)
        worked = self.desk.requests
        if worked != self._worked:
            self._worked = worked
            give_memory_back()

    def _delete_stale(self, before: float) -> None:
        """Delete files nobody holds, and folders that are empty."""
        held = self.desk.held()
        for place in self.desk.uploads.iterdir():
            if place.name == self.examples:
                continue
            # Visitors come and go meanwhile: walking passes over folders that vanish.
            inside = () if place.is_symlink() else os.walk(place, topdown=False)
            for folder, folders, files in inside:
                for name in (*files, *folders):
                    self._clear(Path(folder, name), before, held)
            if place != self.desk.folder:
                self._clear(place, before, held)

    @staticmethod
    def _clear(path: Path, before: float, held: set[Path]) -> None:
        try:
            if path.lstat().st_ctime > before or path in held or held & set(path.parents):
                return
            if path.is_dir() and not path.is_symlink():
                path.rmdir()
            else:
                path.unlink()
        except OSError:
            return  # somebody else deleted it, or put something in
