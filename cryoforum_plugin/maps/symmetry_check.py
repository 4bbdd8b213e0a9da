"""Whether the particles have the point group that was asked for: their own half maps, turned onto each other."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np
from scipy.spatial.transform import Rotation

from cryoforum_plugin.errors import SettingsError
from cryoforum_plugin.geometry import COMMON_GROUPS, super_fibonacci_quaternions, symmetry_group
from cryoforum_plugin.maps.rebuilt import Unsymmetrised
from cryoforum_plugin.maps.symmetry_correlation import Correlation, HalfMaps
from cryoforum_plugin.particles import FloatArray

LOG = logging.getLogger("cryoforum")
REFUSED_BELOW = 0.8  # of the correlation unturned; a map that has the symmetry comes out at 1 but for noise
DOUBTED_BELOW = 0.95
FITS_FROM = 0.7  # what a group must reach to be suggested, ...
FITS_WITHIN = 4.0  # ... and DOUBTED_BELOW within so many standard errors, ...
FITS_ERROR = 0.15  # ... themselves no larger than this part of the correlation unturned
STANDARD_ERRORS = 5.0
OTHERS = 16  # turns about no axis of any group, for what a map correlates with itself by chance or shape


@dataclass(frozen=True)
class Verdict:
    """How well half maps fit a point group.

    worst : of the group's operators, None = too few particles to tell. turn : quaternion of `worst`.
    fits : the largest group that fits of those that were tried, None = it was not looked for.
    """

    worst: Correlation | None
    turn: FloatArray | None = None
    fits: str | None = None

    @property
    def contradicted(self) -> bool:
        """Whether an operator turns the map into something else, beyond any doubt."""
        return self.worst is not None and _contradicts(self.worst)

    @property
    def doubtful(self) -> bool:
        """Whether an operator does not quite turn the map into itself."""
        return self.worst is not None and not _may_be_symmetry(self.worst)


def check_symmetry(maps: Unsymmetrised | None, symmetry: str, source: str, refuse: bool) -> None:
    """Refuse, doubt or accept `symmetry` by the particles' own half maps; log what was found.

    maps : None = not known, nothing is checked. refuse : False turns a refusal into a warning.
    Raises SettingsError, with figures and the group that fits, where an operator is contradicted.
    """
    if maps is None:
        LOG.info("symmetry %s was not checked against the particles", symmetry)
        return
    verdict = judge(maps, symmetry)
    worst = verdict.worst
    if worst is None:
        if len(symmetry_group(symmetry)) > 1:
            LOG.warning("too few particles, or too alike, to tell whether they have symmetry %s", symmetry)
    elif verdict.contradicted:
        message = f"{source}: {symmetry} does not fit the particles: {_figures(verdict)}"
        if refuse:
            raise SettingsError(
                f"{message}. Give the symmetry that their poses have, or, to impose {symmetry} all the same, "
                "--set training.check_symmetry=false"
            )
        LOG.warning("%s; trained all the same, as training.check_symmetry is false", message)
    elif verdict.doubtful:
        LOG.warning("%s: %s may not fit the particles: %s", source, symmetry, _figures(verdict))
    else:
        if verdict.turn is not None and np.abs(verdict.turn[:3]).max() > 0:
            LOG.info("symmetry %s: %s", symmetry, _correlations(verdict))
        _hint(verdict, symmetry, source)


def _hint(verdict: Verdict, symmetry: str, source: str) -> None:
    """Log the larger group that the particles seem to have, if there is one."""
    if verdict.fits not in (None, "C1"):
        LOG.warning(
            "%s: the particles seem to have symmetry %s, more than the %s asked for; if they do, training with "
            "--symmetry %s is better", source, verdict.fits, symmetry, verdict.fits,
        )  # fmt: skip


def judge(maps: Unsymmetrised, symmetry: str) -> Verdict:
    """Turn half map 1 by every operator of `symmetry` and compare it with half map 2.

    An operator is contradicted where the correlation is below REFUSED_BELOW times that of the halves unturned,
    by STANDARD_ERRORS of the difference at least. Of a group that fits, a larger one is looked for.
    """
    halves = HalfMaps.of(maps)
    if halves is None or _alike_everywhere(halves):
        return Verdict(None)
    operators = symmetry_group(symmetry)[1:]
    found = [(one, q) for q in operators if (one := halves.correlate(q)) is not None]
    if 2 * len(found) < len(operators):
        return Verdict(None)
    same = (Correlation(1.0, 1.0, 0.0), np.array([0.0, 0.0, 0.0, 1.0]))
    worst, turn = min(found, key=lambda pair: (not _contradicts(pair[0]), pair[0].ratio), default=same)
    return Verdict(worst, turn, _largest(halves, symmetry, not _may_be_symmetry(worst)))


def _contradicts(found: Correlation) -> bool:
    """Whether a turn is certainly no symmetry."""
    apart = found.unturned - found.turned
    return found.ratio < REFUSED_BELOW and apart > STANDARD_ERRORS * found.standard_error


def _may_be_symmetry(found: Correlation) -> bool:
    """Whether the correlation turned reaches DOUBTED_BELOW of that unturned, but for noise."""
    return found.turned + FITS_WITHIN * found.standard_error >= DOUBTED_BELOW * found.unturned


def _alike_everywhere(halves: HalfMaps) -> bool:
    """Whether turns that belong to no point group leave the map much as it is: a ball, or noise."""
    found = [halves.correlate(q) for q in super_fibonacci_quaternions(OTHERS).numpy()]
    known = [one.ratio for one in found if one is not None]
    return len(known) < OTHERS // 4 or float(np.median(known)) > REFUSED_BELOW


def _largest(halves: HalfMaps, symmetry: str, contradicted: bool) -> str | None:
    """Name of the largest candidate whose operators all fit; larger than `symmetry` unless that is contradicted."""
    smallest = 1 if contradicted else len(symmetry_group(symmetry))
    seen: dict[tuple[float, ...], bool | None] = {}

    def holds(q: FloatArray) -> bool | None:
        key = tuple(np.round(_canonical(q), 5).tolist())
        if key not in seen:
            found = halves.correlate(q)
            seen[key] = None if found is None else _fits(found)
        return seen[key]

    for name in reversed(COMMON_GROUPS):
        operators = symmetry_group(name)[1:]
        if len(operators) < smallest:
            break
        known = 0
        for q in operators:
            held = holds(q)
            if held is False:
                break
            known += held is True
        else:
            if 2 * known >= len(operators):
                return name
    return "C1" if contradicted else None


def _fits(found: Correlation) -> bool:
    """Whether a turn may be called a symmetry; turns that too few frequencies tell of (None) are passed over."""
    return (
        _may_be_symmetry(found)
        and found.ratio >= FITS_FROM
        and found.standard_error <= FITS_ERROR * found.unturned
    )


def _canonical(q: FloatArray) -> FloatArray:
    """q or -q, whichever has its first component that is not 0 positive."""
    first = q[np.argmax(np.abs(q) > 1e-6)]
    return q if first > 0 else -q


def _correlations(verdict: Verdict) -> str:
    """What the worst operator does to the half maps."""
    assert verdict.worst is not None
    assert verdict.turn is not None
    vector = Rotation.from_quat(verdict.turn).as_rotvec()
    angle = float(np.linalg.norm(vector))
    axis = vector / angle
    named = {0: "x", 1: "y", 2: "z"}
    main = int(np.argmax(np.abs(axis)))
    about = named[main] if abs(axis[main]) > 0.9999 else "(" + ", ".join(f"{x:.2f}" for x in axis) + ")"
    return (
        f"turned by {np.degrees(angle):.0f} deg about {about} half map 1 correlates {verdict.worst.turned:.2f} with "
        f"half map 2, unturned {verdict.worst.unturned:.2f}"
    )


def _figures(verdict: Verdict) -> str:
    fits = str(verdict.fits)
    note = f", which is cryoSPARC's {fits[:-1]}, with a 2-fold on y" if fits.endswith("Y") else ""
    return f"{_correlations(verdict)}; of the groups tried the data fit {fits}{note}"
