"""Whether uncertainties keep their word: coverage, ranking, junk, and data unlike those of the training.

    python benchmarks/uncertainty.py coverage --protocol ribosome|betagal|t20s_real [--model DIR]
    python benchmarks/uncertainty.py mixed [--preset fast]
    python benchmarks/uncertainty.py junk [--model DIR]
    python benchmarks/uncertainty.py alarm [--model DIR] [--seeds 10]

Particles are simulated as in `physical_limit.py` (`mixed`: the SNR of each drawn between 0.02 and 0.4, evenly in its
logarithm; the noise is the same, the contrast differs), with other seeds than those of the training. A model that is
not given is trained first, as there. Every step is a `cryoforum` command in a process of its own.
"""

from __future__ import annotations

import argparse
import csv
import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import (
    COUNT,
    RESULTS,
    TRAINING,
    VALIDATION,
    CommandFailed,
    command_line,
    machine,
    run,
    write_results,
)
from limit_maps import last_shell
from numpy.typing import NDArray
from physical_limit import PROTOCOLS, SEED, Protocol, simulation
from scipy.ndimage import affine_transform
from scipy.spatial.transform import Rotation

from cryoforum_plugin.confidence.copies import angular_errors
from cryoforum_plugin.confidence.matching import match_rows
from cryoforum_plugin.confidence.ranking import auroc
from cryoforum_plugin.formats import read_particles, write_particles
from cryoforum_plugin.geometry import symmetry_group
from cryoforum_plugin.maps.volume import read_map, resample
from cryoforum_plugin.particles import ParticleSet
from cryoforum_plugin.simulation.draw import Draw, SimulationSettings, draw_particles
from cryoforum_plugin.simulation.simulate import Simulator
from cryoforum_plugin.simulation.write import write_simulation

SNR_RANGE = (0.02, 0.4)
JUNK_KINDS = {1: "ice", 2: "off-centre", 3: "phase-randomised particle"}
JUNK_PART = 0.2
RATCHET_DEG = 8.0  # of the smaller part of the ribosome about the long axis, for another state
WRONG_PIXEL = 1.03
KINDS = {"network": ["--no-refine"], "refined": ["--refine"]}


class FixedNoise(Simulator):
    """Noise of a given s.d., whatever the particle."""

    std = 1.0

    def noise_std(self, draw: Draw) -> float:
        """What it was set to."""
        return self.std


class MixedSimulator(FixedNoise):
    """Particles of different contrast in the same noise."""

    def signal(self, draw: Draw, rows: NDArray[np.int64]) -> torch.Tensor:
        """As the parent's, each image times its own contrast."""
        low, high = np.log(SNR_RANGE)
        generator = np.random.default_rng(self.settings.seed)
        snr = np.exp(generator.uniform(low, high, len(draw)))
        contrast = torch.from_numpy(np.sqrt(snr / self.settings.snr)[rows]).float()
        return super().signal(draw, rows) * contrast[:, None, None]


def trained(work: Path, protocol: Protocol, options: argparse.Namespace) -> Path:
    """The model that is given, else one trained in the work folder on the training set of `physical_limit.py`."""
    if options.model is not None:
        return Path(options.model).resolve()
    simulator, draw = simulation(protocol, options.count, 0.1)
    write_simulation(
        simulator, draw, work / "sim", split=(TRAINING + VALIDATION, 0.33), overwrite=True, data_root=work
    )
    return train(work, protocol.symmetry, options)


def train(work: Path, symmetry: str, options: argparse.Namespace) -> Path:
    """Train on sim/train.star."""
    fraction = round(VALIDATION / (TRAINING + VALIDATION), 4)
    run(work, "train", "sim/train.star", "-o", "model", "--symmetry", symmetry, "--preset", options.preset,
        "--validation-fraction", fraction, "--overwrite", "--quiet",
        *([] if options.epochs is None else ["--epochs", options.epochs]))  # fmt: skip
    return work / "model"


def predicted(work: Path, model: Path, table: str, name: str, *extra: object) -> dict[str, Any]:
    """Predict a table into NAME.star; return the figures of --json."""
    run(
        work,
        "predict",
        model,
        table,
        "-o",
        f"{name}.star",
        "--json",
        f"{name}_run.json",
        "--overwrite",
        "--quiet",
        *extra,
    )
    found: dict[str, Any] = json.loads((work / f"{name}_run.json").read_text())
    return found


def judged(work: Path, name: str, truth: str, symmetry: str) -> dict[str, Any]:
    """Figures of `cryoforum evaluate`, with its reliability, and what filtering by different numbers gains."""
    run(
        work,
        "evaluate",
        f"{name}.star",
        truth,
        "--symmetry",
        symmetry,
        "--json",
        f"{name}.json",
        "--overwrite",
        "--quiet",
    )
    figures: dict[str, Any] = json.loads((work / f"{name}.json").read_text())
    found, true = read_particles(work / f"{name}.star", work), read_particles(work / truth, work)
    known = true.require_rotation()[match_rows(found, true)]
    error = angular_errors(found.require_rotation(), known, symmetry_group(symmetry))
    p = found.prediction
    assert p is not None
    numbers = {"expected error": p.expected_error_deg, "lambda_max": p.lambda_max, "trace": p.trace}
    figures["mean_rad_of_best_75_percent"] = {
        key: float(error[np.argsort(values)[: round(0.75 * len(error))]].mean())
        for key, values in numbers.items()
        if values is not None
    }
    figures["quintile_coverage_90"] = [group["coverage_90"] for group in figures["reliability"]["quintiles"]]
    return figures


def coverage(work: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Unseen particles of the same kind."""
    protocol = PROTOCOLS[options.protocol]
    model = trained(work, protocol, options)
    simulator, draw = simulation(protocol, options.test_count, 0.1, SEED + 100)
    write_simulation(simulator, draw, work / "new", overwrite=True, data_root=work)
    result = {}
    for name, extra in KINDS.items():
        alarms = predicted(work, model, "new/particles.star", name, *extra)["unlikeness"]
        result[name] = judged(work, name, "new/particles.star", protocol.symmetry) | {"unlikeness": alarms}
    return result


def mixed(work: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Particles of different signal-to-noise ratios: ranking."""
    for name, seed, count in (
        ("sim", SEED, round((TRAINING + VALIDATION) * options.count)),
        ("new", SEED + 1, options.test_count),
    ):
        settings = SimulationSettings(count=count, snr=0.1, low_pass_A=11.0, seed=seed)
        simulator = MixedSimulator(*read_map(PROTOCOLS["ribosome"].map), settings)
        draw = draw_particles(settings, simulator.pixel_size_A, simulator.box_px)
        plain = Simulator(*read_map(PROTOCOLS["ribosome"].map), settings)
        simulator.std = plain.noise_std(draw)
        write_simulation(simulator, draw, work / name, split=(0.999, 0.001), overwrite=True, data_root=work)
    model = train(work, "C1", options) if options.model is None else Path(options.model).resolve()
    result = {}
    for name, extra in KINDS.items():
        predicted(work, model, "new/particles.star", name, *extra)
        result[name] = judged(work, name, "new/particles.star", "C1")
    return result


def other_particle() -> torch.Tensor:
    """beta-galactosidase in the ribosome's box, as dense as the ribosome."""
    ribosome, pixel_A = read_map(PROTOCOLS["ribosome"].map)
    volume, own_A = read_map(PROTOCOLS["betagal"].map)
    volume = resample(volume, own_A, len(ribosome), pixel_A).clamp(min=0)
    return volume * float(ribosome.max() / volume.max())


def other_state() -> torch.Tensor:
    """The ribosome with the smaller end of its long axis turned about that axis by RATCHET_DEG."""
    volume = read_map(PROTOCOLS["ribosome"].map)[0].numpy()
    n = len(volume)
    dense = np.argwhere(volume > 0.1 * volume.max())[:, ::-1] - n // 2  # xyz
    axis = np.linalg.svd(dense - dense.mean(axis=0), full_matrices=False)[2][0]
    height = np.stack(np.meshgrid(*[np.arange(n) - n // 2] * 3, indexing="ij")[::-1], axis=-1) @ axis
    part = 1 / (1 + np.exp(-(height - np.quantile(dense @ axis, 0.65)) / 1.5))
    turn = Rotation.from_rotvec(np.radians(RATCHET_DEG) * axis).as_matrix()[::-1, ::-1].T
    centre = np.full(3, n // 2)
    moved = affine_transform(volume * part, turn, offset=centre - turn @ centre, order=1)
    return torch.from_numpy((volume * (1 - part) + moved).astype(np.float32))


def broken() -> torch.Tensor:
    """Half of the ribosome: what lies on one side of a plane through its middle, softly cut."""
    volume = read_map(PROTOCOLS["ribosome"].map)[0]
    z = torch.arange(len(volume))[:, None, None] - len(volume) // 2
    return volume * torch.sigmoid(z / 1.5)


class Neighbours(FixedNoise):
    """A second particle that overlaps the first, half a box away."""

    def signal(self, draw: Draw, rows: NDArray[np.int64]) -> torch.Tensor:
        """As the parent's, with another one of the batch."""
        images = super().signal(draw, rows)
        n = images.shape[-1]
        others = images.flip(0).roll((n // 3, n // 3), (1, 2))
        others[:, : n // 6] = 0  # what was rolled round
        others[:, :, : n // 6] = 0
        return images + others


class CarbonEdge(FixedNoise):
    """No particle, and a straight edge as bright as one across the image, at a random angle."""

    def signal(self, draw: Draw, rows: NDArray[np.int64]) -> torch.Tensor:
        """The edge."""
        images = super().signal(draw, rows)
        n = images.shape[-1]
        angle = torch.from_numpy(np.random.default_rng(int(rows[0])).uniform(0, 2 * np.pi, len(rows))).float()
        y, x = torch.meshgrid(*[torch.arange(n, dtype=torch.float32) - n // 2] * 2, indexing="ij")
        across = angle.cos()[:, None, None] * x + angle.sin()[:, None, None] * y
        return torch.sigmoid(across) * images.std() * 2


def set_of(
    work: Path,
    name: str,
    volume: torch.Tensor | None,
    seed: int,
    count: int,
    make: type[FixedNoise] = FixedNoise,
    **more: Any,
) -> ParticleSet:
    """Simulate `count` ribosomes, or other particles in their noise, into a folder; return the table."""
    settings = SimulationSettings(count=count, snr=0.1, low_pass_A=11.0, seed=seed, **more)
    ribosome, pixel_A = read_map(PROTOCOLS["ribosome"].map)
    own = Simulator(ribosome, pixel_A, replace(settings, junk=0.0))
    simulator = make(ribosome if volume is None else volume, pixel_A, settings)
    draw = draw_particles(settings, simulator.pixel_size_A, simulator.box_px)
    simulator.std = own.noise_std(replace(draw, junk=np.zeros_like(draw.junk)))
    write_simulation(simulator, draw, work / name, overwrite=True, data_root=work)
    return read_particles(work / name / "particles.star", work)


def junk(work: Path, options: argparse.Namespace) -> dict[str, Any]:
    """A fifth of junk: scores, and the map of what --auto keeps beside that of the good."""
    model = trained(work, PROTOCOLS["ribosome"], options)
    n = options.test_count
    each = round(JUNK_PART * n / len({*JUNK_KINDS, *OTHER_JUNK}))
    size = n - each * len(OTHER_JUNK)
    set_of(work, "picks", None, SEED + 200, size, junk=each * len(JUNK_KINDS) / size)
    for number, (kind, (volume, make)) in enumerate(OTHER_JUNK.items()):
        set_of(work, kind, None if volume is None else volume(), SEED + 201 + number, each, make)
    with open(work / "picks" / "truth.csv", newline="") as file:
        kinds = [int(row["cryoforumSimulatedJunk"]) for row in csv.DictReader(file)]
    others = [kind for kind in OTHER_JUNK for _ in range(each)]
    names = np.array([JUNK_KINDS.get(kind, "good") for kind in kinds] + others)
    joined = _concatenated(work, ["picks", *OTHER_JUNK])
    write_particles(joined, work / "all.star", overwrite=True, data_root=work)
    write_particles(joined[names == "good"], work / "true_good.star", overwrite=True, data_root=work)
    result: dict[str, Any] = {"good": int((names == "good").sum()), "set": len(names)}
    for name, extra in KINDS.items():
        run_figures = predicted(work, model, "all.star", name, *extra)
        prediction = read_particles(work / f"{name}.star", work).prediction
        assert prediction is not None
        assert prediction.outlier_score is not None
        result[name] = {"unlikeness": run_figures["unlikeness"]}
        for number, score in (
            ("outlier score", prediction.outlier_score),
            ("confidence", 1 - prediction.confidence),
        ):
            result[name][f"AUROC of {number}"] = {
                kind: auroc(
                    score[(names == "good") | (names == kind)],
                    (names == kind)[(names == "good") | (names == kind)],
                )
                for kind in sorted(set(names.tolist()) - {"good"})
            }
    run(work, "select", "refined.star", "-o", "selected.star", "--rejected", "rejected.star", "--auto",
        "--json", "selection.json", "--overwrite", "--quiet")  # fmt: skip
    kept = _names_of(work, "selected.star", "all.star", names)
    result["auto"] = {
        "kept": len(kept),
        "good kept": float((kept == "good").sum() / result["good"]),
        "junk among kept": float((kept != "good").mean()),
    }
    found = read_particles(work / "refined.star", work)
    write_particles(found[names == "good"], work / "refined_good.star", overwrite=True, data_root=work)
    for name in ("selected", "refined_good", "true_good"):
        run(
            work,
            "reconstruct",
            f"{name}.star",
            "-o",
            f"map_{name}",
            "--json",
            f"map_{name}.json",
            "--overwrite",
            "--quiet",
        )
        figures = json.loads((work / f"map_{name}.json").read_text())
        result[f"map of {name}"] = figures | {"last_shell_0143": _last_shell(work / f"map_{name}")}
    return result


def _last_shell(folder: Path) -> int:
    return last_shell(np.genfromtxt(folder / "fsc.csv", delimiter=",", names=True)["fsc"], 0.143)


def _concatenated(work: Path, folders: list[str]) -> ParticleSet:
    from cryoforum_plugin.formats import read_many

    return read_many([work / folder / "particles.star" for folder in folders], work)


def _names_of(work: Path, part: str, whole: str, names: NDArray[np.str_]) -> NDArray[np.str_]:
    rows = match_rows(read_particles(work / part, work), read_particles(work / whole, work))
    return names[rows]


def alarm(work: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Fresh sets of the same kind, and of others: how often the alarm is raised."""
    model = trained(work, PROTOCOLS["ribosome"], options)
    result: dict[str, Any] = {"particles of each set": options.alarm_count}
    kinds: dict[str, Callable[[int], ParticleSet]] = {
        "same kind": lambda seed: set_of(work, "set", None, seed, options.alarm_count),
        "other state": lambda seed: set_of(work, "set", other_state(), seed, options.alarm_count),
        "pixel size 3 % wrong": lambda seed: _with_pixel(
            set_of(work, "set", None, seed, options.alarm_count)
        ),
        "inverted contrast": lambda seed: set_of(
            work, "set", -read_map(PROTOCOLS["ribosome"].map)[0], seed, options.alarm_count
        ),
        "beta-galactosidase": lambda seed: set_of(work, "set", other_particle(), seed, options.alarm_count),
    }
    for kind, make in kinds.items():
        for name, extra in KINDS.items():
            result[f"{kind}, {name}"] = list(_alarms(work, model, make, extra, options.seeds))
            raised = sum(1 for found in result[f"{kind}, {name}"] if found["alarms"])
            print(f"{kind}, {name}: alarm in {raised} of {options.seeds}", flush=True)
    return result


def _with_pixel(particles: ParticleSet) -> ParticleSet:
    return replace(particles, pixel_size_A=particles.pixel_size_A * WRONG_PIXEL, host=None)


def _alarms(
    work: Path, model: Path, make: Callable[[int], ParticleSet], extra: list[str], seeds: int
) -> Iterator[dict[str, Any]]:
    for seed in range(seeds):
        write_particles(make(SEED + 300 + seed), work / "set.star", overwrite=True, data_root=work)
        try:
            yield predicted(work, model, "set.star", "set_predicted", *extra)["unlikeness"]
        except CommandFailed:
            yield {"alarms": ["the command refused"]}


OTHER_JUNK: dict[str, tuple[Callable[[], torch.Tensor] | None, type[FixedNoise]]] = {
    "beta-galactosidase": (other_particle, FixedNoise),
    "broken": (broken, FixedNoise),
    "neighbours": (None, Neighbours),
    "carbon-edge": (None, CarbonEdge),
}
PARTS: dict[str, Callable[[Path, argparse.Namespace], dict[str, Any]]] = {
    "coverage": coverage, "mixed": mixed, "junk": junk, "alarm": alarm,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=list(PARTS))
    parser.add_argument(
        "--protocol", choices=["ribosome", "betagal", "t20s_real"], default="ribosome", help="of coverage"
    )
    parser.add_argument("--preset", default="fast")
    parser.add_argument("--model", type=Path, help="a trained model, in place of training one")
    parser.add_argument("--count", type=int, default=COUNT, help="particles to train, validate and leave out")
    parser.add_argument("--test-count", type=int, default=5000)
    parser.add_argument("--alarm-count", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--epochs", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--work-dir", type=Path)
    parser.add_argument("--output", type=Path, help="[default: benchmarks/results/uncertainty_PART.json]")
    options = parser.parse_args()
    if options.part != "coverage" and options.protocol != "ribosome":
        parser.error("--protocol is for coverage")
    name = f"{options.part}_{options.protocol}" if options.part == "coverage" else options.part
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work_dir or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        work = work.resolve()
        found = PARTS[options.part](work, options)
        content = {"command": command_line(), "machine": machine(), **found}
        print(write_results(options.output or RESULTS / f"uncertainty_{name}.json", content, work))


if __name__ == "__main__":
    main()
