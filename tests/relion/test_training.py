"""Particles that the real RELION made go through the whole chain, and RELION takes what comes out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import starfile
from chain import TINY, simulate, succeed

from cryoforum_plugin import formats

if TYPE_CHECKING:
    from conftest import Relion


def test_relion_made_particles_train_predict_and_go_back(
    relion: Relion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    simulate(tmp_path, 300)
    relion.run(
        "relion_project", "--i", "map.mrc", "--o", "relion", "--ang", "sim/particles.star", "--ctf", "--add_noise",
        "--white_noise", 0.5, "--angpix", 5, cwd=tmp_path,
    )  # fmt: skip
    succeed("train", "relion.star", "-o", "model", "--quiet", *TINY)
    succeed("predict", "model", "relion.star", "-o", "predicted.star", "--quiet")
    succeed("evaluate", "predicted.star", "relion.star")
    before, after = (
        starfile.read(tmp_path / name)["particles"] for name in ("relion.star", "predicted.star")
    )
    assert before["rlnImageName"].tolist() == after["rlnImageName"].tolist()
    confidence = formats.read_particles(tmp_path / "predicted.star").prediction.confidence
    threshold = float(np.median(confidence))
    relion.run(
        "relion_star_handler", "--i", "predicted.star", "--o", "kept.star", "--select", "rlnParticleFigureOfMerit",
        "--minval", threshold, "--maxval", 1, cwd=tmp_path,
    )  # fmt: skip
    kept = starfile.read(tmp_path / "kept.star")["particles"]
    succeed("select", "predicted.star", "-o", "ours.star", "--uneven-halves", "--min-confidence", threshold)
    ours = starfile.read(tmp_path / "ours.star")["particles"]
    assert kept["rlnImageName"].tolist() == ours["rlnImageName"].tolist()
    relion.run(
        "relion_reconstruct", "--i", "ours.star", "--o", "ours.mrc", "--ctf", "--fom_weighting", cwd=tmp_path
    )
    assert (tmp_path / "ours.mrc").stat().st_size > 32**3 * 4
