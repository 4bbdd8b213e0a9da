"""A target as users write it: how many may be how far off."""

from __future__ import annotations

import re

from cryoforum_plugin.errors import SettingsError


def parse_target(text: str) -> tuple[float, float]:
    """(fraction, degrees) of "5%:10" or "0.05:10". Raises SettingsError for anything else."""
    found = re.fullmatch(r"\s*([0-9.]+)\s*(%?)\s*:\s*([0-9.]+)\s*", text)
    try:
        fraction, angle_deg = (float(found[i]) for i in (1, 3)) if found else (-1.0, -1.0)
    except ValueError:
        fraction, angle_deg = -1.0, -1.0
    if found and found[2]:
        fraction /= 100
    if not (0 < fraction < 1 and 0 < angle_deg < 180):
        raise SettingsError(
            f"{text!r} is no target; write for example 5%:10, or 0.05:10, for at most 5 % that are more than 10 degrees off"
        )
    return fraction, angle_deg
