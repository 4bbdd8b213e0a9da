"""What may be written of particles and a prediction: finite numbers only, poses only where they changed."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray

from cryoforum_plugin.particles.particle_set import FloatArray, ParticleSet, Prediction

_UNPREDICTED = {  # what a particle gets that could not be read or predicted
    "confidence": 0.0,
    "expected_error_deg": 180.0,
    "expected_shift_error_A": 999.0,
    "credible_radius_50_deg": 180.0,
    "credible_radius_90_deg": 180.0,
    "credible_radius_95_deg": 180.0,
    "lambda_max": 0.0,
    "trace": 0.0,
    "bingham": 0.0,
    "outlier_score": 1.0,
    "right_basin": 0.0,
    "in_training": 0.0,
    "alternative_weight": 0.0,
}


@dataclass(frozen=True)
class Writable:
    """Finite values, and the rows `(n,)` whose rotation or shift differs from what the table holds."""

    prediction: Prediction | None
    rotation: FloatArray | None
    shift_A: FloatArray | None
    rotation_changed: NDArray[np.bool_]
    shift_changed: NDArray[np.bool_]


def writable(
    particles: ParticleSet,
    prediction: Prediction | None,
    table_rotation: FloatArray | None,
    table_shift_A: FloatArray | None,
) -> Writable:
    """Decide what is written: the prediction's poses, or else those of the particles.

    A row that holds a NaN or infinity anywhere keeps the particle's pose (identity and no shift if it had
    none) and gets confidence 0, expected error and credible radius 180 deg, outlier score 1.
    table_rotation, table_shift_A : what the table holds, or None. Raises ValueError if lengths differ.
    """
    rotation, shift_A = particles.rotation, particles.shift_A
    if prediction is not None:
        prediction = _finite(particles, prediction)
        rotation = rotation if prediction.rotation is None else prediction.rotation
        shift_A = shift_A if prediction.shift_A is None else prediction.shift_A
    n = len(particles)
    return Writable(
        prediction,
        rotation,
        shift_A,
        _changed_rotation(table_rotation, rotation, n),
        _changed_shift(table_shift_A, shift_A, n),
    )


def _finite(particles: ParticleSet, prediction: Prediction) -> Prediction:
    n = len(particles)
    values = {f.name: getattr(prediction, f.name) for f in fields(prediction)}
    given = {name: np.asarray(value, dtype=np.float64) for name, value in values.items() if value is not None}
    if any(len(value) != n for value in given.values()):
        raise ValueError(f"the prediction has {len(prediction)} rows for {n} particles")
    bad = np.zeros(n, dtype=bool)
    for value in given.values():
        bad |= ~np.isfinite(value.reshape(n, value.size // max(n, 1))).all(axis=1)
    if not bad.any():
        return replace(prediction, **given)
    no_turn = np.array([0.0, 0.0, 0.0, 1.0])
    identity = {"rotation": no_turn, "shift_A": np.zeros(2), "alternative_rotation": no_turn}
    for name, value in given.items():
        kept = getattr(particles, name.removeprefix("alternative_")) if name in identity else None
        given[name] = value.copy()
        given[name][bad] = kept[bad] if kept is not None else identity.get(name, _UNPREDICTED.get(name))
    return replace(prediction, **given)


def _changed_rotation(old: FloatArray | None, new: FloatArray | None, n: int) -> NDArray[np.bool_]:
    """Rows whose orientations differ by more than rounding (about 1e-6 deg)."""
    if new is None or old is None:
        return np.full(n, new is not None)
    chord: FloatArray = np.minimum(np.linalg.norm(old - new, axis=1), np.linalg.norm(old + new, axis=1))
    return np.asarray(chord > 1e-8)


def _changed_shift(old: FloatArray | None, new: FloatArray | None, n: int) -> NDArray[np.bool_]:
    """Rows whose shifts differ by more than rounding (1e-6 Å)."""
    if new is None or old is None:
        return np.full(n, new is not None)
    return np.asarray(np.abs(old - new).max(axis=1, initial=0.0) > 1e-6)
