"""Image stacks of a project whose folder is not on this machine: downloaded once, then read from here."""

from __future__ import annotations

import logging
import os
import re
import shutil
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from cryoforum_plugin.atomic import atomic_file
from cryoforum_plugin.checksum import checksum
from cryoforum_plugin.errors import HostError, ImageStackError
from cryoforum_plugin.images.mrc_header import StackHeader, read_header
from cryoforum_plugin.progress import progress
from cryosparc_job.cs_file import read_records, stacks_of
from cryosparc_job.job.calls import call
from cryosparc_job.job.client import PIECE_BYTES, answer, http_of

LOG = logging.getLogger("cryoforum")
DOWNLOAD = "projects.download_file"  # the operation's name in cryoSPARC's own description of its interface
Download = Callable[[str, Path], Any]


@dataclass(frozen=True)
class Stack:
    """An image stack as a particle table knows it.

    name : path in the project folder. count : so many images it holds at least. shape : height and width in px, ()
    where the table does not say.
    """

    name: str
    count: int
    shape: tuple[int, ...]


def data_root(client: Any, project_uid: str, folder: Path, table: Path, cache: Path) -> Path:
    """Return the folder that blob/path of `table` (.cs) starts from: the project's `folder`, else `cache`.

    Stacks that cannot be read in `folder` on this machine (not mounted, a link that leads nowhere here, not
    readable for this user) are downloaded to `cache`; the others are linked there. A second call for the same
    table downloads what is missing. Raises HostError for a stack that cryoSPARC does not have or that cannot
    be downloaded, and for a disk too small.
    """
    stacks = named_stacks(table)
    absent = [stack for stack in stacks if not _readable(folder / stack.name)]
    if not absent:
        return folder
    for stack in stacks:
        _check_name(stack.name, folder)
    _forget_others(cache, table)
    for name in {stack.name for stack in stacks} - {stack.name for stack in absent}:
        _link(cache / name, (folder / name).absolute())
    wanted = [stack for stack in absent if _fitting(cache / stack.name, stack) is None]
    LOG.warning(
        "%d of %d image stacks are not in the folder of %s, %s, on this machine; %d to download to %s",
        len(absent), len(stacks), project_uid, folder, len(wanted), cache,
    )  # fmt: skip
    if wanted:
        _fetch_all(wanted, cache, _downloader(client, project_uid))
    return cache


def _forget_others(cache: Path, table: Path) -> None:
    """Empty `cache` if it was filled for another table: a job that ran again keeps the names of its stacks."""
    mark, wanted = cache / "particles.sha256", checksum(table)
    if cache.exists() and (not mark.exists() or mark.read_text() != wanted):
        shutil.rmtree(cache)
    with atomic_file(mark, overwrite=True) as temporary:
        temporary.write_text(wanted)


def named_stacks(table: Path) -> list[Stack]:
    """Return the stacks that a .cs file names, in its order. Raises ParticleFileError as `read_records`."""
    records, _ = read_records(table)
    names, number = stacks_of(records)
    count = np.zeros(len(names), dtype=np.int64)
    np.maximum.at(count, number, records["blob/idx"].astype(np.int64) + 1)
    shapes: list[tuple[int, ...]] = [()] * len(names)
    if "blob/shape" in (records.dtype.names or ()):
        shape = np.zeros((len(names), 2), dtype=np.int64)
        shape[number] = records["blob/shape"]
        shapes = [(height, width) for height, width in shape.tolist()]
    return [Stack(*found) for found in zip(names, count.tolist(), shapes, strict=True)]


def _readable(path: Path) -> bool:
    return os.path.isfile(path) and os.access(path, os.R_OK)


def _check_name(name: str, folder: Path) -> None:
    """Raise HostError unless a path is one inside the project folder."""
    path = PurePosixPath(name)
    if not path.name or path.is_absolute() or ".." in path.parts:
        raise HostError(
            f"image stack {name!r} is not in the project folder, so it cannot be downloaded; run cryoforum where "
            f"it and {folder} can be read"
        )


def _link(place: Path, original: Path) -> None:
    """Let `place` be a symbolic link to `original`."""
    if place.is_symlink() and place.readlink() == original:
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    place.unlink(missing_ok=True)
    place.symlink_to(original)


def _fitting(path: Path, stack: Stack) -> StackHeader | None:
    """Return the header of a file that is whole and can be this stack, None for any other."""
    try:
        header = read_header(path)
    except ImageStackError:
        return None
    fits = header.count >= stack.count and stack.shape in ((), (header.height, header.width))
    return header if fits else None


def _fetch_all(stacks: list[Stack], cache: Path, download: Download) -> None:
    """Download stacks one after the other, as long as there is room for the rest."""
    images_left, image_bytes = sum(stack.count for stack in stacks), 0
    with progress("downloading stacks", len(stacks)) as advance:
        for stack in stacks:
            _check_room(cache, images_left * image_bytes)
            header = _fetch(stack.name, cache / stack.name, download)
            image_bytes = header.height * header.width * header.dtype.itemsize
            images_left -= stack.count
            advance(1, "")


def _check_room(cache: Path, needed: int) -> None:
    """Raise HostError if less than `needed` bytes are free."""
    if needed and (free := shutil.disk_usage(cache).free) < needed:
        raise HostError(
            f"{cache}: the image stacks still to come need at least {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are "
            "free; make room and run again, what has been downloaded is kept"
        )


def _fetch(name: str, target: Path, download: Download) -> StackHeader:
    """Download one stack, a second time where it comes incomplete; return its header."""
    for last in (False, True):
        try:
            return _fetch_once(name, target, download)
        except ImageStackError as error:
            if last:
                raise HostError(f"downloaded {error}") from error
            LOG.warning("downloaded %s; trying again", error)
    raise AssertionError("unreachable")


def _fetch_once(name: str, target: Path, download: Download) -> StackHeader:
    """Download one stack; `target` appears when it is whole. Raises ImageStackError if it is not."""
    with atomic_file(target, overwrite=True) as temporary:
        try:
            call(f"downloading {name}", download, name, temporary)
            return read_header(temporary)
        except ImageStackError as error:
            raise ImageStackError(str(error).replace(str(temporary), name)) from error
        except HostError as error:
            if answer(error.__cause__)[0] != 404:
                raise
            raise HostError(
                f"cryoSPARC has no image stack {name}; restore it, or remove its particles"
            ) from error


def _downloader(client: Any, project_uid: str) -> Download:
    """Return the function `(path in the project, local file)` that downloads with little memory.

    cryosparc-tools 4 does so itself; 5 reads a whole file into memory, so its HTTP client is asked directly.
    """
    http = http_of(client)
    route = None if http is None else call("asking for the way to its files", _route, http, project_uid)
    if route is None:
        return partial(client.download_file, project_uid)
    return partial(_stream, http, *route)


def _route(http: Any, project_uid: str) -> tuple[str, str] | None:
    """Return method and address of a project's files, None if this cryoSPARC describes no such operation."""
    response = http.get("/openapi.json")
    _raise_error(response)
    for path, methods in response.json()["paths"].items():
        for method, described in methods.items():
            if described.get("summary") == DOWNLOAD:
                return method, re.sub(r"\{[^}]*\}", urllib.parse.quote(project_uid), path)
    return None


def _stream(http: Any, method: str, address: str, path: str, target: Path) -> None:
    """Write a file of the project to `target` piece by piece."""
    with http.stream(method, address, params={"path": path}) as response, open(target, "wb") as file:
        _raise_error(response)
        for piece in response.iter_bytes(PIECE_BYTES):
            file.write(piece)


def _raise_error(response: Any) -> None:
    """Raise the client's own error, which holds the server's words, for any answer but success."""
    if not response.is_success:
        from cryosparc.errors import APIError

        response.read()
        raise APIError("received error response", res=response)
