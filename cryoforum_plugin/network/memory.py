"""Memory of a device: work in smaller parts where it does not hold the whole, and large blocks used again."""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch

from cryoforum_plugin.errors import DeviceError

LOG = logging.getLogger("cryoforum")
Result = TypeVar("Result")
# of malloc.h: the free memory at the heap's end that is given back, and how many blocks have pages of their own
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_WORDS = ("can't allocate memory", "cuda error: out of memory", "alloc_failed")


def out_of_memory(error: BaseException) -> bool:
    """Tell whether Python, a GPU, one of its libraries or torch's CPU allocator ran out of memory."""
    text = str(error).lower()
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(word in text for word in _WORDS)


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Let this process use freed memory of large blocks again, rather than ask the system for zeroed pages each time.

    Training a large network on a CPU spends a sixth of its time on that otherwise. Does nothing but with the GNU C library.
    """
    try:
        library = ctypes.CDLL(None)
        mallopt, trim = library.mallopt, library.malloc_trim
    except (AttributeError, OSError, TypeError):
        yield
        return
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, -1)  # never
    try:
        yield
    finally:  # as malloc begins
        mallopt(_M_MMAP_MAX, 65536)
        mallopt(_M_TRIM_THRESHOLD, 128 * 1024)
        trim(0)


class InParts:
    """Does work on `count` items at once, or where the memory is too small in ever smaller parts from then on.

    what : the items, for the message.
    """

    def __init__(self, what: str) -> None:
        self.what = what
        self.most: int | None = None

    def __call__(self, work: Callable[[slice], Result], count: int) -> list[Result]:
        """Results of `work(items)` for consecutive slices that cover `count` items.

        Raises DeviceError when not even a single one fits.
        """
        found: list[Result] = []
        done = 0
        while done < count:
            size = min(self.most or count, count - done)
            result = self._tried(work, slice(done, done + size))
            if result is None:
                self._halve(size)
            else:
                found.append(result)
                done += size
        return found

    def _tried(self, work: Callable[[slice], Result], items: slice) -> Result | None:
        try:
            return work(items)
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
        return None  # only here: the error's traceback keeps tensors in memory

    def _halve(self, size: int) -> None:
        if size == 1:
            raise DeviceError(
                f"out of memory even with one at a time of the {self.what}; end other programs on this device, or "
                "choose another with --device"
            )
        self.most = size // 2
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        LOG.warning("out of memory with %d %s at a time: going on with %d", size, self.what, self.most)
