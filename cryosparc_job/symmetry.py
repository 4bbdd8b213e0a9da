"""Point groups under cryoSPARC's names: as RELION's but for Dn, whose 2-fold lies on y instead of x.

Sources: a developer on discuss.cryosparc.com/t/12482 (T as RELION's, Dn with the 2-fold on y), the axes of I1
and I2 in github.com/cryoem-uoft/cryosparc-issues/issues/127, and Scipion's table of cryoSPARC's names.
"""

from __future__ import annotations

import re


def from_cryosparc(name: str) -> str:
    """Our name of the group that cryoSPARC calls `name`: D7 is D7Y; for even n both Dn are the same group."""
    key = name.strip().upper()
    return f"{key}Y" if _odd(key) else key


def to_cryosparc(name: str) -> str | None:
    """What cryoSPARC calls our group `name`, None where it has none with these axes (D7, I3, I4)."""
    key = name.strip().upper()
    if key in ("I3", "I4") or _odd(key):
        return None
    return "I2" if key == "I" else key.removesuffix("Y")


def _odd(key: str) -> bool:
    """Whether `key` is Dn with n odd."""
    match = re.fullmatch(r"D([0-9]+)", key)
    return match is not None and int(match[1]) % 2 == 1
