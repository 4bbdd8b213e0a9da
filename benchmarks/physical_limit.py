"""How near predictions come to what the images can tell, on one of several proteins.

    python benchmarks/physical_limit.py --protocol NAME [--snr 0.1] [--preset default] [--work-dir DIR]
    python benchmarks/physical_limit.py --protocol NAME --bound-only

5,000 simulated particles (uniform views over the copies of the point group, shifts up to 3 px, defocus
1.0-2.5 um at 300 kV, white noise at the given SNR, the variance ratio over the full box) split 50/17/33 into
training, validation and test; t20s_real has measured views, shifts and CTFs, and real ice (ice_noise.py). The
test third is predicted by the network alone, refined against the model's own references (that of each half set, and
that of both), and refined against the true map. Every step is a `cryoforum` command in a process of its own. Beside the errors: the Cramér-Rao
bound at the full box with map and noise known (cramer_rao.py), and the maps from predicted and true poses.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import starfile
import torch
from common import (
    COUNT,
    MAP,
    RESULTS,
    SHARED,
    TRAINING,
    VALIDATION,
    command_line,
    machine,
    run,
    write_results,
)
from cramer_rao import bound, refine_grid
from ice_noise import IceSimulator, measured_draw
from limit_maps import compare_maps

from cryoforum_plugin.confidence.evaluation import angular_errors
from cryoforum_plugin.confidence.matching import match_rows
from cryoforum_plugin.formats import read_particles
from cryoforum_plugin.geometry import symmetry_group
from cryoforum_plugin.maps.volume import low_pass, read_map
from cryoforum_plugin.reconstruction.write import write_map
from cryoforum_plugin.simulation.draw import Draw, SimulationSettings, draw_particles
from cryoforum_plugin.simulation.simulate import Simulator
from cryoforum_plugin.simulation.write import write_simulation

SEED = 7
BOUND_PADDING = 3
MAPS = SHARED / "maps"


@dataclass(frozen=True)
class Protocol:
    """A map (`low_pass_A`: what it is filtered to first), its point group, and whether the noise is ice."""

    map: Path
    symmetry: str
    low_pass_A: float | None = None
    ice: bool = False


PROTOCOLS = {
    "ribosome": Protocol(MAP, "C1", 11.0),
    "betagal": Protocol(MAPS / "betagal_experimental_D2_100px_3.54A.mrc", "D2"),
    "proteasome": Protocol(MAPS / "20S_3c91_D7_128px_2A.mrc", "D7"),
    "apoferritin": Protocol(MAPS / "apoferritin_7a4m_O_128px_1.5A.mrc", "O"),
    "trpv1": Protocol(MAPS / "trpv1_7l2i_C4_128px_1.6A.mrc", "C4"),
    "t20s_real": Protocol(MAPS / "20S_3c91_D7_128px_2A.mrc", "D7", ice=True),
}
VARIANTS = {
    "network": ["--no-refine"],
    "own_reference": ["--refine"],  # each half set against the map of its own half of the training particles
    "whole_reference": [
        "--refine"
    ],  # against the map of all training particles: from a table without half sets
    "true_map": ["--reference", "true_map.mrc"],
}


def simulation(protocol: Protocol, count: int, snr: float, seed: int = SEED) -> tuple[Simulator, Draw]:
    """The simulator and its particles: what `cryoforum simulate` makes with the same settings, or with ice."""
    settings = SimulationSettings(
        count=count, snr=snr, low_pass_A=protocol.low_pass_A, symmetry=protocol.symmetry, seed=seed
    )
    make = IceSimulator if protocol.ice else Simulator
    simulator = make(*read_map(protocol.map), settings)
    draw = draw_particles(settings, simulator.pixel_size_A, simulator.box_px)
    if protocol.ice:
        draw = measured_draw(draw, simulator.box_px, simulator.pixel_size_A, protocol.symmetry, seed)
    return simulator, draw


def limit(protocol: Protocol, options: argparse.Namespace) -> dict[str, float]:
    """The bound over at most `bound_particles` particles of the test third."""
    simulator, draw = simulation(protocol, options.count, options.snr)
    most = options.bound_particles
    first = round((TRAINING + VALIDATION) * len(draw))
    rows = np.linspace(first, len(draw) - 1, min(most, len(draw) - first)).astype(np.int64)
    variance = simulator.noise_std(draw) ** 2
    refine_grid(simulator, *read_map(protocol.map), BOUND_PADDING)
    power = simulator.power * variance if isinstance(simulator, IceSimulator) else None
    return bound(simulator, draw, rows, variance, power)


def _simulate(protocol: Protocol, options: argparse.Namespace, work: Path) -> dict[str, Any]:
    kept = TRAINING + VALIDATION
    split = (kept, round(1 - kept, 4))
    if protocol.ice:
        write_simulation(
            *simulation(protocol, options.count, options.snr),
            work / "sim",
            split=split,
            overwrite=True,
            data_root=work,
        )
        return {"command": "write_simulation with ice (ice_noise.py)"}
    extra = [] if protocol.low_pass_A is None else ["--low-pass", protocol.low_pass_A]
    return run(
        work, "simulate", protocol.map.resolve(), "-o", "sim", "--count", options.count, "--snr", options.snr,
        "--symmetry", protocol.symmetry, "--split", *split, "--seed", SEED, "--overwrite", *extra,
    )  # fmt: skip


def errors(work: Path, table: str, symmetry: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Angles (rad) between the poses of `table` and the true ones, modulo symmetry."""
    found, true = (read_particles(work / name, work) for name in (table, "sim/test.star"))
    known = true.require_rotation()[match_rows(found, true)]
    return angular_errors(found.require_rotation(), known, symmetry_group(symmetry))


def predict(work: Path, name: str, protocol: Protocol, extra: Sequence[object]) -> dict[str, Any]:
    """Predict the test third and evaluate; return the figures, with p99_rad and the time."""
    table, options = f"{name}.star", ["--overwrite", "--quiet"]
    source = "sim/test.star"
    if name == "whole_reference":
        source = "no_half_sets.star"
        tables = starfile.read(work / "sim/test.star")
        tables["particles"] = tables["particles"].drop(columns="rlnRandomSubset")
        starfile.write(tables, work / source)
    step = run(work, "predict", "model", source, "-o", table, "--json", f"{name}_run.json", *options, *extra)
    run(
        work, "evaluate", table, "sim/test.star", "--symmetry", protocol.symmetry, "--json", f"{name}.json",
        *options,
    )  # fmt: skip
    figures: dict[str, Any] = json.loads((work / f"{name}.json").read_text())
    speed = json.loads((work / f"{name}_run.json").read_text())
    figures["p99_rad"] = float(np.quantile(errors(work, table, protocol.symmetry), 0.99))
    return {
        **step,
        **figures,
        "predict_seconds": speed["seconds"],
        "particles_per_s": speed["particles_per_s"],
    }


def measure(protocol: Protocol, options: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Simulate, train, predict three times, reconstruct; return the figures."""
    steps: dict[str, Any] = {"simulate": _simulate(protocol, options, work)}
    volume, pixel_A = read_map(protocol.map)
    if protocol.low_pass_A is not None:
        volume = low_pass(volume, pixel_A, protocol.low_pass_A)
    write_map(work / "true_map.mrc", volume, pixel_A)
    epochs = [] if options.epochs is None else ["--epochs", options.epochs]
    fraction = round(VALIDATION / (TRAINING + VALIDATION), 4)
    if options.keep_model:
        steps["train"] = "the model that was in the work folder"
    else:
        steps["train"] = run(
            work, "train", "sim/train.star", "-o", "model", "--symmetry", protocol.symmetry, "--preset",
            options.preset, "--validation-fraction", fraction, "--overwrite", *epochs,
        )  # fmt: skip
    result: dict[str, Any] = {"steps": steps}
    for name, extra in VARIANTS.items():
        result[name] = predict(work, name, protocol, extra)
    result["maps"] = compare_maps(work, protocol.symmetry, "own_reference.star")
    return result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--protocol", choices=list(PROTOCOLS), required=True)
    parser.add_argument("--snr", type=float, default=0.1)
    parser.add_argument("--preset", default="default")
    parser.add_argument("--bound-only", action="store_true", help="compute the bound alone")
    parser.add_argument("--bound-particles", type=int, default=500)
    parser.add_argument("--work-dir", type=Path)
    parser.add_argument(
        "--output", type=Path, help="[default: benchmarks/results/physical_limit_NAME_SNR.json]"
    )
    parser.add_argument("--count", type=int, default=COUNT, help=argparse.SUPPRESS)  # for smoke tests
    parser.add_argument("--epochs", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--keep-model", action="store_true", help="predict with WORK_DIR/model, do not train")
    options = parser.parse_args()
    protocol = PROTOCOLS[options.protocol]
    if not protocol.map.exists():
        raise SystemExit(f"no map {protocol.map}; set CRYOFORUM_SHARED_DATA")
    output = options.output or RESULTS / f"physical_limit_{options.protocol}_{options.snr:g}.json"
    result: dict[str, Any] = {
        "command": command_line(),
        "machine": machine(),
        "protocol": options.protocol,
        "snr": options.snr,
        "preset": options.preset,
        "bound": limit(protocol, options),
    }
    if options.bound_only:
        print(json.dumps(result, indent=2))
        return
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work_dir or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(SEED)
        result |= measure(protocol, options, work)
        for name in VARIANTS:
            result[name]["median_over_bound"] = round(
                result[name]["median_rad"] / result["bound"]["median_rad"], 3
            )
        print(write_results(output, result, work, protocol.map.parent))


if __name__ == "__main__":
    main()
