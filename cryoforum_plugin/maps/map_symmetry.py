"""Whether a user's map has the point group that was asked for, about the axes and the centre it must have."""

from __future__ import annotations

import logging

import roma
import torch
from torch import Tensor

from cryoforum_plugin.errors import ImageStackError
from cryoforum_plugin.geometry import random_quaternions, symmetry_group
from cryoforum_plugin.images.fourier import radial_average, radial_sum
from cryoforum_plugin.images.projector import Projector
from cryoforum_plugin.maps.given import ShownMap
from cryoforum_plugin.maps.symmetry_check import DOUBTED_BELOW, REFUSED_BELOW
from cryoforum_plugin.maps.volume import resample

LOG = logging.getLogger("cryoforum")
FINEST_A, VIEWS = 15.0, 20
HELD = 1e-5  # of the largest shell's power: shells below it hold rounding, and errors of interpolation


def check_map_symmetry(shown: ShownMap, symmetry: str, refuse: bool) -> None:
    """Refuse a map that is not the same from views that the point group makes equivalent.

    refuse : False turns the refusal into a warning. Raises ImageStackError, with figures.
    """
    if len(symmetry_group(symmetry)) == 1:
        return
    size = min(len(shown.volume), max(16, 2 * round(shown.side_A / FINEST_A)))
    volume = resample(shown.volume, shown.pixel_size_A, size, shown.side_A / size)
    worst, finest_A = _least_correlation(volume, symmetry, shown.side_A)
    if worst >= REFUSED_BELOW:
        return
    message = (
        f"{shown.source}: the map does not have the symmetry {symmetry}: turned by one of its operators about the "
        f"centre of the box it correlates {worst:.2f} with itself, to {finest_A:.0f} A"
    )
    centred, _ = _least_correlation(_moved(volume, size / len(shown.volume) / 2), symmetry, shown.side_A)
    if centred >= DOUBTED_BELOW:
        message += (
            f", and {centred:.2f} once it is moved by half a voxel: its centre lies between two voxels, and must be "
            "voxel n/2, counted from 0"
        )
        advice = "move the map by half a voxel along x, y and z"
    else:
        advice = "give it with the axes where RELION has them, all through voxel n/2 of the box, or another --symmetry"
    if refuse:
        raise ImageStackError(
            f"{message}; {advice} (--set training.check_symmetry=false takes the map as it is)"
        )
    LOG.warning("%s; taken all the same, as training.check_symmetry is false", message)


def _least_correlation(volume: Tensor, symmetry: str, side_A: float) -> tuple[float, float]:
    """Mean correlation of slices with their copies by the worst operator, and the resolution to which shells count."""
    size = len(volume)
    in_map = radial_average(torch.fft.rfftn(volume).abs().square(), 3)  # slices are interpolated
    held = in_map > HELD * in_map[1:].max()
    held[0], held[size // 2 :] = False, False
    projector = Projector(volume, side_A / size)
    views = random_quaternions(VIEWS, torch.Generator().manual_seed(0))
    own = projector.slices(roma.unitquat_to_rotmat(views))
    power = radial_sum(own.abs().square()).sum(0)
    worst = 1.0
    for copy in torch.from_numpy(symmetry_group(symmetry)).float()[1:]:
        turned = projector.slices(roma.unitquat_to_rotmat(roma.quat_product(copy.expand_as(views), views)))
        of_turned = radial_sum(turned.abs().square()).sum(0)
        shells = radial_sum((own * turned.conj()).real).sum(0) / (power * of_turned).sqrt().clamp(min=1e-30)
        worst = min(worst, float(shells[held].mean()))
    return worst, side_A / int(held.nonzero()[-1])


def _moved(volume: Tensor, by_px: float) -> Tensor:
    """Move a cube `(n, n, n)` by a part of a voxel along each axis."""
    n = len(volume)
    full, half = torch.fft.fftfreq(n), torch.fft.rfftfreq(n)
    turns = (full[:, None, None] + full[:, None] + half) * by_px
    phase = torch.exp(-2j * torch.pi * turns)
    moved: Tensor = torch.fft.irfftn(torch.fft.rfftn(volume) * phase, s=volume.shape)
    return moved
