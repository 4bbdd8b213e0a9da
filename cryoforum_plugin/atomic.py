"""Outputs that appear whole or not at all: written beside their place, then renamed."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from cryoforum_plugin.errors import OutputError

_listeners: list[Callable[[Path], None]] = []


def announce(listener: Callable[[Path], None]) -> None:
    """Have `listener` called with every temporary file and folder of this process, which a SIGKILL would leave behind."""
    _listeners.append(listener)


def _tell(temporary: Path) -> None:
    for listener in _listeners:
        listener(temporary)


def check_output(path: Path, overwrite: bool) -> None:
    """Raise OutputError if `path` exists (unless `overwrite`) or its folder cannot be written to."""
    if path.exists() and not overwrite:
        raise OutputError(f"{path} exists already; choose another output or pass --overwrite")
    parent = path.parent
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise OutputError(f"cannot write {path}: the folder {parent} is not writable")


def check_directory(path: Path, owned: Collection[str], overwrite: bool) -> None:
    """Raise OutputError if folder `path` must not be written or replaced.

    Only a folder that holds nothing but `owned` names, an earlier output of the same command, may be
    replaced: `--overwrite` never deletes other files.
    """
    check_output(path, overwrite)
    if not path.exists():
        return
    if not path.is_dir() or path.is_symlink():
        raise OutputError(f"{path} is not a folder; choose another output")
    foreign = sorted(entry.name for entry in path.iterdir() if entry.name not in owned)
    if foreign:
        raise OutputError(
            f"{path} also holds {foreign[0]}, which --overwrite would delete; choose another output"
        )


def check_file(path: Path, overwrite: bool) -> None:
    """Raise OutputError as `check_output` does, or if a folder is in the way of file `path`."""
    check_output(path, overwrite)
    if path.is_dir():
        raise OutputError(f"{path} is a folder; choose another output")


@contextmanager
def atomic_file(path: Path, overwrite: bool = False, sync: bool = True) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it into place when the block ends well.

    sync : wait until it is on the disk. Raises OutputError if `path` exists and `overwrite` is false, or if writing fails (disk full,
    permissions); in every failure the old file is left as it was and the temporary file is removed.
    """
    check_file(path, overwrite)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}.", suffix=path.suffix)
        os.close(handle)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
    temporary = Path(name)
    _tell(temporary)
    try:
        yield temporary
        if sync:
            with open(temporary, "rb") as written:
                os.fsync(written.fileno())
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(path)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_directory(path: Path, owned: Collection[str], overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; rename it into place when the block ends well.

    With `overwrite` an existing folder is replaced, if it holds nothing but files named in `owned`.
    Raises OutputError as `atomic_file` does; a failure leaves the old folder where it was.
    """
    check_directory(path, owned, overwrite)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
    _tell(temporary)
    try:
        yield temporary
        temporary.chmod(0o755)
        if path.exists():
            old = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.old."))
            path.replace(old / path.name)
            try:
                temporary.replace(path)
            except OSError:
                (old / path.name).replace(path)
                raise
            finally:
                shutil.rmtree(old, ignore_errors=True)
        else:
            temporary.replace(path)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
