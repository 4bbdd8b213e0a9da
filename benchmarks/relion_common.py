"""Particles made by RELION, and its programs run beside `cryoforum`: what the RELION benchmarks share."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import starfile
from common import MAP, RESULTS, CommandFailed, run, run_process
from scipy.spatial.transform import Rotation

from cryoforum_plugin.confidence.evaluation import angular_errors, error_figures
from cryoforum_plugin.confidence.matching import match_rows
from cryoforum_plugin.formats import read_particles
from cryoforum_plugin.geometry import symmetry_group

SNR = 0.1  # in the images as they are made, before they are cropped
MADE_PIXEL_SIZE_A = 3.0  # of the map
BOX_PX, PIXEL_SIZE_A = 64, 6.0  # of the cropped images: the same field of 384 Å
DIAMETER_A, BACKGROUND_RADIUS_PX = 324.0, 27  # the ribosome, 312 Å, with a margin
# One thread everywhere; MPI ranks that wait give their core away, so that waiting is not counted as work.
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "OMPI_MCA_mpi_yield_when_idle": "1",
    "OMPI_MCA_hwloc_base_binding_policy": "none",
    "OMPI_MCA_rmaps_base_oversubscribe": "1",
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
}


def parse_arguments(parser: argparse.ArgumentParser, output: str, tiny: dict[str, Any]) -> argparse.Namespace:
    """Add the options that both benchmarks have, read them, and put `tiny` in the place of defaults."""
    parser.add_argument("--map", type=Path, default=MAP)
    parser.add_argument("--training", type=int, default=2500, help="particles to learn from")
    parser.add_argument("--count", type=int, default=2000, help="new particles")
    parser.add_argument("--epochs", type=int, default=60, help="half of what the preset would take")
    parser.add_argument("--work-dir", type=Path, default=None)
    parser.add_argument("--output", type=Path, default=RESULTS / output)
    parser.add_argument("--tiny", action="store_true", help="a few minutes to see that it runs; no figures")
    if parser.parse_known_args()[0].tiny:
        parser.set_defaults(**tiny)
    arguments = parser.parse_args()
    if not arguments.map.exists():
        raise SystemExit(f"no map {arguments.map}; give one with --map or set CRYOFORUM_SHARED_DATA")
    return arguments


def use_one_core() -> None:
    """Keep this process and all it starts on one core and one thread."""
    os.environ.update(ENVIRONMENT)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def require_programs(*names: str) -> None:
    """End with a message where a program of RELION is not on the path."""
    missing = [name for name in names if shutil.which(name) is None]
    if missing:
        raise SystemExit(f"not on the path: {', '.join(missing)}; install RELION (docs/install.md)")


def timed(folder: Path, *command: object, log: str = os.devnull) -> dict[str, Any]:
    """Run `command` in `folder`; return its command line, wall and CPU seconds (user and system, with children)."""
    words = [str(word) for word in command]
    print("$", shlex.join(words), flush=True)
    program = [sys.executable, "-m", "cryoforum_plugin.cli.main"] if words[0] == "cryoforum" else words[:1]
    with (folder / log).open("w") as out:
        try:
            wall, usage = run_process(program + words[1:], folder, stdout=out, stderr=subprocess.STDOUT)
        except CommandFailed as error:
            raise CommandFailed(f"{error}; see {log}") from error
    return {
        "command": shlex.join(words),
        "cpu_s": round(usage.ru_utime + usage.ru_stime, 2),
        "wall_s": round(wall, 2),
    }


def read_tables(path: Path) -> dict[str, Any]:
    """Every table of a STAR file, by name."""
    return dict(starfile.read(path, always_dict=True))


def project(folder: Path, map_file: Path, pixel_size_A: float, *simulate: object) -> Path:
    """Let `relion_project` make folder/relion.star with the poses that `cryoforum simulate` draws.

    With CTF, shifts, and white noise at an SNR of 0.1 over the full box, as the simulation's.
    """
    run(folder, "simulate", map_file.resolve(), "-o", "poses", "--snr", "inf", *simulate)
    noise = SNR**-0.5 * _signal_sd(folder / "poses" / "particles.mrcs")
    timed(
        folder, "relion_project", "--i", map_file.resolve(), "--o", "relion", "--ang", "poses/particles.star", "--ctf",
        "--add_noise", "--white_noise", f"{noise:.6g}", "--angpix", f"{pixel_size_A:g}",
    )  # fmt: skip
    return folder / "relion.star"


def _signal_sd(stack: Path) -> float:
    import mrcfile

    with mrcfile.mmap(stack) as file:
        return float(np.sqrt(file.data[:500].var(axis=(1, 2)).mean()))


def split(folder: Path, made: Path, names: dict[str, str]) -> None:
    """Write the rows of `made` that are in poses/KEY.star to folder/VALUE, for each of `names`."""
    tables = read_tables(made)
    position = _position(tables["particles"])
    for part, name in names.items():
        wanted = _position(read_tables(folder / "poses" / f"{part}.star")["particles"])
        write_rows(folder / name, tables, position.isin(wanted))


def _position(table: Any) -> Any:
    return table["rlnImageName"].str.split("@").str[0].astype(int)


def write_rows(path: Path, tables: dict[str, Any], rows: Any, without: Sequence[str] = ()) -> None:
    """Write the optics and the chosen `rows` of the particles, without the columns that begin with `without`."""
    table = tables["particles"][rows]
    keep = [name for name in table.columns if not name.startswith(tuple(without))]
    starfile.write({"optics": tables["optics"], "particles": table[keep]}, path)


def pose_errors(folder: Path, found: str, true: str) -> dict[str, Any]:
    """Angular errors of the poses in `found` against those of the same images in `true`.

    `turned_together_deg` is the median after the best common rotation of all poses: a refinement without the
    reference's frame may turn as a whole, which costs its map nothing.
    """
    p, q = (read_particles(folder / name, folder) for name in (found, true))
    a, b = p.require_rotation(), q.require_rotation()[match_rows(p, q)]
    common = (Rotation.from_quat(a) * Rotation.from_quat(b).inv()).mean()
    group = symmetry_group("C1")
    figures = error_figures(angular_errors(a, b, group))
    turned = angular_errors(a, (common * Rotation.from_quat(b)).as_quat(), group)
    return figures | {"turned_together_deg": float(np.degrees(np.median(turned)))}


def prepare(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Particles, model and predicted poses in `folder`, each made once; return what making them took."""
    wanted = {"training": arguments.training, "new": arguments.count, "epochs": arguments.epochs}
    record = folder / "prepared.json"
    if record.exists():
        content: dict[str, Any] = json.loads(record.read_text())
        if content["protocol"] != _protocol(arguments.map, wanted):
            raise SystemExit(f"{folder} holds particles of another protocol: {content['protocol']}")
        return content
    folder.mkdir(parents=True, exist_ok=True)
    content = {"protocol": _protocol(arguments.map, wanted)}
    _make_particles(folder, arguments)
    for step in (
        ["train", "train.star", "-o", "model", "--epochs", arguments.epochs],
        ["predict", "--no-refine", "model", "new.star", "-o", "predicted.star"],
    ):
        content[step[0]] = timed(
            folder, "cryoforum", *step, "--overwrite", "--device", "cpu", log=f"{step[0]}.log"
        )
    record.write_text(json.dumps(content, indent=2))
    return content


def _protocol(map_file: Path, wanted: dict[str, Any]) -> dict[str, Any]:
    return {
        "map": map_file.name, **wanted, "snr": SNR, "made_pixel_size_A": MADE_PIXEL_SIZE_A,
        "cropped_box_px": BOX_PX, "cropped_pixel_size_A": PIXEL_SIZE_A,
    }  # fmt: skip


def _make_particles(folder: Path, arguments: argparse.Namespace) -> None:
    """Write the paper's particles, Fourier-cropped and normalised: images.mrcs, all.star, train.star, new.star.

    The reference for RELION, reference.mrc, is the map with the same pixels.
    """
    timed(
        folder, "relion_image_handler", "--i", arguments.map.resolve(), "--o", "reference.mrc", "--angpix",
        MADE_PIXEL_SIZE_A, "--rescale_angpix", PIXEL_SIZE_A, "--new_box", BOX_PX,
    )  # fmt: skip
    total = arguments.training + arguments.count
    share = arguments.training / total
    made = project(
        folder, arguments.map, MADE_PIXEL_SIZE_A, "--count", total, "--split", share, 1 - share, "--overwrite"
    )
    timed(
        folder, "relion_preprocess", "--operate_on", "relion.mrcs", "--scale", BOX_PX, "--norm", "--bg_radius",
        BACKGROUND_RADIUS_PX, "--operate_out", "images.mrcs",
    )  # fmt: skip
    tables = read_tables(made)
    tables["optics"] = tables["optics"].assign(rlnImageSize=BOX_PX, rlnImagePixelSize=PIXEL_SIZE_A)
    table = tables["particles"]
    table["rlnImageName"] = table["rlnImageName"].str.replace("@relion.mrcs", "@images.mrcs", regex=False)
    write_rows(folder / "all.star", tables, slice(None))
    split(folder, folder / "all.star", {"train": "train.star", "test": "new.star"})
    for stack in (folder / "relion.mrcs", folder / "poses" / "particles.mrcs"):
        stack.unlink()
