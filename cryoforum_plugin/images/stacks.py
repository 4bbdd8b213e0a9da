"""Particle images: any of many stacks, any order, from any thread, never a whole stack in memory."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from pathlib import Path
from threading import Lock
from typing import Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray

from cryoforum_plugin.atomic import atomic_file
from cryoforum_plugin.errors import ImageStackError
from cryoforum_plugin.images.mrc_header import HEADER_BYTES, StackHeader, pack_header, read_header
from cryoforum_plugin.particles import IntArray, ParticleSet

Images = NDArray[np.float32]


class _OpenFile:
    """A file descriptor that is closed when the last thread has let go of it."""

    def __init__(self, path: Path) -> None:
        self.fd = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if hasattr(self, "fd"):
            os.close(self.fd)

    def fill(self, pixels: NDArray[Any], offset: int) -> bool:
        """Read bytes from `offset` on into contiguous `pixels`; tell whether there were enough."""
        left = pixels.reshape(-1).view(np.uint8).data
        while left:
            got = os.preadv(self.fd, [left], offset)
            if not got:
                return False
            left, offset = left[got:], offset + got
        return True


class StackReader:
    """Reads images of `stacks`, at most `max_open` of them open for it at a time; safe from several threads.

    Images are read, not mapped: neighbours in a stack come with one request, which network storage answers
    best, and a stack that is cut short meanwhile is an error, not the end of the process. Pickles without
    its open files.
    """

    def __init__(self, stacks: Sequence[Path], max_open: int = 64) -> None:
        self.stacks = tuple(Path(stack) for stack in stacks)
        self.max_open = max_open
        self._headers: dict[int, StackHeader] = {}
        self._files: OrderedDict[int, _OpenFile] = OrderedDict()
        self._lock = Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {"stacks": self.stacks, "max_open": self.max_open, "_headers": self._headers}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["stacks"], state["max_open"])  # type: ignore[misc]
        self._headers = state["_headers"]

    def header(self, stack: int) -> StackHeader:
        """Return the checked header of stack number `stack`. Raises ImageStackError as `read_header`."""
        if stack not in self._headers:
            self._headers[stack] = read_header(self.stacks[stack])
        return self._headers[stack]

    def check(self, particles: ParticleSet) -> int:
        """Check every stack the particles use and return their common box size in px.

        Reads headers only. Raises ImageStackError for stacks that are missing (all of them, with the
        number of rows concerned), truncated, not MRC, of unsupported mode, or shorter than the table says,
        for images that are not square, and for mixed box sizes.
        """
        used, rows = np.unique(particles.stack_index, return_counts=True)
        self._check_present(used.tolist(), rows.tolist(), len(particles))
        last = np.zeros(len(self.stacks), dtype=np.int64)
        np.maximum.at(last, particles.stack_index, particles.slice_index)
        boxes: dict[int, list[int]] = {}
        for stack in used.tolist():
            header = self.header(stack)
            if header.height != header.width:
                raise ImageStackError(
                    f"{header.path}: images of {header.height} x {header.width} px are not square; "
                    "extract the particles in square boxes"
                )
            if last[stack] >= header.count:
                raise ImageStackError(
                    f"{header.path}: stack shorter than {particles.source} says: image {last[stack] + 1} "
                    f"is asked for, {header.count} are there; extract again, or remove those rows"
                )
            boxes.setdefault(header.width, []).append(stack)
        if len(boxes) > 1:
            sizes = ", ".join(
                f"{box} px ({self.stacks[stacks[0]].name})" for box, stacks in sorted(boxes.items())
            )
            raise ImageStackError(
                f"{particles.source}: mixed box sizes {sizes}; train and predict them separately"
            )
        return next(iter(boxes))

    def _check_present(self, used: list[int], rows: list[int], total: int) -> None:
        """Raise ImageStackError naming the missing stacks and counting their rows."""
        missing = [
            (stack, n) for stack, n in zip(used, rows, strict=True) if not self.stacks[stack].is_file()
        ]
        if not missing:
            return
        names = ", ".join(f"{self.stacks[stack]} ({n} particles)" for stack, n in missing[:3])
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise ImageStackError(
            f"{sum(n for _, n in missing)} of {total} particles lie in {len(missing)} missing image stacks "
            f"(of {len(used)}): {names}{more}; restore them, remove the particles, or set --data-root"
        )

    def read(self, stack_index: IntArray, slice_index: IntArray) -> Images:
        """Return images `(n, box, box)` float32 in the order asked for, reading each stack once, in order.

        Raises ImageStackError if a stack or a slice is not there, or the box sizes differ.
        """
        stack_index, slice_index = np.asarray(stack_index), np.asarray(slice_index)
        order = np.lexsort((slice_index, stack_index))
        if not order.size:
            raise ValueError("no images asked for")
        first = self.header(int(stack_index[order[0]]))
        images = np.empty((len(order), first.height, first.width), dtype=np.float32)
        # runs of neighbours in one stack
        new_run = (np.diff(stack_index[order]) != 0) | (np.diff(slice_index[order]) != 1)
        for rows in np.split(order, np.flatnonzero(new_run) + 1):
            self._read_run(int(stack_index[rows[0]]), int(slice_index[rows[0]]), rows, images)
        return images

    def _read_run(self, stack: int, first: int, rows: IntArray, images: Images) -> None:
        """Read `len(rows)` images from number `first` on into those `rows` of `images`."""
        header, shape = self.header(stack), images.shape[1:]
        if (header.height, header.width) != shape or first + len(rows) > header.count or first < 0:
            raise ImageStackError(
                f"{self.stacks[stack]}: holds {header.count} images of {header.height} x {header.width} px, but image "
                f"{first + len(rows)} of {shape[0]} x {shape[1]} px is asked for"
            )
        ordered = int(rows[-1] - rows[0]) == len(rows) - 1 and bool((np.diff(rows) == 1).all())
        target = images[rows[0] : rows[0] + len(rows)] if ordered else None
        direct = target is not None and header.dtype == np.float32 and header.dtype.isnative
        pixels = target if direct else np.empty((len(rows), *shape), dtype=header.dtype)
        assert pixels is not None
        offset = header.offset + first * shape[0] * shape[1] * header.dtype.itemsize
        try:
            whole = self._file(stack).fill(pixels, offset)
        except OSError as error:
            raise ImageStackError(f"cannot read {header.path}: {error.strerror}") from error
        if not whole:
            raise ImageStackError(
                f"cannot read {header.path}: it became shorter meanwhile; start again when it is complete"
            )
        if not direct:
            images[rows] = pixels

    def _file(self, stack: int) -> _OpenFile:
        """Return stack number `stack` open for reading, forgetting the longest unused."""
        with self._lock:
            if stack in self._files:
                self._files.move_to_end(stack)
                return self._files[stack]
        opened = _OpenFile(self.stacks[stack])  # network storage may take its time
        with self._lock:
            opened = self._files.setdefault(stack, opened)
            self._files.move_to_end(stack)
            while len(self._files) > self.max_open:
                self._files.popitem(last=False)
        return opened


def write_stack(
    path: Path,
    images: NDArray[Any] | Iterable[NDArray[Any]],
    pixel_size_A: float,
    dtype: Literal["float32", "float16"] = "float32",
    overwrite: bool = False,
) -> int:
    """Write an MRC stack of mode 2 or 12 and return the number of images.

    images : `(n, box, box)`, or an iterable of such batches, which are written as they come.
    The file appears when it is complete. Raises ImageStackError for no images, changing shapes or pixels
    that are not finite in `dtype`, OutputError if `path` exists and `overwrite` is false.
    """
    batches = [images] if isinstance(images, np.ndarray) else images
    with atomic_file(Path(path), overwrite) as temporary, open(temporary, "wb") as file:
        return _write(file, Path(path), batches, pixel_size_A, np.dtype(dtype).newbyteorder("<"))


def _write(
    file: BinaryIO, path: Path, batches: Iterable[NDArray[Any]], pixel_size_A: float, dtype: np.dtype[Any]
) -> int:
    file.write(bytes(HEADER_BYTES))
    count, shape, low, high, total, squares = 0, (0, 0), np.inf, -np.inf, 0.0, 0.0
    for batch in batches:
        with np.errstate(over="ignore"):
            pixels = np.ascontiguousarray(batch, dtype=dtype)
        if pixels.ndim != 3 or (count and pixels.shape[1:] != shape):
            raise ImageStackError(f"{path}: images of shape {pixels.shape} do not fit a stack of {shape}")
        if not len(pixels):
            continue
        values = pixels.astype(np.float64)
        if not np.isfinite(values).all():
            raise ImageStackError(f"{path}: pixels that are not finite as {dtype.name}; normalise the images")
        file.write(pixels.tobytes())
        count, shape = count + len(pixels), pixels.shape[1:]
        low, high = min(low, float(values.min())), max(high, float(values.max()))
        total, squares = total + float(values.sum()), squares + float(np.square(values).sum())
    if not count:
        raise ImageStackError(f"{path}: no images to write")
    size = count * shape[0] * shape[1]
    mean = total / size
    rms = max(squares / size - mean**2, 0.0) ** 0.5
    file.seek(0)
    file.write(pack_header(count, *shape, pixel_size_A, dtype, (low, high, mean, rms)))
    return count
