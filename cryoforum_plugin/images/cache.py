"""Preprocessed working images on disk: made once, and used again as long as nothing they depend on has changed."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cryoforum_plugin.errors import ImageStackError
from cryoforum_plugin.images.block_file import CHECKSUMS, IMAGES, BlockFile, locked, size_text
from cryoforum_plugin.images.pipeline import ImagePipeline
from cryoforum_plugin.particles import FloatArray, IntArray
from cryoforum_plugin.progress import Advance

LOG = logging.getLogger("cryoforum")
FORMAT = 1  # of the preprocessing: raise it when the same inputs give other pixels, or another diameter
DIAMETER = "diameter.json"
FILES = (IMAGES, CHECKSUMS, DIAMETER)
_READERS = 8  # threads that read ahead of a GPU
_LIMIT = torch.finfo(torch.float16).max


def cached_images(
    pipeline: ImagePipeline, rows: IntArray, shift_A: FloatArray | None, folder: Path, advance: Advance
) -> Tensor:
    """Working images `(len(rows), n, n)` float16 of `rows`: on the device if they fit, else memory-mapped.

    They are kept in a folder of `folder` named by what they depend on, and only those that are not there yet are
    made. shift_A : `(n, 2)` of every particle, to recentre by, or None. Raises OutputError where they cannot be
    kept, ImageStackError for unusable images.
    """
    n = pipeline.box.size_px
    file = BlockFile(folder / content_key(pipeline, rows, shift_A), (len(rows), n, n))
    fits = (
        file.size_bytes <= _free_bytes(pipeline.device) // 4
    )  # now: the cache's own pages are not free later

    def make(part: slice) -> NDArray[np.float16]:
        torch.set_num_threads(1)  # of this thread: the images, not their pixels, are shared among the cores
        images = np.empty((part.stop - part.start, n, n), np.float16)
        done = 0
        for of_batch in pipeline.batches(rows[part]):
            moved = None if shift_A is None else shift_A[of_batch]
            found = pipeline.working(of_batch, moved, pipeline.read_usable(of_batch))
            images[done : done + len(of_batch)] = found.clamp(-_LIMIT, _LIMIT).half().cpu().numpy()
            done += len(of_batch)
        return images

    cores = torch.get_num_threads()
    try:
        made = file.complete(make, cores if pipeline.device.type == "cpu" else _READERS, advance)
    finally:
        torch.set_num_threads(cores)
    LOG.info("%d preprocessed images, %s, %d of them made now: %s",
             len(rows), size_text(file.size_bytes), made, file.folder)  # fmt: skip
    mapped = torch.from_numpy(
        np.memmap(file.path, np.float16, "c", shape=file.shape)
    )  # "c": never written back
    return torch.empty_like(mapped, device=pipeline.device).copy_(mapped) if fits else mapped


def content_key(
    pipeline: ImagePipeline, rows: IntArray, shift_A: FloatArray | None, *others: NDArray[Any] | str
) -> str:
    """Name for all that the working images of `rows` depend on: settings, table, and the stacks as they are now.

    Of a stack that is its path, size and time of the last change. others : what more a result depends on. Raises
    ImageStackError for a stack that is gone.
    """
    particles = pipeline.particles
    used, stack = np.unique(particles.stack_index[rows], return_inverse=True)
    parts: list[Any] = [
        FORMAT,
        pipeline.box_px,
        float(pipeline.box.side_A),
        pipeline.box.size_px,
        pipeline.ctf_mode,
    ]
    parts += [_state(particles.stacks[index]) for index in used]
    parts += [stack.reshape(-1), particles.slice_index[rows], particles.pixel_size_A[rows]]
    parts += [particles.contrast_sign[rows] * pipeline.contrast, *others]
    if particles.ctf is not None and pipeline.ctf_mode not in ("keep", "none"):
        parts += vars(particles.ctf[rows]).values()
    if shift_A is not None:
        parts.append(shift_A[rows])
    digest = hashlib.blake2b(digest_size=12)
    for part in parts:
        as_bytes = part.astype("<f8").tobytes() if isinstance(part, np.ndarray) else repr(part).encode()
        digest.update(len(as_bytes).to_bytes(8, "little") + as_bytes)
    return digest.hexdigest()


def _state(stack: Path) -> tuple[str, int, int]:
    try:
        state = stack.stat()
    except OSError as error:
        raise ImageStackError(f"cannot read {stack}: {error.strerror}") from error
    return os.path.abspath(stack), state.st_size, state.st_mtime_ns


def remembered_diameter_A(folder: Path, key: str, measure: Callable[[], float | None]) -> float | None:
    """Diameter in Å found by `measure` once and for all that `key` stands for; None if it cannot be told.

    Measured again it could differ in its last digits, and then the images are cut and named otherwise.
    """
    file = folder / key / DIAMETER
    with suppress(OSError, ValueError):
        return _parsed(file.read_text())
    measured = measure()
    with suppress(OSError):  # a folder that cannot be written to is told of by the images, which need more
        file.parent.mkdir(parents=True, exist_ok=True)
        with open(file, "a+") as opened, locked(opened.fileno(), 0, 1, wait=True):
            opened.seek(0)
            try:
                return _parsed(opened.read())  # another process was faster
            except ValueError:
                opened.truncate(0)
                opened.write(json.dumps(measured) + "\n")
                opened.flush()
    return measured


def _parsed(text: str) -> float | None:
    if not text.endswith("\n"):
        raise ValueError("not whole")
    value = json.loads(text)
    return None if value is None else float(value)


def is_cache(folder: Path) -> bool:
    """Whether `folder` holds caches and nothing else."""
    return folder.is_dir() and len(cached(folder)) == len(list(folder.iterdir()))


def cached(folder: Path) -> list[Path]:
    """The caches in `folder`."""
    entries = [entry for entry in folder.glob("*") if entry.is_dir() and not entry.is_symlink()]
    return [entry for entry in entries if {file.name for file in entry.iterdir()} <= {*FILES}]


def remove_cache(folder: Path, but: Collection[Path] = ()) -> None:
    """Remove the caches in `folder`, except `but`, and `folder` itself if nothing is left in it."""
    for entry in cached(folder):
        if entry not in but:
            shutil.rmtree(entry, ignore_errors=True)
    with suppress(OSError):
        folder.rmdir()


def _free_bytes(device: torch.device) -> int:
    """Memory that is free on a CUDA device, or for the CPU."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):  # macOS
        return 8 * 2**30
