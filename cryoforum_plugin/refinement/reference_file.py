"""References in a model folder, so that predictions can be refined: references.pt."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from cryoforum_plugin.errors import ModelError
from cryoforum_plugin.network.model import write_tensors
from cryoforum_plugin.refinement.reference import ReferenceMap

NAME = "references.pt"


def write_references(directory: Path, references: Mapping[int, ReferenceMap]) -> None:
    """Write references by half set (0 = of both) into a model folder, whole or not at all; no file where there are none."""
    if not references:
        (directory / NAME).unlink(missing_ok=True)
        return
    content = {half: vars(reference) for half, reference in references.items()}
    write_tensors(directory / NAME, {"references": content})


def read_references(directory: Path | None) -> dict[int, ReferenceMap]:
    """References of a model folder by half set; none where there are none. Raises ModelError for a damaged file."""
    if directory is None or not (directory / NAME).is_file():
        return {}
    try:
        content = torch.load(directory / NAME, map_location="cpu", weights_only=True)["references"]
        return {int(half): ReferenceMap(**values) for half, values in content.items()}
    except Exception as error:
        raise ModelError(
            f"{directory / NAME} is damaged ({type(error).__name__}); copy it again, train again, or predict with --no-refine"
        ) from error
