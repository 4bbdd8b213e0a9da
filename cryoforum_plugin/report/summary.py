"""The few figures a reader looks for first, in words."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from cryoforum_plugin.particles import FloatArray, ParticleSet
from cryoforum_plugin.particles.description import describe
from cryoforum_plugin.report.collect import Run
from cryoforum_plugin.report.files import Rows


def summarise(run: Run) -> Rows:
    """How training went, how many particles there are, what resolution was reached."""
    rows: Rows = []
    best = run.metrics.get("validation_median_deg", np.empty(0))
    if np.isfinite(best).any():
        epoch = run.metrics["epoch"][int(np.nanargmin(best))]
        rows.append(("best validation median error", f"{np.nanmin(best):.3f} deg (epoch {epoch:g})"))
    seconds = run.metrics.get("seconds", np.empty(0))
    if np.isfinite(seconds).any():
        rows.append(("epochs", str(len(run.metrics["epoch"]))))
    if run.suspects is not None:
        rows.append(("particles whose own pose is implausible", str(run.suspects.count)))
    for name, particles in run.tables.items():
        if particles.prediction is not None:
            mean = float(particles.prediction.confidence.mean())
            rows.append((name, f"{len(particles)} particles, mean confidence {mean:.3f}"))
    for name, (resolution_A, fsc) in run.fsc.items():
        rows.append((f"resolution at FSC 0.143, {name}", resolution_text(resolution_A, fsc)))
    return rows


def data_rows(tables: Mapping[str, ParticleSet]) -> list[tuple[str, list[str]]]:
    """What each predicted table holds: a name, and the values of all tables; "" where one does not say."""
    columns = [_column(particles) for particles in tables.values()]
    names = dict.fromkeys(name for column in columns for name in column)
    return [(name, [column.get(name, "") for column in columns]) for name in names]


def _column(particles: ParticleSet) -> dict[str, str]:
    described = describe(str(particles.source), particles)
    found = {name: str(value) for name, value in described.items()}
    prediction = particles.prediction
    if prediction is not None and prediction.expected_error_deg is not None:
        found["median expected error (deg)"] = f"{np.median(prediction.expected_error_deg):.2f}"
        unusable = (prediction.confidence == 0) & (prediction.expected_error_deg == 180)
        found["could not be predicted"] = str(int(unusable.sum()))
    if prediction is not None and prediction.in_training is not None:
        found["learned from by the model"] = str(int(prediction.in_training.sum()))
    return found


def resolution_text(resolution_A: FloatArray, fsc: FloatArray, level: float = 0.143) -> str:
    """Resolution at which `fsc` `(s,)` first falls below `level`, in words; linear between shells."""
    below = np.flatnonzero(fsc < level)
    if len(below) == 0:
        return f"{resolution_A[-1]:.2f} Å (last shell; never below {level:g})"
    shell = int(below[0])
    if shell == 0 or not np.isfinite(resolution_A[shell - 1]):
        return f"none (below {level:g} from the first shell)"
    before, after = 1 / resolution_A[shell - 1], 1 / resolution_A[shell]
    part = (fsc[shell - 1] - level) / (fsc[shell - 1] - fsc[shell])
    return f"{1 / (before + part * (after - before)):.2f} Å"
