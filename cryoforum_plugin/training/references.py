"""The maps that a model's predictions are refined against."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np

from cryoforum_plugin.maps.given import ShownMap
from cryoforum_plugin.progress import progress
from cryoforum_plugin.refinement.matching import matched
from cryoforum_plugin.refinement.reference import ReferenceMap, coarsest, rebuild
from cryoforum_plugin.training.preparation import Prepared, reference_rows

LOG = logging.getLogger("cryoforum")


def refinement_references(prepared: Prepared, shown: ShownMap | None, quiet: bool) -> dict[int, ReferenceMap]:
    """References to refine against, of all training particles (0) and of each half set; none where they show nothing.

    A map alone is the reference itself.
    """
    rows = reference_rows(prepared.training_rows, prepared.settings)
    diameter_A = prepared.settings.images.diameter_A
    with progress("references", len(rows), quiet) as advance:
        maps = rebuild(prepared.pipeline, rows, prepared.settings.symmetry, diameter_A, advance)
    both = set(np.unique(prepared.particles.half_set).tolist()) == {1, 2}
    used = dict(enumerate(maps)) if both else {0: maps[0]}
    finest_A, coarsest_A = (
        max(known.finest_A for known in used.values()),
        coarsest(maps[0].side_A, diameter_A),
    )
    if finest_A > coarsest_A:
        LOG.warning(
            "predicted poses will not be refined: the particles' own map reaches %.0f A, and at least %.0f A are needed",
            finest_A, coarsest_A,
        )  # fmt: skip
        return {}
    if shown is not None and shown.alone:
        # the FSC is that of simulated images, and tells nothing of what real particles can show
        return {0: replace(matched(shown, maps[0], diameter_A), particles=None)}
    return used
