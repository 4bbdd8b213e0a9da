"""A map that a user gives: for simulated training images to show, or to refine predicted poses against."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cryoforum_plugin.checksum import checksum
from cryoforum_plugin.errors import ImageStackError
from cryoforum_plugin.maps.rebuilt import Reference, estimate_diameter_A
from cryoforum_plugin.maps.volume import low_pass, read_map, solvent_level

LOG = logging.getLogger("cryoforum")
SIMULATED_IMAGES = "simulated images"
OUTLINE_A = 15.0  # resolution at which a map's outline is looked for
OFF_CENTRE = 0.1  # of the diameter


@dataclass(frozen=True)
class ShownMap:
    """A user's map.

    volume : `(n, n, n)` zyx float32, n even, particle about index n // 2. alone : no refined particles; the
    table that comes with it gives CTFs, noise and contrast only.
    """

    source: Path
    volume: Tensor
    pixel_size_A: float
    sha256: str
    alone: bool = False

    @property
    def side_A(self) -> float:
        """Side of the map's box."""
        return len(self.volume) * self.pixel_size_A

    def identity(self) -> dict[str, object]:
        """What makes a training on this map another one than on a different map."""
        return {"sha256": self.sha256, "pixel_size_A": self.pixel_size_A, "alone": self.alone}


def calibration_source(shown: ShownMap | None) -> str:
    """What the widths of a model are calibrated on."""
    return SIMULATED_IMAGES if shown is not None and shown.alone else "held-out particles"


def simulated_from(shown: ShownMap | None, inputs: Sequence[Path]) -> dict[str, Any]:
    """Provenance of the simulated images, for config.json."""
    if shown is None:
        return {"calibrated_on": calibration_source(shown), "simulated_from": None}
    source: dict[str, Any] = {"map": str(shown.source), "sha256": shown.sha256}
    if shown.alone:
        source["ctf_from"] = [str(path) for path in inputs]
    return {"calibrated_on": calibration_source(shown), "simulated_from": source}


def read_shown_map(
    path: Path,
    pixel_size_A: float | None = None,
    alone: bool = False,
    remedy: str = "pass --map-pixel-size",
) -> ShownMap:
    """Read an MRC map of any box, its solvent brought to 0.

    pixel_size_A, remedy : as for `read_map`. Raises ImageStackError as that does, or for an empty map.
    """
    volume, used_A = read_map(path, pixel_size_A, remedy)
    volume = volume - solvent_level(volume)
    if float(volume.std()) == 0:
        raise ImageStackError(f"{path}: the map is empty, all its voxels are equal; give another one")
    return ShownMap(path, volume, used_A, checksum(path), alone)


def diameter_of(shown: ShownMap, given_A: float | None) -> float:
    """Diameter in Å of the particle in a map: the given one, or measured from the map's outline.

    Raises ImageStackError if the map's box does not hold it.
    """
    if given_A is not None:
        check_holds(shown, given_A)
        return given_A
    resolution_A = max(OUTLINE_A, 3 * shown.pixel_size_A)
    outline = replace(shown, volume=low_pass(shown.volume, shown.pixel_size_A, resolution_A))
    both = (outline.volume, outline.volume)
    diameter_A = estimate_diameter_A(Reference(outline.volume, both, torch.ones(1), shown.pixel_size_A))
    if diameter_A is None:
        raise ImageStackError(
            f"{shown.source}: no particle can be told from the solvent of this map of {shown.side_A:.0f} A; give "
            "--diameter, or a map in a larger box"
        )
    _warn_off_centre(outline, diameter_A)
    return diameter_A


def check_holds(shown: ShownMap, diameter_A: float) -> None:
    """Raise ImageStackError if the map's box is smaller than the particle."""
    if shown.side_A < diameter_A:
        raise ImageStackError(
            f"{shown.source}: the map's box of {shown.side_A:.0f} A is smaller than the particle of "
            f"{diameter_A:.0f} A; give a map in a larger box (check its pixel size, and the diameter that was given or measured)"
        )


def _warn_off_centre(outline: ShownMap, diameter_A: float) -> None:
    """Warn of a particle that does not stand in the middle of its box, as it does in picked images."""
    power = outline.volume.square()
    axis = torch.arange(len(power)).float() - len(power) // 2
    marginals = [power.sum([d for d in range(3) if d != dim]) for dim in range(3)]
    centre = torch.stack([(marginal * axis).sum() for marginal in marginals]) / power.sum()
    off_A = float(centre.norm()) * outline.pixel_size_A
    if off_A > OFF_CENTRE * diameter_A:
        LOG.warning("%s: the particle stands %.0f A off the centre of its box; picked particles are centred, so "
                    "centre the map", outline.source, off_A)  # fmt: skip
