"""The steps of `cryoforum demo`, each the command a user would type."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cryoforum_plugin import formats
from cryoforum_plugin.confidence.evaluation import angular_errors
from cryoforum_plugin.demo.pictures import summary_picture
from cryoforum_plugin.geometry import symmetry_group
from cryoforum_plugin.simulation.draw import PURE_NOISE, WRONG_PARTICLE

MAP_FILE = Path(__file__).parent / "ribosome70S_4v5a_64px_6A.mrc"
OUTPUTS = (
    "training", "new", "model", "predicted.star", "selected.star", "rejected.star", "prediction.json", "selection.json", "evaluation.json",
    "map_predicted", "map_predicted.json", "map_selected", "map_selected.json", "demo.png", "report.html",
)  # fmt: skip
Run = Callable[..., None]


@dataclass(frozen=True)
class DemoSize:
    """How much is simulated and trained: particles, epochs (None = by their number)."""

    count: int = 5000
    epochs: int | None = None


@dataclass(frozen=True)
class DemoResult:
    """What the demonstration found; resolutions at FSC 0.143, errors over all but the junk."""

    median_error_deg: float
    median_error_selected_deg: float
    coverage_90: float
    kept: int
    total: int
    junk_before: float
    junk_after: float
    resolution_all_A: float
    resolution_selected_A: float
    picture: Path
    report: Path


def run_demo(folder: Path, size: DemoSize, seed: int, run: Run) -> DemoResult:
    """Simulate, train, predict, select, evaluate, reconstruct and report into `folder`.

    run : called with the arguments of each `cryoforum` command; raises when the command fails.
    Half of the particles are for training and clean. Of the rest, the new ones, 10 % each are pure noise,
    another particle, and far off-centre.
    """
    train, new = folder / "training", folder / "new"
    common = ["--snr", "0.3", "--low-pass", "14"]  # as noisy as an SNR of 0.075 at half the pixel size
    run("simulate", MAP_FILE, "-o", train, "--count", size.count // 2, "--seed", seed, *common)
    junk = ["--junk", 0.3]
    run("simulate", MAP_FILE, "-o", new, "--count", size.count // 2, "--seed", seed + 1, *junk, *common)
    options = ["--preset", "fast", "--seed", seed]
    options += [] if size.epochs is None else ["--epochs", size.epochs]
    run("train", train / "particles.star", "-o", folder / "model", *options)
    predicted, selected = folder / "predicted.star", folder / "selected.star"
    run(
        "predict",
        folder / "model",
        new / "particles.star",
        "-o",
        predicted,
        "--json",
        folder / "prediction.json",
    )
    others = ["--rejected", folder / "rejected.star", "--json", folder / "selection.json"]
    run("select", predicted, "-o", selected, "--auto", *others)
    run("evaluate", predicted, new / "particles.star", "--json", folder / "evaluation.json")
    for table in (predicted, selected):
        output = folder / f"map_{table.stem}"
        run("reconstruct", table, "-o", output, "--json", f"{output}.json")
    return _conclude(folder, new, run)


def _conclude(folder: Path, new: Path, run: Run) -> DemoResult:
    truth_rows = np.genfromtxt(new / "truth.csv", delimiter=",", names=True, dtype=None, encoding="utf-8")
    # off-centre particles are not counted as junk: they are recentred and predicted
    junk = np.isin(truth_rows["cryoforumSimulatedJunk"], (PURE_NOISE, WRONG_PARTICLE))
    predicted = formats.read_particles(folder / "predicted.star")
    selected = formats.read_particles(folder / "selected.star")
    chosen = np.isin(predicted.slice_index, selected.slice_index)
    truth = formats.read_particles(new / "particles.star")
    error_deg = np.degrees(
        angular_errors(predicted.require_rotation(), truth.require_rotation(), symmetry_group("C1"))
    )
    assert predicted.prediction is not None
    assert predicted.prediction.credible_radius_90_deg is not None
    inside = error_deg <= predicted.prediction.credible_radius_90_deg
    picture, report = folder / "demo.png", folder / "report.html"
    summary_picture(folder, predicted, chosen, junk, error_deg, picture)
    run("report", folder, "-o", report)
    resolution = {
        name: json.loads((folder / f"map_{name}.json").read_text())["resolution_0143_A"]
        for name in ("predicted", "selected")
    }
    return DemoResult(
        median_error_deg=float(np.median(error_deg[~junk])),
        median_error_selected_deg=float(np.median(error_deg[chosen & ~junk])),
        coverage_90=float(inside[~junk].mean()),
        kept=len(selected),
        total=len(predicted),
        junk_before=float(junk.mean()),
        junk_after=float(junk[chosen].mean()),
        resolution_all_A=resolution["predicted"],
        resolution_selected_A=resolution["selected"],
        picture=picture,
        report=report,
    )
