"""Which particles to keep: all criteria together, and what became of the views and of the map."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from cryoforum_plugin.confidence.auto import automatic
from cryoforum_plugin.confidence.auto_curve import AutoCurve
from cryoforum_plugin.confidence.balance import Mask, balance_views, balanced, count_half_sets
from cryoforum_plugin.confidence.by_map import Reconstruct
from cryoforum_plugin.confidence.columns import LABELS, check_finite
from cryoforum_plugin.confidence.criteria import Criteria, at_most_wrong, expected_wrong, single_masks
from cryoforum_plugin.confidence.view_coverage import view_cells, view_coverage
from cryoforum_plugin.errors import ParticleFileError, SettingsError
from cryoforum_plugin.particles import ParticleSet

__all__ = ["Criteria", "Selection", "select_particles"]


@dataclass(frozen=True)
class Selection:
    """Rows to keep `(n,)`, one line a criterion saying what was done, and the counts per half set.

    views : sampling compensation factor of the views before and after, where it was asked for. auto : the curve that
    --auto chose from, where it looked at maps.
    """

    keep: Mask
    explanation: tuple[str, ...]
    counts: dict[str, dict[str, int]]
    views: dict[str, float] = field(default_factory=dict)
    auto: AutoCurve | None = None

    def figures(self) -> dict[str, Any]:
        """Return everything but the mask, ready for JSON."""
        result: dict[str, Any] = {"criteria": list(self.explanation), "counts": self.counts}
        if self.views:
            result["view_coverage"] = {name: round(value, 4) for name, value in self.views.items()}
        if self.auto is not None:
            result["auto"] = self.auto.figures()
        return result

    def lines(self) -> list[str]:
        """What was done, for people."""
        lines = list(self.explanation)
        if self.auto is not None:
            first, last = self.auto.points[self.auto.chosen], self.auto.points[-1]
            lines += self.auto.lines()
            lines.append(f"worst direction: {last.worst_A:.2f} Å before, {first.worst_A:.2f} Å after --auto")
        if self.views:
            lines.append(
                "view coverage (1 = uniform): {before:.3f} before, {after:.3f} after".format(**self.views)
            )
        return lines


def select_particles(
    particles: ParticleSet, criteria: Criteria, symmetry: str = "C1", reconstruct: Reconstruct | None = None
) -> Selection:
    """Apply `criteria` to a predicted set.

    symmetry : of the views. reconstruct : makes the maps that `criteria.auto` looks at; without, it goes by the
    confidences. Raises ParticleFileError without the prediction columns that a criterion needs or where they hold no
    numbers, SettingsError when nothing, or nothing of one half set, would be left.
    """
    prediction = particles.prediction
    if prediction is None:
        raise ParticleFileError(
            f"{particles.source}: no prediction columns (rlnParticleFigureOfMerit or "
            "components_mode_k/value); run `cryoforum predict` first and select from its output"
        )
    used = LABELS if criteria.auto or criteria.target is not None else ("confidence", "expected_error_deg")
    for name in used:
        check_finite(particles.source, name, getattr(prediction, name))
    keep = np.ones(len(particles), dtype=bool)
    explanation = []
    for mask, line in single_masks(particles, prediction, criteria):
        keep &= mask
        explanation.append(f"{line}: {int(mask.sum())} of {len(mask)}")
    _refuse_empty(particles, keep)
    curve = None
    if criteria.target is not None:
        keep, line = _within(keep, *at_most_wrong(particles, prediction, keep, criteria.target))
        explanation.append(line)
    if criteria.auto:
        maps = reconstruct if criteria.images else None
        mask, line, curve = automatic(replace(particles, host=None)[keep], prediction[keep], symmetry, maps)
        keep, line = _within(keep, mask, line)
        explanation.append(line)
    _refuse_empty(particles, keep)
    if criteria.balance_views:
        cells = view_cells(particles.require_rotation(), symmetry)
        chosen = keep
        keep, added = balance_views(keep, cells, prediction.confidence)
        explanation.append(f"added to keep as much of every view: {added}")
        # what was added for its view is the last that the half sets take back
        worth = prediction.confidence + (keep & ~chosen)
    else:
        worth = prediction.confidence
    if criteria.balance_halves:
        keep, dropped = balanced(keep, particles.half_set, worth, criteria.least_apart)
        explanation += [f"dropped to balance the half sets: {dropped}"] if dropped else []
    if criteria.target is not None:
        explanation.append(expected_wrong(particles, prediction, keep, criteria.target))
    views = _views(particles, keep, symmetry) if criteria.balance_views or curve is not None else {}
    counts = count_half_sets(particles.half_set, keep)
    return Selection(keep, tuple(explanation), counts, views, curve)


def _within(keep: Mask, chosen: Mask, line: str) -> tuple[Mask, str]:
    """Rows `chosen` among those of `keep`, and the line with their number."""
    result = keep.copy()
    result[keep] = chosen
    return result, f"{line}: {int(chosen.sum())} of {len(chosen)}"


def _views(particles: ParticleSet, keep: Mask, symmetry: str) -> dict[str, float]:
    """Coverage of Fourier space by all particles, and by those kept."""
    rotation = particles.require_rotation()
    return {
        "before": view_coverage(rotation, symmetry).scf,
        "after": view_coverage(rotation[keep], symmetry).scf,
    }


def _refuse_empty(particles: ParticleSet, keep: Mask) -> None:
    """Raise SettingsError if nothing is left, or nothing of a half set that was there."""
    if not keep.any():
        raise SettingsError(f"no particle of {particles.source} is left; loosen the criteria (or use --auto)")
    for value in np.unique(particles.half_set):
        if value > 0 and not keep[particles.half_set == value].any():
            raise SettingsError(
                f"nothing of half set {value} of {particles.source} is left, so that no gold-standard FSC "
                "would be possible; loosen the criteria (or use --auto)"
            )
