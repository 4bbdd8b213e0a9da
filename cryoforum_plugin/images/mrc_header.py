"""The 1024-byte MRC header: what is needed to find an image in a stack, and to write one.

The voxel size of the header is ignored everywhere: hosts leave 0 or 1 there, their tables are right.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import DTypeLike

from cryoforum_plugin.errors import ImageStackError

HEADER_BYTES = 1024
_TYPES = {0: "i1", 1: "i2", 2: "f4", 6: "u2", 12: "f2"}
_OTHER_MODES = {3: "complex 16-bit", 4: "complex 32-bit", 101: "packed 4-bit"}
_MAX_BOX = 1 << 17


@dataclass(frozen=True)
class StackHeader:
    """Where the images of a stack lie: `count` images of `height` x `width`, from byte `offset` on."""

    path: Path
    count: int
    height: int
    width: int
    mode: int
    offset: int
    dtype: np.dtype[np.generic]

    @property
    def expected_bytes(self) -> int:
        """Length of the whole file according to the header."""
        return self.offset + self.count * self.height * self.width * self.dtype.itemsize


def read_header(path: Path) -> StackHeader:
    """Read and check the header of a stack or single image, of either byte order.

    Raises ImageStackError if the file cannot be read, is not MRC, is truncated or of an unsupported mode.
    """
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            data = file.read(HEADER_BYTES)
    except OSError as error:
        raise ImageStackError(f"cannot read {path}: {error.strerror or error}") from error
    if len(data) < HEADER_BYTES:
        raise ImageStackError(f"{path}: not an MRC file ({size} bytes, the header alone has {HEADER_BYTES})")
    orders = "><" if data[212] == 0x11 else "<>"
    order = next((order for order in orders if _plausible(data, order, size)), None)
    if order is None:
        raise ImageStackError(f"{path}: not an MRC file (no plausible header); check the image name")
    width, height, count, mode = struct.unpack_from(f"{order}4i", data, 0)
    if mode not in _TYPES:
        raise ImageStackError(
            f"{path}: unsupported MRC mode {mode} ({_OTHER_MODES[mode]}); supported are 0, 1, 2, 6 and 12, "
            "convert the stack"
        )
    (extended,) = struct.unpack_from(f"{order}i", data, 92)
    dtype = np.dtype(order + _TYPES[mode])
    header = StackHeader(path, count, height, width, mode, HEADER_BYTES + extended, dtype)
    if size < header.expected_bytes:
        raise ImageStackError(
            f"{path}: truncated: the header says {count} images of {height} x {width} px in mode {mode}, "
            f"so {header.expected_bytes} bytes are expected, but the file has {size}; copy it again"
        )
    return header


def _plausible(data: bytes, order: str, size: int) -> bool:
    """Tell whether sizes and mode make sense in byte order `order`."""
    width, height, count, mode = struct.unpack_from(f"{order}4i", data, 0)
    (extended,) = struct.unpack_from(f"{order}i", data, 92)
    sizes = 0 < width <= _MAX_BOX and 0 < height <= _MAX_BOX and count > 0
    return sizes and (mode in _TYPES or mode in _OTHER_MODES) and 0 <= extended <= size


def pack_header(
    count: int, height: int, width: int, pixel_size_A: float, dtype: DTypeLike, statistics: tuple[float, ...]
) -> bytes:
    """Return a little-endian MRC2014 header of an image stack; `statistics` is min, max, mean, rms."""
    mode = {"f4": 2, "f2": 12}[np.dtype(dtype).str[1:]]
    header = bytearray(HEADER_BYTES)
    struct.pack_into("<10i", header, 0, width, height, count, mode, 0, 0, 0, width, height, 1)
    cell = (width * pixel_size_A, height * pixel_size_A, pixel_size_A, 90.0, 90.0, 90.0)
    struct.pack_into("<6f", header, 40, *cell)
    struct.pack_into("<3i", header, 64, 1, 2, 3)
    struct.pack_into("<3f", header, 76, *statistics[:3])
    struct.pack_into("<2i", header, 88, 0, 0)  # image stack, no extended header
    struct.pack_into("<i", header, 108, 20141)
    header[208:216] = b"MAP \x44\x44\x00\x00"
    struct.pack_into("<f", header, 216, statistics[3])
    return bytes(header)
