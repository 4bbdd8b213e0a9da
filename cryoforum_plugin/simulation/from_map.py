"""Training images from a map alone: made like those of a table of particles whose poses nobody knows."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import roma
import torch
from numpy.typing import NDArray
from torch import Tensor

from cryoforum_plugin.errors import ImageStackError
from cryoforum_plugin.images.contrast import check_contrast
from cryoforum_plugin.images.ctf import ctf_2d
from cryoforum_plugin.images.fourier import radial_sum, shell_index
from cryoforum_plugin.images.pipeline import CtfMode, ImagePipeline
from cryoforum_plugin.images.projector import Projector
from cryoforum_plugin.images.stacks import StackReader, write_stack
from cryoforum_plugin.images.working import WorkingBox
from cryoforum_plugin.maps.given import ShownMap, diameter_of
from cryoforum_plugin.maps.map_symmetry import check_map_symmetry
from cryoforum_plugin.maps.volume import resample
from cryoforum_plugin.particles import FloatArray, IntArray, ParticleSet
from cryoforum_plugin.particles.splitting import split_rows, spread_rows
from cryoforum_plugin.progress import Advance, progress
from cryoforum_plugin.settings import Settings
from cryoforum_plugin.simulation.draw import Draw, SimulationSettings, draw_particles
from cryoforum_plugin.simulation.map_contrast import Contrast, fit_contrast
from cryoforum_plugin.simulation.unaligned import Spectra, map_power, measure_spectra
from cryoforum_plugin.simulation.write import STACK, particle_set

LOG = logging.getLogger("cryoforum")
MEASURED_IMAGES = 1000
LARGEST_BOX_PX = 160  # of the images that are made, unless the network sees more than half of that
PIXELS_PER_BATCH = 2**21


@dataclass(frozen=True)
class MadeParticles:
    """Particles made from a map, with all that training needs of it.

    settings : with the diameter filled in, and no label doubted: those of the images are exact. shown : the map as bright and sharp as in the images.
    """

    particles: ParticleSet
    settings: Settings
    shown: ShownMap


def make_particles(
    like: ParticleSet, shown: ShownMap, settings: Settings, folder: Path, device: torch.device, quiet: bool
) -> MadeParticles:
    """Write images of the map into `folder`, with the noise, contrast and CTFs of `like`.

    Poses of `like` are not looked at. Raises ImageStackError for a map without the symmetry, dark protein,
    images that show no particle or cannot hold it; ParticleFileError for missing CTF parameters.
    """
    if settings.images.ctf == "none":
        like = replace(like, ctf=None)
    else:
        like.require_ctf()
    like = replace(like, rotation=None, shift_A=None)
    check_map_symmetry(shown, settings.symmetry, settings.training.check_symmetry)
    diameter_A = diameter_of(shown, settings.images.diameter_A)
    if settings.images.margin is not None:
        settings = replace(settings, images=replace(settings.images, diameter_A=diameter_A))
    pipeline, rows = _pipeline(like, shown, settings, diameter_A, device)
    spectra, volume = _measured(pipeline, rows, shown, settings, diameter_A, quiet)
    maker = _Maker(volume, spectra, settings, pipeline.contrast)
    draw, stack = maker.draw(like), folder / STACK
    made = particle_set(draw, spectra.pixel_size_A, spectra.size_px, stack, Path(f"images of {shown.source}"))
    made = replace(made, ctf=None if like.ctf is None else draw.ctf)
    fraction, seed = settings.training.validation_fraction, settings.training.seed
    _, validation_rows = split_rows(made, fraction, seed, settings.symmetry)  # as `prepare` will split them
    with progress("making images", len(made), quiet) as advance:
        images = maker.images(made, validation_rows, advance)
        write_stack(stack, images, spectra.pixel_size_A, "float16")
    as_shown = replace(shown, volume=volume.cpu(), pixel_size_A=spectra.pixel_size_A)
    settings = replace(settings, loss=replace(settings.loss, outliers=0.0))
    return MadeParticles(made, settings, as_shown)


def _measured(
    pipeline: ImagePipeline,
    rows: IntArray,
    shown: ShownMap,
    settings: Settings,
    diameter_A: float,
    quiet: bool,
) -> tuple[Spectra, Tensor]:
    """Spectra of the images of `rows`, and the map `(n, n, n)` on their grid as it shows in them."""
    even_px = pipeline.box_px - pipeline.box_px % 2
    size_px = min(even_px, max(LARGEST_BOX_PX, 2 * settings.images.size_px))
    with progress("measuring", len(rows), quiet) as advance:
        spectra = measure_spectra(pipeline, rows, size_px, diameter_A, advance)
    volume = resample(shown.volume, shown.pixel_size_A, size_px, spectra.pixel_size_A).to(pipeline.device)
    shells = torch.arange(size_px // 2 + 1)
    held = shells < size_px * spectra.pixel_size_A / (2 * shown.pixel_size_A)  # by the map's own voxels
    contrast = fit_contrast(spectra, map_power(volume) * held, pipeline.particles.source)
    volume = scaled(volume, spectra.pixel_size_A, contrast)
    _report(spectra, contrast, volume, pipeline.particles)
    return spectra, volume


def scaled(volume: Tensor, pixel_size_A: float, contrast: Contrast) -> Tensor:
    """Make a map `(n, n, n)` as bright and as sharp as it is in the images."""
    n = len(volume)
    frequency = torch.arange(n, dtype=torch.float64) / (n * pixel_size_A)
    gain = contrast.gain(frequency).float().to(volume.device)
    result: Tensor = torch.fft.irfftn(
        torch.fft.rfftn(volume) * gain[shell_index(n, 3, volume.device)], s=volume.shape
    )
    return result


def _pipeline(
    like: ParticleSet, shown: ShownMap, settings: Settings, diameter_A: float, device: torch.device
) -> tuple[ImagePipeline, IntArray]:
    """Pipeline of the images to be imitated, and the rows to measure: of the commonest pixel size."""
    reader = StackReader(like.stacks)
    box_px = reader.check(like)
    sizes, counts = np.unique(like.pixel_size_A, return_counts=True)
    pixel_A = float(sizes[counts.argmax()])
    side_A = box_px * pixel_A
    if side_A < diameter_A:
        raise ImageStackError(
            f"{like.source}: images of {box_px} px at {pixel_A:g} A/px show {side_A:.0f} A, but the particle of "
            f"{shown.source} is {diameter_A:.0f} A wide; check the pixel sizes and --diameter"
        )
    window = WorkingBox(min(side_A, diameter_A * (settings.images.margin or 1.2)), settings.images.size_px)
    mode: CtfMode = settings.images.ctf  # type: ignore[assignment]
    sign = -1.0 if settings.images.contrast == "invert" else 1.0
    pipeline = ImagePipeline(like, reader, box_px, window, mode, sign, device)
    if settings.images.contrast != "ignore":
        check_contrast(pipeline, np.arange(len(like)), training=False)
    return pipeline, spread_rows(np.flatnonzero(like.pixel_size_A == pixel_A), MEASURED_IMAGES)


def _report(spectra: Spectra, contrast: Contrast, volume: Tensor, like: ParticleSet) -> None:
    n = spectra.size_px
    expected = spectra.ctf2 * map_power(volume)
    per_shell = radial_sum(torch.ones(n, n // 2 + 1)).double()
    corners = (n * n - per_shell.sum()) * spectra.noise[-1]
    snr = float((per_shell * expected)[1:].sum() / ((per_shell * spectra.noise)[1:].sum() + corners))
    LOG.info(
        "%d images of %s: the map shows with amplitude %.3g and B-factor %.0f A^2 (signal seen to %.1f A%s, misfit %.0f %%), "
        "signal to noise %.3g over the box",
        spectra.images, like.source, contrast.amplitude, contrast.b_factor_A2, contrast.finest_A,
        ", where the images end" if contrast.cut else "",
        100 * contrast.misfit, snr,
    )  # fmt: skip
    LOG.info("images made from the map: %d px of %.4g A", n, spectra.pixel_size_A)


class _Maker:
    """Makes images of a map; all random numbers come from the seed."""

    def __init__(self, volume: Tensor, spectra: Spectra, settings: Settings, sign: float) -> None:
        self.projector = Projector(volume, spectra.pixel_size_A)
        self.spectra, self.settings, self.sign, self.device = spectra, settings, sign, volume.device
        n = spectra.size_px
        index = shell_index(n).clamp(max=n // 2)
        self.noise_gain = (spectra.noise.clamp(min=0).sqrt() / n).float()[index].to(self.device)

    def draw(self, like: ParticleSet) -> Draw:
        """Uniform views, about the centre of the box as picks are, CTFs of random particles of `like`."""
        chosen, training = self.settings.map_alone, self.settings.training
        drawing = SimulationSettings(count=chosen.images, shift_px=0, seed=training.seed)
        drawn = draw_particles(drawing, self.spectra.pixel_size_A, self.spectra.size_px, None, like.ctf)
        side_A = self.spectra.size_px * self.spectra.pixel_size_A
        rng = np.random.default_rng([training.seed, 1])
        shift_A = rng.normal(0, chosen.centring * side_A, (len(drawn), 2))
        return replace(drawn, shift_A=shift_A, displacement_A=-shift_A)

    def images(self, made: ParticleSet, varied: IntArray, advance: Advance) -> Iterator[NDArray[np.float32]]:
        """Yield batches `(b, n, n)` in order; the contrast of rows `varied` spreads as that of real images.

        That of the others does not: training takes noise from them, by subtracting the map.
        """
        n, seed = self.spectra.size_px, self.settings.training.seed
        generator = torch.Generator().manual_seed(seed)
        contrast = np.ones(len(made))
        spread = self.settings.map_alone.contrast_spread
        contrast[varied] = np.exp(np.random.default_rng([seed, 2]).normal(0, spread, len(varied)))
        step = max(1, PIXELS_PER_BATCH // n**2)
        for start in range(0, len(made), step):
            rows = np.arange(start, min(start + step, len(made)))
            signal = self._signal(made, rows) * self._tensor(contrast[rows])[:, None, None]
            white = torch.randn(len(rows), n, n, generator=generator).to(self.device)
            noise = torch.fft.irfft2(torch.fft.rfft2(white) * self.noise_gain, s=(n, n))
            yield ((signal + noise) * self.sign).cpu().numpy()
            advance(len(rows), "")

    @torch.no_grad()
    def _signal(self, made: ParticleSet, rows: IntArray) -> Tensor:
        n, pixel_A = self.spectra.size_px, self.spectra.pixel_size_A
        ctf = None if made.ctf is None else ctf_2d(made.ctf[rows], n, pixel_A, self.device)
        matrices = roma.unitquat_to_rotmat(self._tensor(made.require_rotation()[rows]))
        assert made.shift_A is not None
        return self.projector.project(matrices, ctf, self._tensor(made.shift_A[rows]))

    def _tensor(self, values: FloatArray) -> Tensor:
        return torch.from_numpy(values).float().to(self.device)
