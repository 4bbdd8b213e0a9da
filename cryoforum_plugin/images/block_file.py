"""A large array on disk that many processes complete together, block by block, each with a checksum."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import shutil
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from cryoforum_plugin.errors import OutputError
from cryoforum_plugin.progress import Advance

LOG = logging.getLogger("cryoforum")
IMAGES, CHECKSUMS = "images.f16", "checksums"
BLOCK_IMAGES, BLOCK_BYTES = 1024, 2**25  # a block is the smaller of the two
RECORD_BYTES = 8
THERE = 1 << 32  # added to a block's CRC-32: a record of 0 stands for a block that is not there
POLL_S = 0.5
PATIENCE_S = 300.0  # after which a block that another process should have made is made here too
Item = TypeVar("Item")
Result = TypeVar("Result")
Make = Callable[[slice], NDArray[np.float16]]
# errors of file systems that cannot reserve space: then a full disk is told of while images are written
_CANNOT_RESERVE = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS, errno.EBADF)


@dataclass(frozen=True)
class BlockFile:
    """Images `shape` = `(count, n, n)` float16 in `folder`: IMAGES, and in CHECKSUMS a record for each block.

    A record is written once its block is on the disk, so that a killed process loses the blocks it was at. A
    process that makes a block holds a lock on its record; others take other blocks. Blocks are the same
    whoever makes them, so without locks there is only work done twice.
    """

    folder: Path
    shape: tuple[int, int, int]

    @property
    def path(self) -> Path:
        """The array's file."""
        return self.folder / IMAGES

    @property
    def size_bytes(self) -> int:
        """Bytes of the whole array."""
        return self.shape[0] * self._image_bytes

    @property
    def _image_bytes(self) -> int:
        return self.shape[1] * self.shape[2] * 2

    def blocks(self) -> list[slice]:
        """Which images each block holds."""
        step = max(1, min(BLOCK_IMAGES, BLOCK_BYTES // self._image_bytes))
        return [slice(i, min(i + step, self.shape[0])) for i in range(0, self.shape[0], step)]

    def complete(self, make: Make, workers: int, advance: Advance) -> int:
        """Check the blocks that are there, make the others in `workers` threads; return how many images that were.

        make : returns the images of a slice. advance : told how many images are done. Nothing is written
        where nothing is missing. Raises OutputError where the folder cannot be written to or is full.
        """
        todo = self._missing(workers, advance)
        if not todo:
            return 0
        images = self._images_in(todo)
        with self._opened() as records:
            limit = time.monotonic() + PATIENCE_S
            while busy := self._round(records, todo, make, workers, advance, time.monotonic() > limit):
                if len(busy) < len(todo):
                    LOG.info("waiting for another process, which makes %d blocks of %s", len(busy), self.path)
                    limit = time.monotonic() + PATIENCE_S
                todo = busy
                time.sleep(POLL_S)
        return images

    def _round(
        self, records: int, todo: list[int], make: Make, workers: int, advance: Advance, force: bool
    ) -> list[int]:
        """Make the blocks `todo`, but for those that other processes are at; return these."""
        busy = []
        done = each(lambda block: self._claim(records, block, make, force), todo, workers)
        for block, made in zip(todo, done, strict=True):
            if made:
                advance(self._images_in([block]), "")
            else:
                busy.append(block)
        return busy

    def _missing(self, workers: int, advance: Advance) -> list[int]:
        """Numbers of the blocks that are not there, or not as they were written."""
        numbers = range(len(self.blocks()))
        try:
            records = np.fromfile(self.folder / CHECKSUMS, "<u8", len(numbers))
        except OSError:  # nothing there yet
            return list(numbers)
        written = np.flatnonzero(records).tolist()  # fewer than there are blocks, where the file was cut
        sound = list(each(lambda block: self._crc(block) == int(records[block]), written, workers))
        right = [block for block, good in zip(written, sound, strict=True) if good]
        advance(self._images_in(right), "")
        if len(right) < len(written):
            LOG.warning("%s: %d of %d blocks are damaged; they are made again",
                        self.path, len(written) - len(right), len(numbers))  # fmt: skip
        return sorted(set(numbers).difference(right))

    def _images_in(self, blocks: list[int]) -> int:
        chosen = [self.blocks()[block] for block in blocks]
        return sum(int(rows.stop) - int(rows.start) for rows in chosen)

    def _crc(self, block: int) -> int:
        """Record of what the file holds of a block; -1 where it cannot be read."""
        images = self.blocks()[block]
        try:
            with open(self.path, "rb") as file:
                file.seek(images.start * self._image_bytes)
                content = file.read((images.stop - images.start) * self._image_bytes)
        except OSError:
            return -1
        return zlib.crc32(content) + THERE

    def _claim(self, records: int, block: int, make: Make, force: bool) -> bool:
        """Make a block unless it is there by now; return False where another process is at it.

        records : file descriptor of CHECKSUMS, open for reading and writing.
        """
        place = block * RECORD_BYTES
        with locked(records, place, RECORD_BYTES) as mine:
            if mine is False and not force:
                return False
            record = int.from_bytes(os.pread(records, RECORD_BYTES, place), "little")
            if record and record == self._crc(block):
                return True
            rows = self.blocks()[block]
            content = np.ascontiguousarray(make(rows), dtype="<f2").data
            try:
                with open(self.path, "r+b") as file:
                    file.seek(rows.start * self._image_bytes)
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
                os.pwrite(records, (zlib.crc32(content) + THERE).to_bytes(RECORD_BYTES, "little"), place)
            except OSError as error:
                raise self._failure(error) from error
            return True

    @contextmanager
    def _opened(self) -> Iterator[int]:
        """Take the whole space, so that a full disk is an error here; yield the descriptor of the records."""
        size = len(self.blocks()) * RECORD_BYTES
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            records = os.open(self.folder / CHECKSUMS, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise self._failure(error) from error
        try:
            with locked(records, size, 1, wait=True) as mine:
                if mine is None:
                    LOG.warning(
                        "%s: no locks on this file system; processes that share it do work twice", self.folder
                    )
                os.ftruncate(records, size)
                self._reserve()
        except OSError as error:
            if not any(os.pread(records, size, 0)):
                self.path.unlink(missing_ok=True)  # gives back what was taken
            os.close(records)
            raise self._failure(error) from error
        try:
            yield records
        finally:
            os.close(records)

    def _reserve(self) -> None:
        file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if os.fstat(file).st_size == self.size_bytes:
                return
            os.ftruncate(file, self.size_bytes)
            if hasattr(os, "posix_fallocate"):  # not on macOS
                os.posix_fallocate(file, 0, self.size_bytes)
        except OSError as error:
            if error.errno not in _CANNOT_RESERVE:
                raise
        finally:
            os.close(file)

    def _failure(self, error: OSError) -> OutputError:
        parent = self.folder
        while not os.path.exists(parent):
            parent = parent.parent
        return OutputError(
            f"cannot keep preprocessed images in {self.folder}: {error.strerror or error}; they need "
            f"{size_text(self.size_bytes)}, {size_text(shutil.disk_usage(parent).free)} are free; choose another "
            "folder with --cache-dir"
        )


@contextmanager
def locked(descriptor: int, start: int, length: int, wait: bool = False) -> Iterator[bool | None]:
    """Lock bytes of an open file against other processes; yield False where one has them, None without locks."""
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB), length, start)
    except (BlockingIOError, PermissionError):  # POSIX allows either
        yield False
        return
    except OSError:
        yield None
        return
    try:
        yield True
    finally:
        fcntl.lockf(descriptor, fcntl.LOCK_UN, length, start)


def each(work: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Iterator[Result]:
    """Results of `work` in the order of `items`, from threads; after an error nothing more is begun."""
    pool = ThreadPoolExecutor(workers)
    try:
        yield from pool.map(work, items)
    finally:
        pool.shutdown(cancel_futures=True)


def size_text(size_bytes: int) -> str:
    """Size in GB, or MB below one."""
    return f"{size_bytes / 1e9:.1f} GB" if size_bytes >= 1e9 else f"{size_bytes / 1e6:.1f} MB"
