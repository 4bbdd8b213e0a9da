"""Images of new particles, as a model expects them."""

from __future__ import annotations

import logging
from dataclasses import replace

import torch

from cryoforum_plugin.errors import ModelError, ParticleFileError
from cryoforum_plugin.images.pipeline import CtfMode, ImagePipeline
from cryoforum_plugin.images.stacks import StackReader
from cryoforum_plugin.network.model import Model
from cryoforum_plugin.particles import ParticleSet

LOG = logging.getLogger("cryoforum")


def image_pipeline(
    model: Model, particles: ParticleSet, device: torch.device, contrast: str | None = None
) -> ImagePipeline:
    """Images of `particles` as the model expects them.

    contrast : None = as the model was trained. Raises ParticleFileError without CTF, ModelError for too small a box.
    """
    settings = model.settings.images
    if settings.ctf == "none":
        if particles.ctf is not None:
            LOG.warning("the model was trained without CTF; that of %s is not used", particles.source)
        particles = replace(particles, ctf=None)
    elif particles.ctf is None and settings.ctf != "keep":
        raise ParticleFileError(
            f"{particles.source}: no CTF parameters, but the model was trained with CTF correction; use "
            "particles with estimated CTF, or train a model with --no-ctf"
        )
    reader = StackReader(particles.stacks)
    box_px = reader.check(particles)
    side_A = box_px * float(particles.pixel_size_A.min())
    if side_A < 0.7 * model.box.side_A:
        raise ModelError(
            f"{particles.source}: images of {box_px} px at {particles.pixel_size_A.min():g} A/px show "
            f"{side_A:.0f} A, but the model looks at {model.box.side_A:.0f} A; it was trained on another "
            "particle or box"
        )
    if side_A < 0.95 * model.box.side_A:
        LOG.warning("the images show %.0f A, the model looks at %.0f A; the rim is continued periodically",
                    side_A, model.box.side_A)  # fmt: skip
    sign = -1.0 if (contrast or settings.contrast) == "invert" else 1.0
    mode: CtfMode = settings.ctf  # type: ignore[assignment]
    return ImagePipeline(particles, reader, box_px, model.box, mode, sign, device)
