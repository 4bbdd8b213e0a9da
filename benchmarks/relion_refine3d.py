"""RELION's own Refine3D started from true, from predicted and from no poses.

    python benchmarks/relion_refine3d.py [--work-dir WORK] [--refined 400] [--output FILE.json]

Particles are those of the paper's protocol made by `relion_project` and Fourier-cropped to 64 px (see
relion_common.py); the model has learned from others. `relion_refine_mpi --auto_refine` with two independent
halves then refines the first of the new ones three times, with one reference (the map, filtered to
--ini-high) and the options of RELION's interface: locally from the true poses, locally from the predicted
ones, and globally without any. One core; ranks that wait give it away, and the CPU seconds of the leader, which only
hands out work, are stated.
"""

from __future__ import annotations

import argparse
import re
import tempfile
from pathlib import Path
from typing import Any

from common import command_line, machine, write_results
from relion_common import (
    BOX_PX,
    DIAMETER_A,
    PIXEL_SIZE_A,
    parse_arguments,
    pose_errors,
    prepare,
    read_tables,
    require_programs,
    timed,
    use_one_core,
    write_rows,
)

from cryoforum_plugin.maps.volume import read_map
from cryoforum_plugin.reconstruction.fsc import fourier_shell_correlation, resolution_A

TINY = {"training": 300, "count": 100, "epochs": 1, "refined": 16}
RANKS = 3  # a leader and one for each half
# Each rank writes what it used itself, since the launcher's sum does not tell them apart.
ACCOUNT = 'first=$1; shift; "$@"; code=$?; times > "$first.$OMPI_COMM_WORLD_RANK"; exit $code'
# What RELION's interface makes of a map that is not on the absolute grey scale, for images normalised one by one;
# shifts here are at most 1.5 px.
OPTIONS = (
    "--ref", "reference.mrc", "--firstiter_cc", "--ctf", "--ctf_corrected_ref", "--auto_refine", "--split_random_halves",
    "--particle_diameter", f"{DIAMETER_A:g}", "--flatten_solvent", "--zero_mask", "--oversampling", 1,
    "--auto_local_healpix_order", 4, "--offset_range", 3, "--offset_step", 2, "--low_resol_join_halves", 40,
    "--sym", "C1", "--norm", "--scale", "--pad", 2, "--pool", 3, "--dont_combine_weights_via_disc", "--j", 1,
    "--random_seed", 1,
)  # fmt: skip
# name -> table with the poses to start from, columns to leave out of it, HEALPix order of the first search
STARTS: dict[str, tuple[str, tuple[str, ...], int]] = {
    "true": ("new.star", (), 4),
    "predicted": ("predicted.star", (), 4),
    "none": ("new.star", ("rlnAngle", "rlnOrigin"), 2),
}


def refine(work: Path, name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Refine from one kind of poses in work/refine_NAME; return the figures."""
    source, without, order = STARTS[name]
    start, folder = f"from_{name}.star", f"refine_{name}"
    write_rows(work / start, read_tables(work / source), slice(arguments.refined), without)
    (work / folder).mkdir(exist_ok=True)
    for old in (work / folder).iterdir():
        old.unlink()
    step = timed(
        work, "mpirun", "-n", RANKS, "sh", "-c", ACCOUNT, "sh", f"{folder}/times", "relion_refine_mpi", "--i", start,
        "--o", f"{folder}/run", "--ini_high", arguments.ini_high, "--healpix_order", order, *OPTIONS,
        log=f"{folder}.log",
    )  # fmt: skip
    errors = {} if without else {"start_error": pose_errors(work, start, "new.star")}
    found = {"error": pose_errors(work, f"{folder}/run_data.star", "new.star")}
    used = [cpu_seconds(work / folder / f"times.{rank}") for rank in range(RANKS)]
    return (
        step | {"cpu_s_of_ranks": used} | resolutions(work, folder) | errors | found | history(work, folder)
    )


def cpu_seconds(path: Path) -> float:
    """User and system seconds of the children, from what the shell's `times` wrote."""
    numbers = re.findall(r"(\d+)m([\d.]+)s", path.read_text())[2:]
    return round(sum(60 * int(minutes) + float(seconds) for minutes, seconds in numbers), 2)


def resolutions(work: Path, folder: str) -> dict[str, Any]:
    """Number of iterations, RELION's final resolution and its shell, and where the FSC with the true map ends."""
    iterations = len(
        list((work / folder).glob("run_it*_data.star"))
    )  # 000 is the start, the last has no number
    final_A = float(read_tables(work / folder / "run_model.star")["model_general"]["rlnCurrentResolution"])
    made, true = (read_map(work / path)[0] for path in (f"{folder}/run_class001.mrc", "reference.mrc"))
    fsc = fourier_shell_correlation(made, true)
    return {
        "iterations": iterations,
        "resolution_A": final_A,
        "shell": round(BOX_PX * PIXEL_SIZE_A / final_A),
        "fsc_with_truth_05_A": round(resolution_A(fsc, 0.5, PIXEL_SIZE_A), 2),
    }


def history(work: Path, folder: str) -> dict[str, Any]:
    """HEALPix order, resolution and angular error after each iteration but the last."""
    rows = []
    for data in sorted((work / folder).glob("run_it*_data.star"))[1:]:  # 000 is the start
        stem = f"{folder}/{data.name.removesuffix('_data.star')}"
        tables = [read_tables(work / f"{stem}_{end}.star") for end in ("half1_model", "sampling")]
        rows.append(
            {
                "healpix": int(tables[1]["sampling_general"]["rlnHealpixOrder"]),
                "resolution_A": float(tables[0]["model_general"]["rlnCurrentResolution"]),
                "median_deg": pose_errors(work, f"{stem}_data.star", "new.star")["median_deg"],
            }
        )
    return {"history": rows}


def table(runs: dict[str, dict[str, Any]]) -> str:
    """The runs as a Markdown table."""
    lines = [
        "| start | iterations | resolution, Å | shell | FSC with truth 0.5, Å | CPU s | wall s | median error before | after | turned together |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, run in runs.items():
        before = f"{run['start_error']['median_deg']:.2f}°" if "start_error" in run else "–"
        numbers = (run["iterations"], run["resolution_A"], run["shell"], run["fsc_with_truth_05_A"])
        costs = (run["cpu_s"], run["wall_s"])
        cells = [name, *(f"{n:.4g}" for n in numbers), *(f"{n:.0f}" for n in costs), before]
        after = [f"{run['error'][key]:.2f}°" for key in ("median_deg", "turned_together_deg")]
        lines.append("| " + " | ".join([*cells, *after]) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--refined", type=int, default=400, help="new particles that RELION refines")
    parser.add_argument("--starts", nargs="+", choices=STARTS, default=list(STARTS))
    parser.add_argument("--ini-high", type=float, default=40.0, help="filter of the reference in Å")
    arguments = parse_arguments(parser, "relion_refine3d.json", TINY)
    require_programs("relion_refine_mpi", "mpirun", "relion_project", "relion_preprocess")
    use_one_core()
    result: dict[str, Any] = {
        "command": command_line(),
        "machine": machine() | {"cores_used": 1},
        "refined": arguments.refined,
        "ini_high_A": arguments.ini_high,
    }
    with tempfile.TemporaryDirectory() as temporary:
        work = (arguments.work_dir or Path(temporary)).resolve()
        result["prepared"] = prepare(work, arguments)
        runs = result["runs"] = {}
        for name in arguments.starts:
            runs[name] = refine(work, name, arguments)
            content = write_results(arguments.output, result, work, arguments.map.parent)
            print(table(runs), flush=True)
    print(content)


if __name__ == "__main__":
    main()
