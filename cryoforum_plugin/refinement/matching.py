"""A map from elsewhere as a reference: in the frame and the grey values of the model's own, or refused."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import torch

from cryoforum_plugin.errors import ModelError
from cryoforum_plugin.images.fourier import radial_average
from cryoforum_plugin.maps.fitting import match_map
from cryoforum_plugin.maps.given import ShownMap, check_holds, read_shown_map
from cryoforum_plugin.maps.rebuilt import Reference
from cryoforum_plugin.refinement.reference import ReferenceMap, from_map

LOG = logging.getLogger("cryoforum")
NEGLIGIBLE = 1e-3  # part of what poses are read from that the shells beyond the last one used hold together


def read_reference(path: Path, own: ReferenceMap | None, diameter_A: float | None) -> ReferenceMap:
    """Read a map that a user gives to refine against, and fit it to the model's own reference.

    Without an own one it is taken as it is. Raises ImageStackError, with figures, for a map of another frame, hand,
    pixel size or particle.
    """
    shown = read_shown_map(path, remedy="write it there")
    if own is None:
        if diameter_A is not None:
            check_holds(shown, diameter_A)
        LOG.warning(
            "%s: the model has no reference of its own, so that hand, frame and pixel size are not checked",
            path,
        )
        return from_map(shown.volume, shown.pixel_size_A)
    return matched(shown, own, diameter_A)


def matched(shown: ShownMap, own: ReferenceMap, diameter_A: float | None) -> ReferenceMap:
    """A map on the grid and in the grey values of a model's own reference, up to where it holds signal.

    Raises ImageStackError if it does not fit that reference.
    """
    if own.average is None or own.fsc is None:
        raise ModelError(
            "the model's own reference cannot be compared with another map; train the model again, or leave out --reference"
        )
    rebuilt = Reference(own.volume, (own.average, own.average), own.fsc, own.pixel_size_A)
    volume = match_map(shown, rebuilt, diameter_A).cpu()
    n = len(volume)
    power = radial_average(torch.fft.rfftn(volume).abs().square(), 3)
    # what a pose is read from: slices change with it in proportion to the frequency, and have as many points
    information = power * torch.arange(n // 2 + 1).float() ** 3
    rest = information.flip(0).cumsum(0).flip(0) / information.sum()
    belief = (rest > NEGLIGIBLE).float()
    belief[-1] = 0
    return replace(own, volume=volume, belief=belief)
