"""From picks to a map: the pipeline of docs/tutorial.md on simulated picks with junk.

    python docs/examples/pick_to_map.py -o DIR [--map MAP] [--count 8000] [--junk 0.5] [--epochs N]

Simulated are the images, which of them are junk, the picker's score of each, and the 3D refinement: known poses
plus a random error, and random poses for junk. All else is done by `cryoforum` commands, run in DIR and printed.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
import pandas as pd
import starfile
import torch
from scipy.spatial.transform import Rotation

from cryoforum_plugin.confidence.evaluation import evaluate
from cryoforum_plugin.demo.run import MAP_FILE
from cryoforum_plugin.formats import read_particles
from cryoforum_plugin.images.fourier import soft_mask
from cryoforum_plugin.maps.volume import read_map
from cryoforum_plugin.reconstruction.fsc import fourier_shell_correlation
from cryoforum_plugin.simulation.draw import GOOD, OFF_CENTRE

SEED = 1
SNR = 0.3  # variance of signal and noise at a Nyquist frequency of 12 A; less at finer sampling
LARGEST_BOX_PX = 64  # larger maps are simulated at this box, so that the script stays short
LOW_PASS_PX, TRUTH_AT_PX = 7 / 3, 8 / 3  # pixels a period: of the simulated map's filter, of the last figure
# the picker: scores are normal with s.d. 1, about 2 for a well centred particle and 0 for all else
GOOD_SCORE, STRICT, LOOSE = 2.0, 2.3, 0.0
# the stand-in for a 3D refinement: s.d. about each of three axes, and along x and y
REFINED_DEG, REFINED_A = 1.0, 1.0

ANGLES = ["rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi"]
ORIGINS = ["rlnOriginXAngst", "rlnOriginYAngst"]
SCORE = "rlnAutopickFigureOfMerit"
SETS = {  # file name: what it holds
    "strict": "strict picks, refined (stand-in)",
    "predicted": "all loose picks, predicted poses",
    "selected_auto": "selected with --auto",
    "selected_paper": "selected with the paper's quantile",
    "refined": "selected with --auto, refined (stand-in)",
    "bound": "good loose picks, true poses",
}


def run(folder: Path, *arguments: object) -> None:
    """Print a `cryoforum` command and run it in `folder`."""
    words = [str(argument) for argument in arguments]
    print("\n$ cryoforum", shlex.join(words), flush=True)
    command = [sys.executable, "-m", "cryoforum_plugin.cli.main", *words, "--quiet"]
    subprocess.run(command, cwd=folder, check=True)


def simulate(folder: Path, count: int, junk: float) -> tuple[dict[str, pd.DataFrame], np.ndarray]:
    """Make every pick of DIR/map.mrc with its score; return the tables with the true poses, and the kinds."""
    with mrcfile.open(folder / "map.mrc", header_only=True) as file:
        map_px, map_A = int(file.header.nx), float(file.voxel_size.x)
    box_px = min(map_px - map_px % 2, LARGEST_BOX_PX)
    low_pass_A = LOW_PASS_PX * map_A * map_px / box_px
    run(folder, "simulate", "map.mrc", "-o", "picks", "--count", count, "--junk", junk, "--snr", SNR,
        "--box", box_px, "--low-pass", f"{low_pass_A:.4g}", "--seed", SEED)  # fmt: skip
    tables = starfile.read(folder / "picks" / "particles.star", always_dict=True)
    kinds = pd.read_csv(folder / "picks" / "truth.csv")["cryoforumSimulatedJunk"].to_numpy()
    scores = np.random.default_rng(SEED).normal(GOOD_SCORE * (kinds == GOOD), 1.0)
    tables["particles"][SCORE] = scores
    return tables, kinds


def refined(particles: pd.DataFrame, good: np.ndarray, seed: int) -> pd.DataFrame:
    """Stand in for a 3D refinement: true poses with an error for the `good` rows `(n,)`, random ones else."""
    rng, n = np.random.default_rng(seed), len(particles)
    true = Rotation.from_euler("ZYZ", particles[ANGLES].to_numpy(), degrees=True)
    error = Rotation.from_rotvec(np.radians(REFINED_DEG) * rng.standard_normal((n, 3)))
    pose = np.where(good[:, None], (true * error).as_quat(), Rotation.random(n, rng=rng).as_quat())
    result = particles.copy()
    result[ANGLES] = Rotation.from_quat(pose).as_euler("ZYZ", degrees=True)
    result[ORIGINS] += REFINED_A * rng.standard_normal((n, 2))
    return result


def pipeline(folder: Path, count: int, junk: float, epochs: int | None) -> list[dict[str, Any]]:
    """Run all steps in `folder`, which holds map.mrc; return a row of figures a set."""
    tables, kinds = simulate(folder, count, junk)
    picks, good = tables["particles"], kinds == GOOD

    def write(name: str, particles: pd.DataFrame) -> None:
        starfile.write({"optics": tables["optics"], "particles": particles}, folder / f"{name}.star")

    strict, loose = (picks[SCORE].to_numpy() >= threshold for threshold in (STRICT, LOOSE))
    print(f"\nstrict picks: score above {STRICT:g}, {strict.sum()}; refined (stand-in): strict.star")
    write("strict", refined(picks[strict], good[strict], SEED))
    run(folder, "train", "strict.star", "-o", "model", "--preset", "fast",
        *([] if epochs is None else ["--epochs", epochs]))  # fmt: skip

    print(f"\nloose picks: score above {LOOSE:g}, {loose.sum()}; without poses or half sets: loose.star")
    write("loose", picks[loose].drop(columns=[*ANGLES, *ORIGINS, "rlnRandomSubset"]))
    run(folder, "predict", "model", "loose.star", "-o", "predicted.star")
    run(folder, "select", "predicted.star", "-o", "selected_auto.star", "--auto")
    run(folder, "select", "predicted.star", "-o", "selected_paper.star",
        "--statistic", "trace", "--quantile", 0.75, "--model", "model")  # fmt: skip

    chosen = starfile.read(folder / "selected_auto.star")["particles"]["rlnImageName"]
    selected = picks["rlnImageName"].isin(chosen).to_numpy()
    write("refined", refined(picks[selected], good[selected], SEED + 1))
    write("bound", picks[loose & good])
    for name in SETS:
        run(folder, "reconstruct", f"{name}.star", "-o", f"map_{name}", "--json", f"map_{name}.json")
    run(folder, "report", ".", "-o", "report.html")

    kind_of = dict(zip(picks["rlnImageName"], kinds.tolist(), strict=True))
    trained_on = set(picks["rlnImageName"][strict])
    print("\n" + new_particles(folder, kind_of, trained_on))
    return [figures(folder, name, kind_of) for name in SETS]


def errors(folder: Path, name: str, keep: np.ndarray) -> dict[str, Any]:
    """Figures of `cryoforum evaluate` for the rows `keep` `(n,)` of a table."""
    truth = read_particles(folder / "picks" / "particles.star", folder)
    return evaluate(read_particles(folder / f"{name}.star", folder)[keep], truth)[0]


def new_particles(folder: Path, kind_of: dict[str, int], trained_on: set[str]) -> str:
    """Say how well particles are predicted that the network did not learn from."""
    names = starfile.read(folder / "predicted.star")["particles"]["rlnImageName"]
    new = np.array([kind_of[name] == GOOD and name not in trained_on for name in names])
    found = errors(folder, "predicted", new)
    return (
        f"good picks that were not trained on: {new.sum()}, median error {found['median_deg']:.2f} deg, "
        f"90 % balls hold {100 * found['coverage_90']:.0f} %"
    )


def figures(folder: Path, name: str, kind_of: dict[str, int]) -> dict[str, Any]:
    """Numbers of one table and its map; junk is what does not show the particle."""
    names = starfile.read(folder / f"{name}.star")["particles"]["rlnImageName"]
    kinds = np.array([kind_of[image] for image in names])
    reconstruction = json.loads((folder / f"map_{name}.json").read_text())
    return {
        "set": SETS[name],
        "picks": len(kinds),
        "good": int((kinds == GOOD).sum()),
        "off-centre": float((kinds == OFF_CENTRE).mean()),
        "junk": float(((kinds != GOOD) & (kinds != OFF_CENTRE)).mean()),
        "error_deg": errors(folder, name, kinds == GOOD)["median_deg"],
        "halves_A": reconstruction["resolution_0143_A"],
        "truth_fsc": fsc_to_truth(folder, f"map_{name}"),
    }


def fsc_to_truth(folder: Path, name: str) -> float:
    """Correlation of the unfiltered map with the true one at TRUTH_AT_PX pixels a period."""
    halves = [mrcfile.read(folder / name / f"half{number}.mrc") for number in (1, 2)]
    made = torch.from_numpy(halves[0] + halves[1])
    volume, _ = read_map(folder / "map.mrc")
    n, box_px = volume.shape[-1], made.shape[-1]
    cut = slice(n // 2 - box_px // 2, n // 2 + box_px // 2)
    transform = torch.fft.fftshift(torch.fft.fftn(torch.fft.ifftshift(volume)))[cut, cut, cut]
    true = torch.fft.fftshift(torch.fft.ifftn(torch.fft.ifftshift(transform)).real).float()
    mask = soft_mask(box_px, box_px / 2 - 6, 6, 3)
    return float(fourier_shell_correlation(made * mask, true * mask)[round(box_px / TRUTH_AT_PX)])


def table(rows: list[dict[str, Any]], pixel_size_A: float) -> str:
    """Return the figures as a Markdown table."""
    lines = [
        "| set | picks | good | off-centre | junk | median error of the good | FSC 0.143 of the halves "
        f"| FSC with the true map at {TRUTH_AT_PX * pixel_size_A:.3g} Å |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['set']} | {row['picks']} | {row['good']} | {100 * row['off-centre']:.1f} % "
        f"| {100 * row['junk']:.1f} % | {row['error_deg']:.2f}° | {row['halves_A']:.1f} Å | {row['truth_fsc']:.3f} |"
        for row in rows
    ]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="a new folder")
    parser.add_argument("--map", type=Path, default=MAP_FILE, help="cubic map [default: the demo's ribosome]")
    parser.add_argument("--count", type=int, default=8000, help="picks, good and junk [default: 8000]")
    parser.add_argument("--junk", type=float, default=0.5, help="share that is no good pick [default: 0.5]")
    parser.add_argument("--epochs", type=int, default=None, help="of training [default: the fast preset's]")
    options = parser.parse_args(arguments)
    if options.output.exists():
        parser.error(f"{options.output} exists already; give a new folder")
    start = time.monotonic()
    options.output.mkdir(parents=True)
    folder = options.output.resolve()
    shutil.copy(options.map, folder / "map.mrc")
    rows = pipeline(folder, options.count, options.junk, options.epochs)
    used = os.times()
    cpu_min = (used.user + used.system + used.children_user + used.children_system) / 60
    pixel_size_A = read_particles(folder / "strict.star", folder).pixel_size_A[0]
    print(
        f"{(time.monotonic() - start) / 60:.1f} minutes, {cpu_min:.1f} of processor time\n\n{table(rows, pixel_size_A)}"
    )
    return rows


if __name__ == "__main__":
    main()
