"""What may be written of a prediction: finite numbers only, and poses only where they changed."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray

from cryoforum_plugin.particles.particle_set import FloatArray, ParticleSet, Prediction

_UNPREDICTED = {  # what a particle gets that could not be read or predicted
    "confidence": 0.0,
    "expected_error_deg": 180.0,
    "expected_shift_error_A": 999.0,
    "credible_radius_90_deg": 180.0,
    "lambda_max": 0.0,
    "trace": 0.0,
    "bingham": 0.0,
    "outlier_score": 1.0,
}


@dataclass(frozen=True)
class Writable:
    """A finite prediction and the rows `(n,)` bool whose orientation or shift differs from the table's."""

    prediction: Prediction
    rotation_changed: NDArray[np.bool_]
    shift_changed: NDArray[np.bool_]


def finite_prediction(particles: ParticleSet, prediction: Prediction) -> Writable:
    """Replace every row that holds a NaN or infinity by the values of an unpredicted particle.

    Such a row keeps its old pose (identity and no shift if it had none), has confidence 0, expected error
    and credible radius 180 deg, outlier score 1. Raises ValueError if the lengths differ.
    """
    n = len(particles)
    values = {f.name: getattr(prediction, f.name) for f in fields(prediction)}
    given = {name: np.array(value, dtype=np.float64) for name, value in values.items() if value is not None}
    if any(len(value) != n for value in given.values()):
        raise ValueError(f"the prediction has {len(prediction)} rows for {n} particles")
    bad = np.zeros(n, dtype=bool)
    for value in given.values():
        bad |= ~np.isfinite(value.reshape(n, value.size // max(n, 1))).all(axis=1)
    old = {"rotation": particles.rotation, "shift_A": particles.shift_A}
    identity = {"rotation": np.array([0.0, 0.0, 0.0, 1.0]), "shift_A": np.zeros(2)}
    for name, value in given.items():
        kept = old.get(name)
        value[bad] = kept[bad] if kept is not None else identity.get(name, _UNPREDICTED.get(name))
    return Writable(
        replace(prediction, **given),
        _changed_rotation(particles.rotation, given.get("rotation"), n),
        _changed_shift(particles.shift_A, given.get("shift_A"), n),
    )


def _changed_rotation(old: FloatArray | None, new: FloatArray | None, n: int) -> NDArray[np.bool_]:
    """Rows whose orientations differ by more than rounding (about 1e-6 deg)."""
    if new is None or old is None:
        return np.full(n, new is not None)
    chord = np.minimum(np.linalg.norm(old - new, axis=1), np.linalg.norm(old + new, axis=1))
    return chord > 1e-8


def _changed_shift(old: FloatArray | None, new: FloatArray | None, n: int) -> NDArray[np.bool_]:
    """Rows whose shifts differ by more than rounding (1e-6 Å)."""
    if new is None or old is None:
        return np.full(n, new is not None)
    return np.abs(old - new).max(axis=1, initial=0.0) > 1e-6
