"""Particle sets with known numbers, and their stacks, built in code."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation

from cryoforum_plugin.images.stacks import write_stack
from cryoforum_plugin.particles import Ctf, ParticleSet, Prediction

BOX = 8


def make_particles(folder: Path, n: int = 12, seed: int = 0) -> ParticleSet:
    """Write two stacks of random 8 px images into `folder` and return n particles in them, host None."""
    rng = np.random.default_rng(seed)
    half = (n + 1) // 2
    stacks = (folder / "Extract" / "a.mrcs", folder / "Extract" / "b.mrcs")
    for stack in stacks:
        write_stack(stack, rng.normal(size=(half, BOX, BOX)).astype(np.float32), 1.3, overwrite=True)
    row = np.arange(n)
    group = row % 2
    return ParticleSet(
        source=folder / "made.star",
        stacks=stacks,
        stack_index=row % 2,
        slice_index=row // 2,
        pixel_size_A=np.where(group == 0, 1.3, 2.6),
        rotation=Rotation.random(n, rng=rng).as_quat(),
        shift_A=rng.normal(scale=4.0, size=(n, 2)),
        ctf=Ctf(
            defocus_u_A=rng.uniform(8000, 30000, n),
            defocus_v_A=rng.uniform(8000, 30000, n),
            defocus_angle_deg=rng.uniform(-180, 180, n),
            voltage_kV=np.where(group == 0, 300.0, 200.0),
            spherical_aberration_mm=np.full(n, 2.7),
            amplitude_contrast=np.full(n, 0.07),
            phase_shift_deg=rng.uniform(0, 90, n),
        ),
        contrast_sign=np.ones(n),
        optics_group=group + 1,
        half_set=1 + row // 2 % 2,
        micrograph=row % 2,
        origin=row,
        uid=row.astype(np.uint64),
        prediction=None,
        host=None,
    )


def make_prediction(n: int, seed: int = 1) -> Prediction:
    """Return a prediction with every field set."""
    rng = np.random.default_rng(seed)
    return Prediction(
        confidence=rng.uniform(0, 1, n),
        rotation=Rotation.random(n, rng=rng).as_quat(),
        shift_A=rng.normal(scale=3.0, size=(n, 2)),
        expected_error_deg=rng.uniform(0, 40, n),
        expected_shift_error_A=rng.uniform(0, 5, n),
        credible_radius_90_deg=rng.uniform(0, 60, n),
        lambda_max=-rng.uniform(0, 1e4, n),
        trace=-rng.uniform(0, 1e5, n),
        bingham=rng.normal(scale=1e3, size=(n, 10)),
        outlier_score=rng.uniform(0, 1, n),
        alternative_rotation=Rotation.random(n, rng=rng).as_quat(),
        alternative_weight=rng.uniform(0.1, 0.5, n),
    )


def angles_deg(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Angles between XYZW rotations, in degrees."""
    return np.degrees((Rotation.from_quat(p) * Rotation.from_quat(q).inv()).magnitude())
