"""Prediction beside RELION's searches: CPU seconds and accuracy on the same particles.

    python benchmarks/relion_search.py [--work-dir WORK] [--searched 300] [--rows refined "healpix 6"] [--output FILE.json]

Particles are those of the paper's protocol made by `relion_project` and Fourier-cropped to 64 px (see
relion_common.py). `cryoforum predict`, trained on others, stands beside one expectation step of
`relion_refine` with the true map as reference: a global search, and local searches that start from the true
or from the predicted poses. One core, one thread; every program runs with few and with many particles, and
the difference says what one costs, the rest what starting costs.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import command_line, machine, write_results
from relion_common import (
    DIAMETER_A,
    parse_arguments,
    pose_errors,
    prepare,
    read_tables,
    require_programs,
    timed,
    use_one_core,
    write_rows,
)

TINY = {"training": 300, "count": 100, "epochs": 1, "searched": 20, "repeats": 1}
OPTIONS = (
    "--ref", "reference.mrc", "--particle_diameter", f"{DIAMETER_A:g}", "--zero_mask", "--ctf", "--ctf_corrected_ref",
    "--firstiter_cc", "--skip_maximize", "--iter", 1, "--oversampling", 1, "--offset_range", 3, "--offset_step", 2,
    "--sym", "C1", "--pad", 2, "--j", 1, "--random_seed", 1,
)  # fmt: skip


@dataclass(frozen=True)
class Search:
    """One expectation step. start : table with the poses to search around. share : of the particles."""

    name: str
    options: tuple[object, ...]
    start: str = "new.star"
    share: float = 1.0


LOCAL = ((4, 2.5), (5, 1.5), (6, 0.8))  # HEALPix order, standard deviation of the search in degrees
SEARCHES = (
    Search("global, healpix 2", ("--healpix_order", 2)),
    Search("global, healpix 3", ("--healpix_order", 3), share=0.2),
    *(
        Search(f"local, healpix {order}, {sigma}°, from {name} poses",
               ("--healpix_order", order, "--sigma_ang", sigma), start)
        for name, start in (("true", "new.star"), ("predicted", "predicted.star"))
        for order, sigma in LOCAL
    ),
)  # fmt: skip


def per_particle(few: tuple[int, float], many: tuple[int, float], whole: int) -> dict[str, float]:
    """Cost of one particle and of starting, from (particles, CPU seconds) of a small and a large run."""
    cost = (many[1] - few[1]) / (many[0] - few[0])
    start = max(many[1] - cost * many[0], 0.0)
    return {
        "cpu_s_per_particle": round(cost, 6),
        "start_cpu_s": round(start, 2),
        f"cpu_s_of_{whole}": round(start + cost * whole, 1),
    }


def search(work: Path, one: Search, arguments: argparse.Namespace) -> dict[str, Any]:
    """Let `relion_refine` search for a tenth of the particles and for all of them."""
    number = max(round(one.share * arguments.searched), 4)
    used = []
    for n in (max(number // 10, 2), number):
        write_rows(work / "searched.star", read_tables(work / one.start), slice(n))
        (work / "search").mkdir(exist_ok=True)
        step = timed(
            work, "relion_refine", "--i", "searched.star", "--o", "search/run", *OPTIONS, *one.options
        )
        used.append((n, step["cpu_s"]))
    return {
        "program": "relion_refine",
        "what": one.name,
        "particles": number,
        **per_particle(used[0], used[1], arguments.count),
        "error": pose_errors(work, "search/run_it001_data.star", "new.star"),
        "command": step["command"],
    }


def row_name(options: list[object]) -> str:
    """Options of a prediction in words."""
    how, _, views = options
    return f"{views} views, {'refined' if how == '--refine' else 'network alone'}"


def predict(work: Path, options: list[object], arguments: argparse.Namespace) -> dict[str, Any]:
    """Let `cryoforum predict` do all particles, those of the training too, and a tenth of them."""
    tables = read_tables(work / "all.star")
    total = len(tables["particles"])
    sizes = (total // 10, total)
    used: dict[int, list[float]] = {n: [] for n in sizes}
    for _ in range(arguments.repeats):
        for n in sizes:
            write_rows(work / "some.star", tables, slice(n))
            step = timed(
                work, "cryoforum", "predict", *options, "model", "some.star", "-o", "some_out.star", "--device", "cpu",
                "--overwrite", "--quiet",
            )  # fmt: skip
            used[n].append(step["cpu_s"])
    made = read_tables(work / "some_out.star")
    images = read_tables(work / "new.star")["particles"]["rlnImageName"]
    errors = {}
    for name, wanted in (("error", images[: arguments.searched]), ("error_of_all_new", images)):
        write_rows(work / "judged.star", made, made["particles"]["rlnImageName"].isin(wanted))
        errors[name] = pose_errors(work, "judged.star", "new.star")
    few, many = ((n, statistics.median(used[n])) for n in sizes)
    return {
        "program": "cryoforum predict",
        "what": row_name(options),
        "particles": total,
        **per_particle(few, many, arguments.count),
        **errors,
        "command": step["command"],
    }


def predictions() -> list[list[object]]:
    """Options of each `cryoforum predict`."""
    alone: list[list[object]] = [["--no-refine", "--views", views] for views in (1, 2, 8)]
    return [*alone, *(["--refine", "--views", views] for views in (2, 8))]


def table(rows: list[dict[str, Any]], count: int) -> str:
    """The rows as a Markdown table."""
    lines = [
        f"| program | | CPU s per particle | CPU s to start | CPU s for {count} | median error, rad | mean, rad |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        numbers = (row["cpu_s_per_particle"], row["start_cpu_s"], row[f"cpu_s_of_{count}"])
        errors = (row["error"]["median_rad"], row["error"]["mean_rad"])
        cells = [row["program"], row["what"], *(f"{n:.4g}" for n in numbers), *(f"{e:.4f}" for e in errors)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--searched", type=int, default=300, help="new particles that RELION searches")
    parser.add_argument("--repeats", type=int, default=3, help="of every prediction; the median counts")
    parser.add_argument(
        "--rows", nargs="+", default=[""], help="only rows with one of these words in their names"
    )
    arguments = parse_arguments(parser, "relion_search.json", TINY)
    require_programs("relion_refine", "relion_project", "relion_preprocess", "relion_image_handler")
    use_one_core()
    result: dict[str, Any] = {"command": command_line(), "machine": machine() | {"cores_used": 1}}
    with tempfile.TemporaryDirectory() as temporary:
        work = (arguments.work_dir or Path(temporary)).resolve()
        result["prepared"] = prepare(work, arguments)
        rows = result["rows"] = []
        for options in predictions():
            if any(word in row_name(options) for word in arguments.rows):
                rows.append(predict(work, options, arguments))
        for one in SEARCHES:
            if any(word in one.name for word in arguments.rows):
                rows.append(search(work, one, arguments))
        content = write_results(arguments.output, result, work, arguments.map.parent)
    print(content)
    print(table(rows, arguments.count))


if __name__ == "__main__":
    main()
