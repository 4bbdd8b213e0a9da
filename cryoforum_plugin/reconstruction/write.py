"""A reconstruction on disk: half1.mrc, half2.mrc, map.mrc, fsc.csv, fsc_cones.csv."""

from __future__ import annotations

import csv
from pathlib import Path

import mrcfile
import numpy as np
from torch import Tensor

from cryoforum_plugin.atomic import atomic_directory
from cryoforum_plugin.reconstruction.cone_fsc import ConeFsc
from cryoforum_plugin.reconstruction.reconstruct import Reconstruction

OUTPUTS = ("half1.mrc", "half2.mrc", "map.mrc", "fsc.csv", "fsc_cones.csv")


def write_map(path: Path, volume: Tensor, pixel_size_A: float) -> None:
    """Write a zyx map `(n, n, n)` as MRC, float32."""
    with mrcfile.new(path, overwrite=True) as file:
        file.set_data(volume.detach().cpu().numpy().astype(np.float32))
        file.voxel_size = pixel_size_A


def write_fsc(path: Path, fsc: Tensor, pixel_size_A: float) -> None:
    """Write a row a shell: number, frequency in 1/Å, resolution in Å, FSC."""
    box_A = 2 * (len(fsc) - 1) * pixel_size_A
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["shell", "frequency_per_A", "resolution_A", "fsc"])
        for shell, value in enumerate(fsc.tolist()):
            resolution = f"{box_A / shell:.4f}" if shell else ""
            writer.writerow([shell, f"{shell / box_A:.6f}", resolution, f"{value:.5f}"])


def write_cones(path: Path, cones: ConeFsc) -> None:
    """Write a row a direction: rot and tilt in degrees, as RELION's of a view along it, resolution in Å, FSC by shell."""
    x, y, z = cones.directions.T
    rot, tilt = np.degrees(np.arctan2(y, x)), np.degrees(np.arccos(z))
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        shells = [f"fsc_{shell}" for shell in range(1, cones.fsc.shape[1])]
        writer.writerow(["rot_deg", "tilt_deg", "resolution_A", *shells])
        for row, curve in enumerate(cones.fsc.tolist()):
            values = [f"{value:.4f}" for value in curve[1:]]
            writer.writerow(
                [f"{rot[row]:.2f}", f"{tilt[row]:.2f}", f"{cones.resolution_A[row]:.3f}", *values]
            )


def write_reconstruction(result: Reconstruction, path: Path, overwrite: bool = False) -> None:
    """Write maps and FSC into folder `path`, whole or not at all. Raises OutputError."""
    with atomic_directory(path, OUTPUTS, overwrite) as folder:
        for name, volume in (("half1", result.half1), ("half2", result.half2), ("map", result.map)):
            write_map(folder / f"{name}.mrc", volume, result.pixel_size_A)
        write_fsc(folder / "fsc.csv", result.fsc, result.pixel_size_A)
        write_cones(folder / "fsc_cones.csv", result.cones)
