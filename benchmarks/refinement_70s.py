"""Refinement on the 70S protocol, beside the Cramér-Rao bound that this script computes itself.

    python benchmarks/refinement_70s.py [--snr 0.1] [--count 1000] [--start-deg 2] [--work-dir DIR]

5,000 projections at 128 px as in ribosome_snr.py. The poses of 2,500 particles are known and make the
references. `count` of the others start from their true poses turned by `start-deg` (median) about random axes
and moved by 2 A along x and y (s.d.), that is, no network takes part. Errors of the refined poses, the
coverage of their own covariance (not calibrated), particles a second, reading included.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import COUNT, MAP, RESULTS, command_line, machine, run, write_results
from scipy.spatial.transform import Rotation

from cryoforum_plugin import formats
from cryoforum_plugin.confidence.raw import RawPrediction
from cryoforum_plugin.geometry import angular_distance
from cryoforum_plugin.images.pipeline import ImagePipeline
from cryoforum_plugin.images.stacks import StackReader
from cryoforum_plugin.images.working import WorkingBox
from cryoforum_plugin.maps.volume import low_pass, read_map
from cryoforum_plugin.particles import IntArray, ParticleSet
from cryoforum_plugin.posterior import (
    credible_radius,
    matrix_about,
    matrix_from_upper,
    mode,
    upper_from_matrix,
)
from cryoforum_plugin.refinement.reference import ReferenceMap, from_map, rebuild
from cryoforum_plugin.refinement.refine import Refiner

DIAMETER_A = 260.0
MEDIAN_OF_THREE = 1.538  # median length of a vector with three standard normal components


def measure(snr: float, count: int, start_deg: float, work: Path) -> dict[str, Any]:
    """Simulate, rebuild, refine; return the figures."""
    run(
        work,
        "simulate",
        MAP.resolve(),
        "-o",
        "sim",
        "--count",
        COUNT,
        "--snr",
        snr,
        "--low-pass",
        11,
        "--seed",
        7,
    )
    particles = formats.read_particles(work / "sim" / "particles.star", work)
    pipeline = _pipeline(particles)
    known, rows = np.arange(COUNT // 2), np.arange(COUNT // 2, COUNT // 2 + count)
    both, first, second = rebuild(pipeline, known, "C1", DIAMETER_A, lambda steps, note: None)
    volume, pixel_A = read_map(MAP)
    true_map = from_map(low_pass(volume, pixel_A, 11.0), pixel_A, resolution_A=10.0)
    raw = _started(particles, rows, start_deg)
    cases = {
        "own reference": {0: both},
        "own reference, by half set": {0: both, 1: first, 2: second},
        "true map": {0: true_map},
    }
    result: dict[str, Any] = {"start": _figures(raw, particles, rows), "reference_A": round(both.finest_A, 2)}
    for name, references in cases.items():
        refiner = Refiner(pipeline, references, DIAMETER_A)
        began = time.monotonic()
        found = refiner.refine(rows, raw, lambda steps, note: None)
        seconds = time.monotonic() - began
        result[name] = _figures(found, particles, rows) | {"particles_per_s": round(count / seconds, 1)}
    result["bound"] = _bound(pipeline, particles, rows, true_map)
    return result


def _pipeline(particles: ParticleSet) -> ImagePipeline:
    reader = StackReader(particles.stacks)
    box = WorkingBox(1.2 * DIAMETER_A, 64)
    return ImagePipeline(particles, reader, reader.check(particles), box, "flip", 1.0, torch.device("cpu"))


def _started(particles: ParticleSet, rows: IntArray, start_deg: float) -> RawPrediction:
    generator = np.random.default_rng(1)
    sd = np.radians(start_deg) / MEDIAN_OF_THREE
    turn = Rotation.from_rotvec(sd * generator.standard_normal((len(rows), 3)))
    q = torch.from_numpy((turn * Rotation.from_quat(particles.require_rotation()[rows])).as_quat())
    precision = torch.eye(3, dtype=torch.double).expand(len(rows), 3, 3) / sd**2
    assert particles.shift_A is not None
    shift_A = torch.from_numpy(particles.shift_A[rows] + 2 * generator.standard_normal((len(rows), 2)))
    one = torch.ones(len(rows), dtype=torch.double)
    nothing = torch.zeros(len(rows), dtype=torch.bool)
    return RawPrediction(upper_from_matrix(matrix_about(q, precision)), shift_A, one, one[:, None], nothing)


def _figures(raw: RawPrediction, particles: ParticleSet, rows: IntArray) -> dict[str, float]:
    true = torch.from_numpy(particles.require_rotation()[rows])
    error = angular_distance(mode(matrix_from_upper(raw.bingham)), true)
    assert particles.shift_A is not None
    off_A = np.linalg.norm(raw.shift_A.numpy() - particles.shift_A[rows], axis=1)
    inside = (error < credible_radius(raw.bingham, 0.9)).double().mean()
    return {
        "median_rad": round(float(error.median()), 5),
        "mean_rad": round(float(error.mean()), 5),
        "p99_rad": round(float(error.quantile(0.99)), 5),
        "median_shift_A": round(float(np.median(off_A)), 3),
        "balls_90_hold": round(float(inside), 4),
    }


def _bound(pipeline: ImagePipeline, particles: ParticleSet, rows: IntArray, true_map: ReferenceMap) -> float:
    """Median length (rad) of errors with the least covariance that is possible: map and noise known."""
    refiner = Refiner(pipeline, {0: true_map}, DIAMETER_A)
    truth = _started(particles, rows, 1e-3)
    refiner.refine(rows, truth, lambda steps, note: None)  # measures noise and contrast
    (key,) = refiner._against
    against, size_A = refiner._against[key], key[1]
    assert particles.shift_A is not None
    pixel_A = refiner.source.pixel_A(size_A)
    lengths = []
    for part in np.array_split(rows, max(1, len(rows) // 128)):
        observed = refiner.source.observe(part, size_A, against.solver.points, against.error, None)
        R = torch.from_numpy(Rotation.from_quat(particles.require_rotation()[part]).as_matrix()).float()
        shift_px = torch.from_numpy(particles.shift_A[part] / pixel_A).float()
        found = against.solver.refine(observed, R, shift_px, ((1.0, 0),))
        covariance = torch.linalg.inv(found.information.double())[:, :3, :3]
        draws = torch.linalg.cholesky(covariance) @ torch.randn(3, 200, dtype=torch.double)
        lengths.append(draws.norm(dim=1))
    return round(float(torch.cat(lengths).median()), 5)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--snr", type=float, default=0.1)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--start-deg", type=float, default=2.0)
    parser.add_argument("--work-dir", type=Path)
    parser.add_argument("--output", type=Path, default=RESULTS / "refinement_70s.json")
    options = parser.parse_args()
    torch.manual_seed(1)
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work_dir or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        figures = measure(options.snr, options.count, options.start_deg, work)
    result = {"command": command_line(), "machine": machine(), "snr": options.snr, **figures}
    print(write_results(options.output, result, work))


if __name__ == "__main__":
    main()
