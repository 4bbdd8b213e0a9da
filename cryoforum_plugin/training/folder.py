"""The folder of a model that is being trained: what may be replaced, and which run a checkpoint belongs to."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from cryoforum_plugin.atomic import atomic_file, check_directory, check_output
from cryoforum_plugin.errors import ModelError, OutputError

CHECKPOINT_FILES = ("identity.json", "last.pt", "metrics.csv", "log.txt")


def check_model_directory(directory: Path, resume: bool, overwrite: bool) -> None:
    """Raise OutputError where a model must not be written: something exists, or is not a model at all."""
    check_output(directory, overwrite or resume)
    if directory.exists():
        if not directory.is_dir():
            raise OutputError(f"{directory} is a file; give a folder for the model")
        foreign = any(directory.iterdir()) and not (
            (directory / "model.pt").exists() or (directory / "checkpoint").is_dir()
        )
        if foreign:
            raise OutputError(f"{directory} holds other files than a model; give a folder of its own")


def start_run(directory: Path, identity: dict[str, Any], resume: bool) -> None:
    """Make checkpoint/ for this run, or check that the one that is there belongs to it.

    An older model in the directory stays usable until this run replaces it at its very end.
    """
    checkpoint = directory / "checkpoint"
    identity_file = checkpoint / "identity.json"
    if resume and identity_file.exists():
        if json.loads(identity_file.read_text()) != identity:
            raise ModelError(
                f"{directory} was started with other particles, map or settings; resume with the same command, "
                "or train again with --overwrite"
            )
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
