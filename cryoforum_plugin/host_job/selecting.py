"""Selecting with the maps that --auto looks at, made of whatever images a table points to."""

from __future__ import annotations

from cryoforum_plugin.confidence.selection import Criteria, Selection, select_particles
from cryoforum_plugin.images.stacks import StackReader
from cryoforum_plugin.network.device import choose_device
from cryoforum_plugin.particles import ParticleSet
from cryoforum_plugin.progress import Advance, progress
from cryoforum_plugin.reconstruction.nested import NestedReconstruction


def select(
    particles: ParticleSet,
    criteria: Criteria,
    symmetry: str,
    device_name: str,
    mask_diameter_A: float | None = None,
    quiet: bool = False,
) -> Selection:
    """Select from a predicted table; see `select_particles`. mask_diameter_A : of a soft sphere for the FSC."""
    with progress("select", len(particles), quiet or not criteria.auto) as advance:
        maps = map_maker(symmetry, device_name, mask_diameter_A, advance) if criteria.auto else None
        return select_particles(particles, criteria, symmetry, maps)


def map_maker(
    symmetry: str, device_name: str, mask_diameter_A: float | None = None, advance: Advance | None = None
) -> NestedReconstruction:
    """Make the reconstruction of nested sets that `select_particles` takes. Raises what `choose_device` raises."""
    return NestedReconstruction(
        lambda particles: StackReader(particles.stacks),
        symmetry,
        None if mask_diameter_A is None else mask_diameter_A / 2,
        choose_device(device_name),
        None if advance is None else lambda n: advance(n, ""),
    )
