"""Maps from true and from predicted poses, compared with each other and with the true map."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from common import run

from cryoforum_plugin.images.fourier import soft_mask
from cryoforum_plugin.maps.volume import read_map
from cryoforum_plugin.reconstruction.fsc import fourier_shell_correlation


def compare_maps(work: Path, symmetry: str, table: str) -> dict[str, Any]:
    """Reconstruct the test third from true poses and from those of `table`; FSC in Fourier shells."""
    true, pixel_A = read_map(work / "true_map.mrc")
    n = len(true)
    mask = soft_mask(n, n / 2 - 6, 6, 3)
    result: dict[str, Any] = {"shell_A": round(n * pixel_A, 2)}
    volumes = {}
    for name, star in (("true_poses", "sim/test.star"), ("predicted_poses", table)):
        run(
            work, "reconstruct", star, "-o", name, "--symmetry", symmetry, "--json", f"{name}.json",
            "--overwrite", "--quiet",
        )  # fmt: skip
        halves = np.genfromtxt(work / name / "fsc.csv", delimiter=",", names=True)["fsc"]
        volumes[name] = read_map(work / name / "map.mrc")[0]
        with_true = fourier_shell_correlation(volumes[name] * mask, true * mask)
        result[name] = json.loads((work / f"{name}.json").read_text()) | {
            "last_shell_halves_0143": last_shell(halves, 0.143),
            "last_shell_true_map_05": last_shell(with_true.numpy(), 0.5),
            "fsc_halves": [round(float(x), 4) for x in halves],
            "fsc_true_map": [round(float(x), 4) for x in with_true],
        }
    both = fourier_shell_correlation(volumes["true_poses"] * mask, volumes["predicted_poses"] * mask)
    result["fsc_between_them"] = [round(float(x), 4) for x in both]
    return result


def last_shell(fsc: np.ndarray[Any, np.dtype[Any]], threshold: float) -> int:
    """The last shell before the FSC first falls below `threshold`."""
    below = np.flatnonzero(fsc[1:] < threshold)
    return int(below[0]) if len(below) else len(fsc) - 1
