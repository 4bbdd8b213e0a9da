"""A reconstruction on disk: half1.mrc, half2.mrc, map.mrc, fsc.csv."""

from __future__ import annotations

import csv
from pathlib import Path

import mrcfile
import numpy as np
from torch import Tensor

from cryoforum_plugin.atomic import atomic_directory
from cryoforum_plugin.reconstruction.reconstruct import Reconstruction

OUTPUTS = ("half1.mrc", "half2.mrc", "map.mrc", "fsc.csv")


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


def write_reconstruction(result: Reconstruction, path: Path, overwrite: bool = False) -> None:
    """Write maps and FSC into folder `path`, whole or not at all. Raises OutputError."""
    with atomic_directory(path, OUTPUTS, overwrite) as folder:
        for name, volume in (("half1", result.half1), ("half2", result.half2), ("map", result.map)):
            write_map(folder / f"{name}.mrc", volume, result.pixel_size_A)
        write_fsc(folder / "fsc.csv", result.fsc, result.pixel_size_A)
