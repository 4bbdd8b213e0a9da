"""Which file it was: the checksum that identities and provenance are made of."""

from __future__ import annotations

import hashlib
from pathlib import Path

from cryoforum_plugin.errors import CryoForumError


def checksum(path: Path) -> str:
    """SHA-256 of a file as hex. Raises CryoForumError when it cannot be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CryoForumError(
            f"cannot read {path}: {error.strerror}; check the name and the current folder"
        ) from error
