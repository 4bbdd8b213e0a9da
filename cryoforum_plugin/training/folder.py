"""The folder of a model that is being trained: what may be replaced, and which run a checkpoint and a cache belong to."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from cryoforum_plugin.atomic import atomic_file, check_directory, check_output
from cryoforum_plugin.errors import CryoForumError, ModelError, OutputError
from cryoforum_plugin.images.cache import cached, is_cache, remove_cache

CACHE = "cache"  # preprocessed images, until the model is finished
CHECKPOINT_FILES = ("identity.json", "last.pt", "metrics.csv", "log.txt")


def check_model_directory(directory: Path, resume: bool, overwrite: bool) -> None:
    """Raise OutputError where a model must not be written: something exists, or is not a model at all.

    What a run left that was killed while it read its images may be there.
    """
    only_cache = _only_cache(directory)
    check_output(directory, overwrite or resume or only_cache)
    if directory.exists():
        if not directory.is_dir():
            raise OutputError(f"{directory} is a file; give a folder for the model")
        foreign = any(directory.iterdir()) and not (
            only_cache or (directory / "model.pt").exists() or (directory / "checkpoint").is_dir()
        )
        if foreign:
            raise OutputError(f"{directory} holds other files than a model; give a folder of its own")


def _only_cache(folder: Path) -> bool:
    """Whether nothing but preprocessed images lies in the folder of a model, or of its members."""
    entries = list(folder.iterdir()) if folder.is_dir() else []
    return bool(entries) and all(
        is_cache(entry) if entry.name == CACHE else _only_cache(entry) for entry in entries
    )


@contextmanager
def undone_if_refused(cache: Path) -> Iterator[None]:
    """Where the block refuses its input (a CryoForumError), remove what it put into `cache`, and folders made for it.

    Any other end, a kill included, leaves all to the next run.
    """
    missing = [folder for folder in (cache, *cache.parents) if not folder.exists()]
    before = cached(cache)
    try:
        yield
    except CryoForumError:
        remove_cache(cache, but=before)
        with suppress(OSError):
            for folder in missing[1:]:
                folder.rmdir()
        raise


def check_resumed(directory: Path, identity: dict[str, Any]) -> None:
    """Raise ModelError where the checkpoint in `directory`, if there is one, belongs to another run."""
    identity_file = directory / "checkpoint" / "identity.json"
    if not identity_file.exists():
        return
    begun = json.loads(identity_file.read_text())
    if begun != identity:
        if begun | {"batch_size": identity["batch_size"]} == identity:
            raise ModelError(
                f"{directory} was started with a batch size of {begun['batch_size']}, which is {identity['batch_size']} "
                "with as many devices as now (rounded up, so that they share it evenly); resume with the number of "
                "devices as it was, or train again with --overwrite"
            )
        raise ModelError(
            f"{directory} was started with other particles, map or settings; resume with the same command, "
            "or train again with --overwrite"
        )


def start_run(directory: Path, identity: dict[str, Any], resume: bool) -> None:
    """Make checkpoint/ for this run, or check that the one that is there belongs to it.

    An older model in the directory stays usable until this run replaces it at its very end.
    """
    checkpoint = directory / "checkpoint"
    identity_file = checkpoint / "identity.json"
    if resume and identity_file.exists():
        check_resumed(directory, identity)
        return
    if resume and (directory / "model.pt").exists():
        raise ModelError(
            f"{directory} holds a finished model and no checkpoint; train again with --overwrite"
        )
    check_directory(checkpoint, CHECKPOINT_FILES, overwrite=True)
    if checkpoint.exists():
        shutil.rmtree(checkpoint)
    with atomic_file(identity_file) as temporary:
        temporary.write_text(json.dumps(identity, indent=2))
