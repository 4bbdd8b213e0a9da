"""What is random about simulated particles: views, shifts, CTFs, junk."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.spatial.transform import Rotation

from cryoforum_plugin.errors import SettingsError
from cryoforum_plugin.geometry import reduce_to_asymmetric_unit, symmetry_group
from cryoforum_plugin.particles import Ctf, FloatArray, IntArray

GOOD, PURE_NOISE, OFF_CENTRE, WRONG_PARTICLE = range(4)
OFF_CENTRE_FRACTIONS = (0.15, 0.30)  # of the box
VIEW_JITTER_DEG = 2.0


@dataclass(frozen=True)
class SimulationSettings:
    """The paper's protocol.

    snr : variance of the signal after the CTF, over the full box, averaged over particles, divided by
    the variance of the white noise; infinity for none. shift_px : largest shift along x and y, in pixels
    of the output. defocus_um : range. low_pass_A, box_px : None = as the map. junk : fraction of
    particles, in equal thirds pure noise, off-centre, wrong particle. symmetry : views are spread over
    the copies of this group (which leaves uniform views uniform), or, with asymmetric_unit, all brought
    into its asymmetric unit (section 4.3).
    """

    count: int = 5000
    snr: float = 0.1
    shift_px: float = 3.0
    defocus_um: tuple[float, float] = (1.0, 2.5)
    voltage_kV: float = 300.0
    spherical_aberration_mm: float = 2.7
    amplitude_contrast: float = 0.1
    low_pass_A: float | None = None
    box_px: int | None = None
    junk: float = 0.0
    symmetry: str = "C1"
    asymmetric_unit: bool = False
    seed: int = 1

    def check(self) -> None:
        """Raise SettingsError for the first value out of range."""
        low, high = self.defocus_um
        rules = [
            (self.count >= 2, f"--count must be at least 2, got {self.count}"),
            (self.snr > 0, f"--snr must be positive (inf for no noise), got {self.snr}"),
            (self.shift_px >= 0, f"--shift-px must not be negative, got {self.shift_px}"),
            (0 <= self.junk <= 1, f"--junk is a fraction between 0 and 1, got {self.junk}"),
            (low <= high, f"--defocus must be given as LOW HIGH, got {low} {high}"),
            (self.voltage_kV > 0, f"--kv must be positive, got {self.voltage_kV}"),
            (abs(self.amplitude_contrast) <= 1, f"--q0 must lie in [-1, 1], got {self.amplitude_contrast}"),
            (
                self.low_pass_A is None or self.low_pass_A > 0,
                f"--low-pass must be positive, got {self.low_pass_A}",
            ),
        ]
        for holds, message in rules:
            if not holds:
                raise SettingsError(message)


@dataclass(frozen=True)
class Draw:
    """True parameters of n particles; arrays as in `ParticleSet`.

    shift_A is what the table will say, displacement_A `(n, 2)` x, y where the content really stands
    relative to the centre: -shift_A but for off-centre junk. junk `(n,)`: 0 good, 1 pure noise,
    2 off-centre, 3 wrong particle.
    """

    rotation: FloatArray
    shift_A: FloatArray
    displacement_A: FloatArray
    ctf: Ctf
    junk: IntArray

    def __len__(self) -> int:
        return len(self.junk)


def draw_particles(
    settings: SimulationSettings,
    pixel_size_A: float,
    box_px: int,
    views: FloatArray | None = None,
    ctf: Ctf | None = None,
) -> Draw:
    """Draw poses, shifts, CTFs and junk labels, each from its own random stream of the seed.

    views : `(m, 4)` quaternions whose viewing directions are sampled (2 degrees of jitter, free in-plane
    angle), None = uniform. ctf : rows to sample from, None = the settings' defocus range.
    Raises SettingsError for settings out of range.
    """
    settings.check()
    streams = np.random.SeedSequence(settings.seed).spawn(4)
    for_views, for_shifts, for_ctf, for_junk = (np.random.default_rng(stream) for stream in streams)
    n = settings.count
    junk = _junk_kinds(n, settings.junk, for_junk)
    shift_A = for_shifts.uniform(-1, 1, (n, 2)) * settings.shift_px * pixel_size_A
    length = for_junk.uniform(*OFF_CENTRE_FRACTIONS, n) * box_px * pixel_size_A
    angle = for_junk.uniform(0, 2 * np.pi, n)
    extra = (length * (junk == OFF_CENTRE))[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    rotation = _views(settings, views, for_views)
    return Draw(rotation, shift_A, extra - shift_A, _ctfs(settings, ctf, for_ctf), junk)


def _views(settings: SimulationSettings, views: FloatArray | None, rng: np.random.Generator) -> FloatArray:
    n = settings.count
    if views is None:
        rotation = Rotation.random(n, rng=rng)
    else:
        chosen = Rotation.from_quat(views[rng.integers(len(views), size=n)])
        jitter = Rotation.from_rotvec(np.radians(VIEW_JITTER_DEG) * rng.standard_normal((n, 3)))
        rotation = jitter * chosen * Rotation.from_euler("z", rng.uniform(0, 2 * np.pi, (n, 1)))
    if settings.asymmetric_unit:
        q = torch.from_numpy(np.asarray(rotation.as_quat()))
        return np.asarray(reduce_to_asymmetric_unit(q, settings.symmetry))
    group = symmetry_group(settings.symmetry)
    return np.asarray((Rotation.from_quat(group[rng.integers(len(group), size=n)]) * rotation).as_quat())


def _ctfs(settings: SimulationSettings, ctf: Ctf | None, rng: np.random.Generator) -> Ctf:
    n = settings.count
    if ctf is not None:
        return ctf[rng.integers(len(ctf), size=n)]
    defocus_A, one = rng.uniform(*settings.defocus_um, n) * 1e4, np.ones(n)
    return Ctf(
        defocus_u_A=defocus_A,
        defocus_v_A=defocus_A,
        defocus_angle_deg=0 * one,
        voltage_kV=settings.voltage_kV * one,
        spherical_aberration_mm=settings.spherical_aberration_mm * one,
        amplitude_contrast=settings.amplitude_contrast * one,
        phase_shift_deg=0 * one,
    )


def _junk_kinds(n: int, fraction: float, rng: np.random.Generator) -> IntArray:
    """Kinds `(n,)`: `fraction` of the rows, at random places, 1, 2, 3, 1, ..."""
    kinds = np.zeros(n, dtype=np.int64)
    rows = rng.permutation(n)[: round(fraction * n)]
    kinds[rows] = np.arange(len(rows)) % 3 + 1
    return kinds
