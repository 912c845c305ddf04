"""Files that hold a key: for their owner alone, whole or not there, and on disk before anybody relies on them."""

import os
import secrets
from pathlib import Path


def made_once(path: Path, content: bytes) -> None:
    """Put `content` at `path` unless a file is there. Processes that start together agree on one.

    Raises:
        OSError: the directory cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    fresh = _fresh(path, content)
    try:
        os.link(fresh, path)  # Fails if another process was first; then its key is ours too.
    except FileExistsError:
        pass
    finally:
        fresh.unlink()
    sync_directory(path.parent)


def put(path: Path, content: bytes) -> None:
    """Put `content` at `path` instead of what is there: at any moment it is the one or the other, whole.

    Raises:
        OSError: the directory cannot be written.
    """
    _fresh(path, content).replace(path)
    sync_directory(path.parent)


def _fresh(path: Path, content: bytes) -> Path:
    fresh = path.with_name(f".{secrets.token_hex(8)}.new")
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return fresh


def sync_directory(path: Path) -> None:
    """Makes names in `path` survive a power cut; syncing the files alone does not."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
