"""A table of particles in a few figures."""

from __future__ import annotations

from typing import Any

import numpy as np

from cryoforum_plugin.particles.particle_set import ParticleSet


def describe(name: str, particles: ParticleSet) -> dict[str, Any]:
    """What a table holds, in a few figures; `name` says where it is from."""
    sizes = sorted({f"{size:g}" for size in np.unique(particles.pixel_size_A)})
    halves = {half: int((particles.half_set == half).sum()) for half in (1, 2)}
    return {
        "input": name,
        "particles": len(particles),
        "image stacks": len(particles.stacks),
        "pixel size (A)": ", ".join(sizes),
        "optics groups": len(np.unique(particles.optics_group)),
        "micrographs": int(particles.micrograph.max()) + 1,
        "half sets": f"{halves[1]} + {halves[2]}" if any(halves.values()) else "none",
        "orientations": "yes" if particles.rotation is not None else "no",
        "CTF": "yes" if particles.ctf is not None else "no",
    }
