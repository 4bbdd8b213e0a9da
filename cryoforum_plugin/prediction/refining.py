"""Whether and against what the poses of a prediction are refined."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

from cryoforum_plugin.confidence.calibration import Calibration
from cryoforum_plugin.errors import ModelError
from cryoforum_plugin.images.pipeline import ImagePipeline
from cryoforum_plugin.network.model import Model
from cryoforum_plugin.particles import ParticleSet
from cryoforum_plugin.refinement.matching import read_reference
from cryoforum_plugin.refinement.reference_file import NAME, read_references
from cryoforum_plugin.refinement.refine import Refiner

LOG = logging.getLogger("cryoforum")
# width of posteriors against a given map: with what the noise alone allows (1), 90 % balls about poses that were refined
# against the true maps of five simulated proteins held 86.4 to 89.5 %
GIVEN_MAP_WIDTH = 0.95


def refines(model: Model, particles: ParticleSet, refine: bool | None, reference: Path | None) -> bool:
    """Decide whether poses are refined; say why not where one might expect it.

    refine : None = where it is of use. reference : a map that is given. Raises ModelError where refinement is asked
    for and cannot be.
    """
    if refine is False:
        return False
    asked = refine or reference is not None
    if particles.ctf is None and model.settings.images.ctf != "none":
        return _not(asked, f"{particles.source} has no CTF parameters, but the model's particles had")
    there = all(m.directory is not None and (m.directory / NAME).is_file() for m in model.alone)
    if reference is None and not there:
        if not asked:
            return False
        return _not(asked, f"{model.directory} holds no reference to refine against ({NAME}); give one with --reference, "
                    "or train the model again")  # fmt: skip
    if not asked and not model.calibration.get("refined", {}).get("helps", True):
        return _not(False, "that made those of held-out particles worse (--refine does it all the same)")
    return True


def _not(asked: bool, reason: str) -> bool:
    if asked:
        raise ModelError(f"poses cannot be refined: {reason}")
    LOG.warning("poses are not refined: %s", reason)
    return False


def refiner_for(model: Model, pipeline: ImagePipeline, reference: Path | None) -> tuple[Refiner, Calibration]:
    """What refines the poses that `model` predicts, and what calibrates them.

    A map that is given is taken as free of errors: then the noise alone limits poses, all but GIVEN_MAP_WIDTH.
    """
    diameter_A, symmetry = model.settings.images.diameter_A, model.settings.symmetry
    own, figures = read_references(model.directory), model.calibration.get("refined")
    if figures is None:
        LOG.warning("%s was not calibrated for refined poses: their uncertainty is what the noise alone allows",
                    model.directory)  # fmt: skip
    factors = Calibration(GIVEN_MAP_WIDTH, 1.0) if figures is None else Calibration.of(figures)
    if reference is None:
        return Refiner(pipeline, own, diameter_A, symmetry), factors
    given = read_reference(reference, own.get(0), diameter_A)
    compared_A = min((known.finest_A for known in own.values()), default=None)
    refiner = Refiner(pipeline, {0: given}, diameter_A, symmetry, compared_A)
    return refiner, replace(factors, width=GIVEN_MAP_WIDTH, slope=1.0)
