"""What four choices of the training do: wrong labels, modes, rare views, the check of the symmetry.

    python benchmarks/training_choices.py labels|modes|views|symmetry [--output FILE.json] [--work-dir DIR]

Small, from a user's commands, one training each: a network of 8 channels on molecules of blobs at 32 px, built here.
labels: trained on poses a part of which is replaced by random ones. modes: on a molecule that is C2 but for one
blob, and on one without symmetry. views: three views in four lie near one axis, tested on all. symmetry: maps of
`CRYOFORUM_SHARED_DATA`, 300 particles each, with point groups that they have and others.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
from common import RESULTS, SHARED, command_line, machine, run, run_process, write_results
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from cryoforum_plugin import formats

Array = NDArray[Any]
NETWORK = (
    "--set", "training.learning_rate=1e-2", "--set", "network.channels=8", "--set", "network.features=16",
    "--set", "network.hidden=32", "--quiet",
)  # fmt: skip
NEAR_DEG = 20.0
FREQUENT = 0.9  # |cosine| between a frequent view and the axis
GROUPS = (
    ("20S_3c91_D7_128px_2A.mrc", 0.1, ("D7", "D7Y", "C4")),
    ("betagal_experimental_D2_100px_3.54A.mrc", 0.1, ("D2", "C4", "O")),
    ("apoferritin_7a4m_O_128px_1.5A.mrc", 0.1, ("O", "T", "I2")),
    ("trpv1_7l2i_C4_128px_1.6A.mrc", 0.05, ("C4", "D4")),
    ("ribosome70S_4v5a_C1_128px_3A.mrc", 0.1, ("C2",)),
)


def blobs(count: int, seed: int = 3) -> Array:
    """Centres `(count, 3)` xyz px in a ball of 9 px."""
    rng = np.random.default_rng(seed)
    direction = rng.standard_normal((count, 3))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    return np.asarray(direction * 9 * rng.random((count, 1)) ** (1 / 3))


def simulate(work: Path, name: str, centres: Array, count: int, snr: float) -> None:
    """Write work/name/{train,test}.star of a molecule of blobs at `centres` `(n, 3)`, 32 px of 5 A."""
    axis = np.arange(32) - 16
    x, y, z = (np.exp(-((axis - c[:, None]) ** 2) / (2 * 1.5**2)) for c in centres.T)
    with mrcfile.new(work / f"{name}.mrc", overwrite=True) as file:
        file.set_data(np.einsum("nz,ny,nx->zyx", z, y, x).astype(np.float32))
        file.voxel_size = 5.0
    run(work, "simulate", f"{name}.mrc", "-o", name, "--count", count, "--snr", snr, "--split", 0.75, 0.25,
        "--quiet", "--overwrite")  # fmt: skip


def train_and_test(
    work: Path, table: str, test: str, name: str, epochs: int, **settings: object
) -> dict[str, Any]:
    """Train on `table`, predict `test` with two views; settings : section__key = value. Return the figures."""
    sets = [
        part for key, value in settings.items() for part in ("--set", f"{key.replace('__', '.')}={value}")
    ]
    steps = [run(work, "train", table, "-o", name, "--epochs", epochs, *NETWORK, *sets, "--overwrite")]
    steps.append(
        run(work, "predict", name, test, "-o", f"{name}.star", "--no-refine", "--quiet", "--overwrite")
    )
    run(work, "evaluate", f"{name}.star", test, "--json", f"{name}.json", "--overwrite")
    found = json.loads((work / f"{name}.json").read_text())
    kept = ("median_deg", "mean_deg", "p90_deg", "coverage_90")
    calibration = json.loads((work / name / "calibration.json").read_text())
    metrics = np.genfromtxt(work / name / "metrics.csv", delimiter=",", names=True)
    return {
        "settings": {key.replace("__", "."): value for key, value in settings.items()},
        "seconds": [step["seconds"] for step in steps],
        **{key: round(found[key], 3) for key in kept},
        "wrong_labels": round(calibration["wrong_labels"], 4),
        "validation_loss": round(float(metrics["validation_loss"].min()), 3),
    }


def rotations(path: Path) -> Rotation:
    return Rotation.from_quat(formats.read_particles(path).require_rotation())


def labels(work: Path) -> list[dict[str, Any]]:
    """Training on 1,500 particles at SNR 1, none or a tenth of their poses wrong, with and without allowing for it."""
    simulate(work, "sim", blobs(12), 2000, 1.0)
    particles = formats.read_particles(work / "sim" / "train.star")
    rng = np.random.default_rng(0)
    bad = rng.random(len(particles)) < 0.1
    rotation = particles.require_rotation().copy()
    rotation[bad] = Rotation.random(int(bad.sum()), rng=rng).as_quat()
    wrong = particles.with_poses(rotation, particles.shift_A)
    formats.write_particles(wrong, work / "sim" / "wrong.star", overwrite=True)
    rows = []
    for table, part in (("train", 0.0), ("wrong", float(bad.mean()))):
        for outliers, simulated in ((0, 0.75), (0.02, 0.75), (0.02, 1)):
            name = f"{table}_{outliers}_{simulated}"
            chosen = {"loss__outliers": outliers, "training__simulated": simulated}
            row = train_and_test(work, f"sim/{table}.star", "sim/test.star", name, 14, **chosen)
            suspects = work / name / "suspect_labels.csv"
            if suspects.exists():
                with open(suspects, newline="") as file:
                    found = np.array([int(line["row"]) for line in csv.DictReader(file)], dtype=int)
                row["implausible"] = len(found)
                row["implausible_and_wrong"] = int(bad[found].sum()) if part else 0
            rows.append({"wrong_poses": round(part, 4), "of_particles": len(bad), **row})
    return rows


def modes(work: Path) -> list[dict[str, Any]]:
    """One and two modes on a molecule of seven pairs of blobs and one more, and on one of twelve blobs."""
    half = blobs(7)
    pseudo = np.concatenate([half, half * [-1, -1, 1], [[4.0, 3.0, 2.0]]])
    rows = []
    for name, centres, snr in (("pseudo", pseudo, 0.5), ("asymmetric", blobs(12), 1.0)):
        simulate(work, name, centres, 2000, snr)
        for count in (1, 2):
            model = f"{name}_{count}"
            row = train_and_test(
                work, f"{name}/train.star", f"{name}/test.star", model, 14, network__modes=count
            )
            known, found = (
                rotations(work / name / "test.star"),
                formats.read_particles(work / f"{model}.star"),
            )
            near = angles_deg(Rotation.from_quat(found.require_rotation()), known) < NEAR_DEG
            row["first_near"] = round(float(near.mean()), 3)
            second = found.prediction
            if second is not None and second.alternative_rotation is not None:
                assert second.alternative_weight is not None
                has = second.alternative_weight > 0
                other = np.where(has[:, None], second.alternative_rotation, [0, 0, 0, 1])
                near |= has & (angles_deg(Rotation.from_quat(other), known) < NEAR_DEG)
            row["any_near"] = round(float(near.mean()), 3)
            rows.append({"molecule": name, "snr": snr, **row})
    return rows


def angles_deg(found: Rotation, known: Rotation) -> Array:
    return np.asarray(np.degrees((found * known.inv()).magnitude()))


def cosine(rotation: Rotation) -> Array:
    """|cosine| `(n,)` between each view and the z axis."""
    return np.asarray(np.abs(rotation.as_matrix()[:, 2, 2]))


def views(work: Path) -> list[dict[str, Any]]:
    """Training on preferred views, those frequent and rare tested apart."""
    simulate(work, "sim", blobs(12), 10_000, 0.5)
    particles = formats.read_particles(work / "sim" / "train.star")
    near = cosine(rotations(work / "sim" / "train.star")) > FREQUENT
    kept = np.flatnonzero(near | (np.random.default_rng(0).random(len(near)) < 0.04))
    formats.write_particles(particles[kept], work / "sim" / "preferred.star", overwrite=True)
    test = formats.read_particles(work / "sim" / "test.star")[np.arange(1500)]
    formats.write_particles(test, work / "sim" / "even.star", overwrite=True)
    known = rotations(work / "sim" / "even.star")
    frequent = cosine(known) > FREQUENT
    rows = []
    for simulated in (0.75, 0):
        for power in (0, 1):
            name = f"preferred_{simulated}_{power}"
            chosen = {"training__simulated": simulated, "training__balance_views": power}
            row = train_and_test(work, "sim/preferred.star", "sim/even.star", name, 12, **chosen)
            error = angles_deg(rotations(work / f"{name}.star"), known)
            for part, of in (("rare", ~frequent), ("frequent", frequent)):
                row[f"{part}_median_deg"] = round(float(np.median(error[of])), 2)
                row[f"{part}_mean_deg"] = round(float(error[of].mean()), 2)
            rows.append({"particles": len(kept), "of_frequent_views": int(near[kept].sum()), **row})
    return rows


def symmetry(work: Path) -> list[dict[str, Any]]:
    """What the check says of groups that maps have and others; 300 particles each."""
    rows = []
    for name, snr, groups in GROUPS:
        if not (SHARED / "maps" / name).exists():
            raise SystemExit(f"no map {SHARED / 'maps' / name}; set CRYOFORUM_SHARED_DATA")
        run(work, "simulate", SHARED / "maps" / name, "-o", "sim", "--count", 300, "--snr", snr, "--quiet",
            "--overwrite")  # fmt: skip
        rows += [{"map": name, "snr": snr, "asked_for": group, **asked(work, group)} for group in groups]
    return rows


def asked(work: Path, group: str) -> dict[str, Any]:
    """Verdict on the particles in work/sim with `group`: correlation turned and unturned, and what fits."""
    command = [
        sys.executable, "-m", "cryoforum_plugin.cli.main", "train", "sim/particles.star", "-o", "checked",
        "--symmetry", group, "--epochs", "1", *NETWORK, "--overwrite",
    ]  # fmt: skip
    log = work / "checked" / "log.txt"
    log.unlink(missing_ok=True)
    with open(work / "errors.txt", "wb") as file:
        try:
            run_process(command, work, stderr=file)
        except SystemExit:  # refused
            log = work / "errors.txt"
    text = " ".join(log.read_text().split())
    found = re.search(r"correlates (\S+) with half map 2, unturned ([\d.]+)(?:; .* data fit (\w+))?", text)
    if found is None:
        raise SystemExit(text)
    fits = {"refused": True, "fits": found[3]} if log.name == "errors.txt" else {"refused": False}
    return {"turned": float(found[1]), "unturned": float(found[2].rstrip(".")), **fits}


def main() -> None:
    kinds = {"labels": labels, "modes": modes, "views": views, "symmetry": symmetry}
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=kinds)
    parser.add_argument("--output", type=Path, default=None)
    parser.add_argument("--work-dir", type=Path, default=None)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = arguments.work_dir or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        rows = kinds[arguments.what](work)
    output = arguments.output or RESULTS / f"training_choices_{arguments.what}.json"
    content = {"command": command_line(), "machine": machine(), "rows": rows}
    print(write_results(output, content, work))


if __name__ == "__main__":
    main()
