"""Our projections and reconstructions against RELION's programs, on the same files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import mrcfile
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor

from cryoforum_plugin.cli.main import main
from cryoforum_plugin.images.fourier import soft_mask
from cryoforum_plugin.reconstruction.fsc import fourier_shell_correlation

if TYPE_CHECKING:
    from tests.conftest import Relion

BOX, PIXEL_A = 32, 5.0


def blobs(size: int, n: int = 20, seed: int = 1) -> Tensor:
    """Volume `(size, size, size)` zyx of Gaussian blobs of s.d. 1.5 voxels inside a third of the box."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((n, 3))
    centres *= size / 3.5 * rng.random((n, 1)) ** (1 / 3) / np.linalg.norm(centres, axis=1, keepdims=True)
    axis = np.arange(size) - size // 2
    x, y, z = (np.exp(-((axis - c[:, None]) ** 2) / 4.5) for c in centres.T)
    return torch.from_numpy(np.einsum("nz,ny,nx->zyx", z, y, x)).float()


def read(path: str) -> Tensor:
    with mrcfile.open(path, permissive=True) as file:
        return torch.from_numpy(np.array(file.data, dtype=np.float32))


def masked_fsc(first: str, second: str) -> Tensor:
    """FSC inside a sphere around the blobs: outside, the two programs weight noise differently."""
    mask = soft_mask(BOX, 11, 3, 3)
    return fourier_shell_correlation(read(first) * mask, read(second) * mask)


def cryoforum(*arguments: object) -> None:
    result = CliRunner().invoke(main, [*map(str, arguments), "--quiet"])
    assert result.exit_code == 0, result.output


@pytest.fixture
def map_file(project: Path) -> str:
    """Write blobs.mrc into the current, empty folder."""
    with mrcfile.new(project / "blobs.mrc") as file:
        file.set_data(blobs(BOX).numpy())
        file.voxel_size = PIXEL_A
    return "blobs.mrc"


def test_relion_projects_the_same_images(map_file: str, relion: Relion, project: Path) -> None:
    """Same map, poses, shifts and CTF: pose, shift, centre, sign and CTF conventions all at once."""
    cryoforum("simulate", map_file, "-o", "sim", "--count", 60, "--snr", "inf")
    relion.run(
        "relion_project",
        "--i",
        map_file,
        "--o",
        "theirs",
        "--ang",
        "sim/particles.star",
        "--ctf",
        cwd=project,
    )
    ours, theirs = read("sim/particles.mrcs").flatten(1), read("theirs.mrcs").flatten(1)
    ours, theirs = (i - i.mean(1, keepdim=True) for i in (ours, theirs))
    correlation = (ours * theirs).sum(1) / (ours.norm(dim=1) * theirs.norm(dim=1))
    assert correlation.min() > 0.995


def test_relion_reconstructs_the_same_map_and_half_maps(map_file: str, relion: Relion, project: Path) -> None:
    cryoforum("simulate", map_file, "-o", "sim", "--count", 400, "--snr", 1)
    cryoforum("reconstruct", "sim/particles.star", "-o", "ours", "--no-normalise")
    for subset, name in ((None, "map"), (1, "half1"), (2, "half2")):
        which = [] if subset is None else ["--subset", subset]
        relion.run(
            "relion_reconstruct",
            "--i",
            "sim/particles.star",
            "--o",
            f"{name}.mrc",
            "--ctf",
            *which,
            cwd=project,
        )
        assert (
            masked_fsc(f"ours/{name}.mrc", f"{name}.mrc")[1:9].min() > 0.985
        )  # to 20 Å; the blobs end there


def test_relion_reconstructs_symmetry_the_same(map_file: str, relion: Relion, project: Path) -> None:
    cryoforum("simulate", map_file, "-o", "sim", "--count", 100, "--snr", 1)
    cryoforum("reconstruct", "sim/particles.star", "-o", "ours", "--no-normalise", "--symmetry", "D3")
    relion.run(
        "relion_reconstruct",
        "--i",
        "sim/particles.star",
        "--o",
        "all.mrc",
        "--ctf",
        "--sym",
        "D3",
        cwd=project,
    )
    assert masked_fsc("ours/map.mrc", "all.mrc")[1:8].min() > 0.98
