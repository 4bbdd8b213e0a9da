"""A user's map against the reference of a training: does it fit, and how bright is it?

The map is one that simulated images shall show, or one to refine predicted poses against.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from cryoforum_plugin.errors import ImageStackError, ParticleFileError
from cryoforum_plugin.images.fourier import radial_average, radial_sum, shell_index, soft_mask
from cryoforum_plugin.maps.given import ShownMap, check_holds
from cryoforum_plugin.maps.rebuilt import Reference
from cryoforum_plugin.maps.volume import last_shell, resample
from cryoforum_plugin.reconstruction.fsc import fourier_shell_correlation

LOG = logging.getLogger("cryoforum")
BELIEVED = 0.5  # FSC of the half maps down to which shells are compared
FEWEST_SHELLS = 3
SMALLEST_FIT = 0.5  # mean correlation over those shells of a map that is taken
CLEARLY_BETTER, PERHAPS_BETTER = 0.05, 0.01
SCALES = (0.9, 0.92, 0.94, 0.96, 0.98, 1.02, 1.04, 1.06, 1.08, 1.1)


@dataclass(frozen=True)
class _Change:
    """Something done to the map, and what a user should do if the map fits better so."""

    what: str
    advice: str
    other_hand: bool = False


def match_map(shown: ShownMap, reference: Reference, diameter_A: float | None = None) -> Tensor:
    """Return the map `(n, n, n)` on the grid and in the grey values of the reference.

    A map alone, whose images were made from it, is scaled by one factor. Any other is checked first and
    then scaled shell by shell, so that a sharpened or blurred map becomes like the data. diameter_A : of the
    particle, which the map's box must hold; None = unknown.
    Raises ImageStackError with figures if the map does not fit, ParticleFileError if that cannot be told.
    """
    if diameter_A is not None:
        check_holds(shown, diameter_A)
    n = len(reference.volume)
    volume = resample(shown.volume, shown.pixel_size_A, n, reference.pixel_size_A)
    volume = volume.to(reference.volume.device)
    average = (reference.halves[0] + reference.halves[1]) / 2
    cross, power = _spectra(average, volume)
    if shown.alone:
        return volume * (cross[1:].sum() / power[1:].sum())
    last = _compared_shells(reference, volume, shown.source)
    _check_fit(shown, reference, last)
    gain = _gain(cross, power, last)
    index = shell_index(n, 3, volume.device).clamp(max=n // 2)
    scaled: Tensor = torch.fft.irfftn(torch.fft.rfftn(volume) * gain[index], s=volume.shape)
    return scaled


def _compared_shells(reference: Reference, volume: Tensor, source: Path) -> int:
    """The last shell down to which both half maps agree, and that the map holds.

    Raises ParticleFileError for fewer than three of the halves, ImageStackError for fewer than three of the map.
    """
    below = (reference.fsc[1:] < BELIEVED).nonzero()
    last = int(below[0]) if len(below) else len(reference.fsc) - 2
    if last < FEWEST_SHELLS:
        raise ParticleFileError(
            f"the training particles' own map has a resolution of {reference.resolution_A:.0f} A only, too poor to check "
            f"{source} against; leave this map out, or train on more or better particles"
        )
    end = last_shell(radial_average(torch.fft.rfftn(volume).abs().square(), 3).cpu())
    if end < FEWEST_SHELLS:
        raise ImageStackError(
            f"{source}: the map ends at {len(volume) * reference.pixel_size_A / max(end, 1):.0f} A, too early to be "
            "checked; give a map that was filtered less, or has smaller voxels"
        )
    return min(last, end)


def _spectra(average: Tensor, volume: Tensor) -> tuple[Tensor, Tensor]:
    """Cross spectrum of two maps and power of the second, summed over shells `(n // 2 + 1,)`."""
    of_average, of_volume = torch.fft.rfftn(average), torch.fft.rfftn(volume)
    return (
        radial_sum((of_average * of_volume.conj()).real, 3),
        radial_sum(of_volume.abs().square(), 3),
    )


def _gain(cross: Tensor, power: Tensor, last: int) -> Tensor:
    """Factor of each shell `(n // 2 + 1,)` that gives the map the grey values of the reference.

    The regression of the unfiltered reference on the map, which the reference's noise does not bias. Beyond
    the believed shells a Gaussian through them goes on (a B-factor), but never upwards.
    """
    gain = (cross / power.clamp(min=1e-30)).double()
    shells = torch.arange(len(gain), device=gain.device).double().square()
    usable = torch.arange(1, last + 1, device=gain.device)
    usable = usable[gain[usable] > 0]
    if len(usable) < 2:
        return gain.new_full(gain.shape, float(cross[1:].sum() / power[1:].sum())).float()
    slope, level = _line(shells[usable], gain[usable].log(), usable.double())
    end = shells[usable[-1]]
    fitted = (level + slope * end).exp() * (min(slope, 0.0) * (shells - end)).exp()
    believed = torch.zeros_like(gain, dtype=torch.bool)
    believed[usable] = True
    result = torch.where(believed, gain, fitted)
    result[0] = result[1]
    return result.float()


def _line(x: Tensor, y: Tensor, weight: Tensor) -> tuple[float, float]:
    """Slope and intercept of the weighted least-squares line."""
    mean_x, mean_y = (weight * x).sum() / weight.sum(), (weight * y).sum() / weight.sum()
    slope = (weight * (x - mean_x) * (y - mean_y)).sum() / (weight * (x - mean_x).square()).sum()
    return float(slope), float(mean_y - slope * mean_x)


def _check_fit(shown: ShownMap, reference: Reference, last: int) -> None:
    """Compare the map, and the map mirrored, turned, scaled and shifted, with the reference."""
    n, side_A = len(reference.volume), len(reference.volume) * reference.pixel_size_A
    size = min(n, max(16, 2 * (last + 2)))
    grid_A = side_A / size
    mask = soft_mask(size, size / 2 - 1 - size / 16, size / 16, 3)
    average = resample(
        (reference.halves[0] + reference.halves[1]).cpu() / 2, reference.pixel_size_A, size, grid_A
    )
    half = reference.fsc[1 : last + 1].cpu()
    largest = (2 * half / (1 + half)).sqrt()  # what a perfect map would have

    def fit(volume: Tensor) -> float:
        correlation = fourier_shell_correlation(average * mask, volume * mask)
        return float((correlation[1 : last + 1] / largest).mean().clamp(-1, 1))

    found = resample(shown.volume, shown.pixel_size_A, size, grid_A)
    tried = [(fit(volume), change) for change, volume in _changed(shown, found, average, grid_A)]
    _judge(shown.source, fit(found), tried, side_A / last)


def _judge(source: Path, direct: float, tried: list[tuple[float, _Change]], finest_A: float) -> None:
    """Refuse or doubt a map by its correlation with the reference, and that of the same map changed."""
    better, change = max(tried, key=lambda pair: pair[0])
    mirrored = max(correlation for correlation, change in tried if change.other_hand)
    LOG.info("map %s: correlation %.2f with the training's reference to %.0f A", source, direct, finest_A)
    figures = f"{better:.2f} against {direct:.2f}, mean correlation to {finest_A:.0f} A"
    where = f"{source} does not fit the reference of the training"
    if better > direct + CLEARLY_BETTER and better >= SMALLEST_FIT:
        raise ImageStackError(f"{where}: {change.what} fits better ({figures}); {change.advice}")
    if direct < SMALLEST_FIT:
        raise ImageStackError(
            f"{where}: mean correlation {direct:.2f} to {finest_A:.0f} A ({better:.2f} at best, mirrored, turned, "
            "shifted or with another pixel size); give a map of this particle in the frame of its refinement"
        )
    if mirrored > direct - CLEARLY_BETTER:
        LOG.warning("%s: its hand could not be told: the mirrored map fits about as well (%.2f against %.2f, mean correlation "
                    "to %.0f A); make sure that it is in the hand of the refinement", source, mirrored, direct, finest_A)  # fmt: skip
    elif better > direct + PERHAPS_BETTER:
        LOG.warning("%s: %s fits a little better (%s)", source, change.what, figures)


def _changed(
    shown: ShownMap, found: Tensor, average: Tensor, grid_A: float
) -> Iterator[tuple[_Change, Tensor]]:
    """The map as it may be by mistake: in another hand, turned, of another pixel size, shifted."""
    for order in itertools.permutations(range(3)):
        for flips in itertools.product((False, True), repeat=3):
            volume = found.permute(order)
            axes = [axis for axis in range(3) if flips[axis]]
            if axes:
                volume = volume.flip(axes).roll([1] * len(axes), axes)  # about n // 2
            if order == (0, 1, 2) and not axes:
                continue
            odd = (sum(a > b for a, b in itertools.combinations(order, 2)) + len(axes)) % 2
            turned = "" if order == (0, 1, 2) and len(axes) in (1, 3) else ", turned by quarter turns"
            if odd:
                yield (
                    _Change(f"the mirrored map{turned}", "give the map in the hand of the refinement", True),
                    volume,
                )
            else:
                yield (
                    _Change("the map turned by quarter turns", "give it in the frame of the refinement"),
                    volume,
                )
    for scale in SCALES:
        pixel_A = shown.pixel_size_A * scale
        volume = resample(shown.volume, pixel_A, len(found), grid_A)
        text = f"the map with {pixel_A:.3f} A a voxel instead of {shown.pixel_size_A:.3f} A"
        yield _Change(text, "correct the pixel size in its header"), volume
    shift = _best_shift(average, found)
    x, y, z = (float(value) * grid_A for value in reversed(shift))
    moved = found.roll(shift, (0, 1, 2))
    yield (
        _Change(
            f"the map moved by about {x:.0f}, {y:.0f}, {z:.0f} A (x, y, z)", "centre it as the refinement did"
        ),
        moved,
    )


def _best_shift(average: Tensor, volume: Tensor) -> list[int]:
    """Whole voxels (z, y, x) by which to move `volume` to where it correlates best with `average`."""
    transform = torch.fft.rfftn(average) * torch.fft.rfftn(volume).conj()
    peak = int(torch.fft.irfftn(transform, s=average.shape).argmax())
    n = len(average)
    place = (peak // n**2, peak // n % n, peak % n)
    return [(value + n // 2) % n - n // 2 for value in place]
