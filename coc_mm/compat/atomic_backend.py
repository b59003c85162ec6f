"""mmengine's local files, written atomically."""

import os

from mmengine.fileio import LocalBackend, register_backend

from coc_mm.utils.atomic_io import atomic_write

_ZIP_MAGIC = b'PK\x03\x04'  # of files of torch.save, which are worth waiting for the disk


class AtomicLocalBackend(LocalBackend):
    """mmengine's ``LocalBackend``, whose :meth:`put` is atomic."""

    def put(self, obj: bytes, filepath: str | os.PathLike) -> None:
        """Write a file."""
        content = bytes(obj)
        with atomic_write(filepath, sync=content.startswith(_ZIP_MAGIC)) as temporary:
            temporary.write_bytes(content)


def use_atomic_saving() -> None:
    """Let mmengine write local files atomically, for the process."""
    register_backend('local', AtomicLocalBackend, force=True, prefixes='')
