"""How strongly, and how sharply, a map shows in particle images that are not aligned."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cryoforum_plugin.errors import ImageStackError
from cryoforum_plugin.maps.volume import last_shell
from cryoforum_plugin.simulation.unaligned import Spectra

LOG = logging.getLogger("cryoforum")
SIGNIFICANT = 3.0  # standard errors of a shell's signal power
FEWEST_SHELLS = 3
MODEL_ERROR = 0.1  # of a shell's signal power: what no map and no two numbers describe
USUAL_B_A2 = 300.0  # s.d. expected of B, without which three shells tell nonsense
LARGEST_B_A2 = 1000.0
EARLY_END = 1.2  # a map that ends so much before the images do is pointed out
EDGE = 0.04  # relative width of the end of images that were filtered
POOR_FIT, NO_FIT = 0.5, 1.0  # of the natural logarithm of the power, r.m.s.: warned of, refused


@dataclass(frozen=True)
class Contrast:
    """How a map shows in images: its shells times `amplitude` exp(-`b_factor_A2` q^2 / 4), q in 1/Å.

    finest_A : resolution of the last shell in which it was seen; a rising factor stays level beyond.
    misfit : r.m.s. of the logarithm of the power, of what is left. cut : the images end there, as filtered ones.
    """

    amplitude: float
    b_factor_A2: float
    finest_A: float
    misfit: float
    cut: bool = False

    def gain(self, frequency: Tensor) -> Tensor:
        """Factor at spatial frequencies in 1/Å."""
        bent = frequency.clamp(max=1 / self.finest_A) if self.b_factor_A2 < 0 else frequency
        factor = self.amplitude * torch.exp(-self.b_factor_A2 * bent.square() / 4)
        if self.cut:
            end = (1 + EDGE) / self.finest_A
            factor = factor * torch.sigmoid((end - frequency) / (EDGE / 2 * end))
        return factor


def fit_contrast(spectra: Spectra, map_power: Tensor, source: object) -> Contrast:
    """Fit amplitude and B-factor of a map of mean power `map_power` `(n // 2 + 1,)` to unaligned images.

    The images' signal power is amplitude^2 exp(-B q^2 / 2) <CTF^2> map_power; its logarithm is a line in
    q^2. Shells count by the inverse square of their error, if their signal is significant and the map reaches them.
    Raises ImageStackError if fewer than three do, or if no such line describes the images.
    """
    signal, expected = spectra.signal, spectra.ctf2 * map_power.double()
    end = last_shell(map_power)
    seen = _seen(spectra, expected, end, source)
    shells = seen.nonzero()[:, 0]
    q = shells.double() / (spectra.size_px * spectra.pixel_size_A)
    y = (signal[seen] / expected[seen]).log()
    weight = 1 / ((spectra.error[seen] / signal[seen]).square() + MODEL_ERROR**2)
    design = torch.stack([torch.ones_like(q), -q.square() / 2], 1)
    level, b_A2 = (float(value) for value in _least_squares(design, y, weight))
    left = y - level + b_A2 * q.square() / 2
    misfit = math.sqrt(float((weight * left.square()).sum() / weight.sum()))
    found = Contrast(math.exp(level / 2), b_A2, 1 / float(q[-1]), misfit)
    _judge(found, source)
    return replace(found, cut=_ends(spectra, expected, found, end))


def _seen(spectra: Spectra, expected: Tensor, end: int, source: object) -> Tensor:
    """Shells `(n // 2 + 1,)` bool with significant signal, up to the last one of the map.

    Raises ImageStackError if there are fewer than three, of the images or of the map.
    """
    shells = torch.arange(len(expected))
    seen = (spectra.signal > SIGNIFICANT * spectra.error) & (spectra.ctf2 > 0)
    seen &= (shells >= 1) & (shells < len(shells) - 1)
    seen &= shells <= _end_of_signal(seen)
    if int(seen.sum()) < FEWEST_SHELLS:
        raise ImageStackError(
            f"{source}: no particle can be told from the noise in {spectra.images} images ({int(seen.sum())} of "
            f"{len(shells) - 2} Fourier shells hold signal); give images that show the particle of the map, and "
            "check --diameter"
        )
    side_A = spectra.size_px * spectra.pixel_size_A
    finest_A, map_A = side_A / int(seen.nonzero()[-1]), side_A / max(end, 1)
    seen &= (shells <= end) & (expected > 0)
    if int(seen.sum()) < FEWEST_SHELLS:
        raise ImageStackError(
            f"{source}: the map ends at {map_A:.0f} A, which leaves {int(seen.sum())} Fourier shells to compare with "
            f"the images, and {FEWEST_SHELLS} are needed; give a map that was filtered less, or has smaller voxels"
        )
    if map_A > EARLY_END * finest_A:
        LOG.warning("the map ends at %.0f A (filtered, or of large voxels), but the images show the particle to %.0f A; "
                    "a map with more detail would teach more", map_A, finest_A)  # fmt: skip
    return seen


def _judge(found: Contrast, source: object) -> None:
    """Warn of a map whose power differs from that of the images; raise ImageStackError if it differs very much."""
    figures = (
        f"{source}: the power of the images differs from that of the map by a factor of {math.exp(found.misfit):.1f} "
        f"(r.m.s. over the Fourier shells to {found.finest_A:.0f} A), at best, with a B-factor of "
        f"{found.b_factor_A2:.0f} A^2"
    )
    if found.misfit > NO_FIT or abs(found.b_factor_A2) > LARGEST_B_A2:
        raise ImageStackError(
            f"{figures}, where at most {math.exp(NO_FIT):.1f} and {LARGEST_B_A2:.0f} A^2 are believed; give a map of "
            "the same particle, neither filtered nor sharpened, and check its pixel size"
        )
    if found.misfit > POOR_FIT:
        LOG.warning("%s; is it the same particle, at the right pixel size?", figures)


def _ends(spectra: Spectra, expected: Tensor, found: Contrast, end: int) -> bool:
    """Whether the images clearly hold less than half the fitted signal beyond the last shell it was seen in.

    end : last shell of the map.
    """
    frequency = torch.arange(len(expected)).double() / (spectra.size_px * spectra.pixel_size_A)
    beyond = frequency > 1.01 / found.finest_A
    beyond[min(end + 1, len(beyond) - 1) :] = False
    fitted, error = (expected * found.gain(frequency).square())[beyond], spectra.error[beyond]
    weight = (fitted / error.clamp(min=1e-30)).square()
    if float(weight.sum()) == 0:
        return False
    part = float((weight * spectra.signal[beyond] / fitted.clamp(min=1e-30)).sum() / weight.sum())
    return part + SIGNIFICANT / math.sqrt(float(weight.sum())) < 0.5


def _least_squares(design: Tensor, y: Tensor, weight: Tensor) -> Tensor:
    """Coefficients `(2,)` of the weighted least-squares fit; the second, a B-factor, is drawn to 0 by its prior."""
    weighted = design * weight[:, None]
    prior = torch.diag(design.new_tensor([0.0, 1 / USUAL_B_A2**2]))
    solution: Tensor = torch.linalg.solve(weighted.T @ design + prior, weighted.T @ y)
    return solution


def _end_of_signal(seen: Tensor) -> int:
    """Last shell before two out of three shells are without signal: beyond, single ones are chance."""
    missing = (~seen[1:]).long().unfold(0, 3, 1).sum(1) >= 2
    gaps = missing.nonzero()
    return int(gaps[0]) if len(gaps) else len(seen)
