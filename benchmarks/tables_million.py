"""Time and memory of particle tables of up to a million rows, read and written.

    python benchmarks/tables_million.py [--counts 1000 10000 100000 1000000] [--rows "STAR to .cs"] [--output FILE.json]

Tables as RELION 3.1 and cryoSPARC write them after a refinement, with random numbers: a STAR file with an optics
table and 30 particle columns; a .cs file with 51 fields; the same in two files of one job, whose rows stand in
different orders and are joined by uid. The images lie in a thousand stacks, of which only the first exists. What is
written holds a prediction with every field. Each row of the result is a process of its own; its peak memory includes
Python with PyTorch, which the row "nothing" shows.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from common import RESULTS, command_line, machine, maxrss_bytes, run_process, write_results
from numpy.lib.recfunctions import repack_fields
from numpy.typing import NDArray

STACKS, ROWS_AT_ONCE = 1000, 10_000
MICROGRAPH = "GridSquare_347700/Data/FoilHole_353510_Data_342200_1_20250401_{:06d}_EER"
JOB, PASSTHROUGH = "J42_005_particles.cs", "J42_passthrough_particles.cs"


@dataclass(frozen=True)
class Work:
    """A table that is read and, if `output` says so, written with a prediction or as it is."""

    table: str | None = None
    output: str | None = None
    predict: bool = False


ROWS = {
    "nothing": Work(),
    "STAR read": Work("particles.star"),
    "STAR read, written with a prediction": Work("particles.star", "predicted.star", predict=True),
    "STAR with a prediction read, written with another": Work("predicted.star", "again.star", predict=True),
    ".cs read": Work("particles.cs"),
    ".cs read, written with a prediction": Work("particles.cs", "predicted.cs", predict=True),
    ".cs joined with its passthrough file": Work(JOB),
    "STAR to .cs": Work("particles.star", "converted.cs"),
    ".cs to STAR": Work("particles.cs", "converted.star"),
}

OPTICS = """
# version 30001

data_optics

loop_
_rlnOpticsGroupName #1
_rlnOpticsGroup #2
_rlnMicrographOriginalPixelSize #3
_rlnVoltage #4
_rlnSphericalAberration #5
_rlnAmplitudeContrast #6
_rlnImagePixelSize #7
_rlnImageSize #8
_rlnImageDimensionality #9
opticsGroup1            1     0.890000   300.000000     2.700000     0.100000     1.780000          256            2


# version 30001

data_particles

loop_
"""
REAL, COUNT = "%12.6f", "%12d"
COLUMNS = {  # label: how RELION writes it, and the range of the numbers
    "rlnCoordinateX": (REAL, 0, 4000), "rlnCoordinateY": (REAL, 0, 4000), "rlnAutopickFigureOfMerit": (REAL, 0, 40),
    "rlnClassNumber": (COUNT, 1, 1), "rlnAnglePsi": (REAL, -180, 180), "rlnImageName": ("%s", 0, 0),
    "rlnMicrographName": ("%s", 0, 0), "rlnOpticsGroup": (COUNT, 1, 1), "rlnCtfMaxResolution": (REAL, 3, 6),
    "rlnCtfFigureOfMerit": (REAL, 0, 0.2), "rlnDefocusU": (REAL, 8e3, 3e4), "rlnDefocusV": (REAL, 8e3, 3e4),
    "rlnDefocusAngle": (REAL, -90, 90), "rlnCtfBfactor": (REAL, 0, 0), "rlnCtfScalefactor": (REAL, 1, 1),
    "rlnPhaseShift": (REAL, 0, 0), "rlnGroupNumber": (COUNT, 1, STACKS), "rlnAngleRot": (REAL, -180, 180),
    "rlnAngleTilt": (REAL, 0, 180), "rlnOriginXAngst": (REAL, -5, 5), "rlnOriginYAngst": (REAL, -5, 5),
    "rlnNormCorrection": (REAL, 0.5, 1), "rlnLogLikeliContribution": ("%12e", 8e5, 9e5),
    "rlnMaxValueProbDistribution": (REAL, 0, 1), "rlnNrOfSignificantSamples": (COUNT, 1, 50),
    "rlnRandomSubset": (COUNT, 1, 2), "rlnHelicalTubeID": (COUNT, 1, 9), "rlnKurtosisExcessValue": (REAL, -1, 1),
    "rlnSkewnessValue": (REAL, -1, 1), "rlnCtfDefocusGradient": (REAL, -1, 1),
}  # fmt: skip
FIELDS = """
uid u8, blob/path S95, blob/idx u4, blob/shape 2u4, blob/psize_A f4, blob/sign f4, blob/import_sig u8,
ctf/type S9, ctf/exp_group_id u4, ctf/accel_kv f4, ctf/cs_mm f4, ctf/amp_contrast f4, ctf/df1_A f4, ctf/df2_A f4,
ctf/df_angle_rad f4, ctf/phase_shift_rad f4, ctf/scale f4, ctf/scale_const f4, ctf/shift_A 2f4, ctf/tilt_A 2f4,
ctf/trefoil_A 2f4, ctf/tetra_A 4f4, ctf/anisomag 4f4, ctf/bfactor f4,
alignments3D/split u4, alignments3D/shift 2f4, alignments3D/pose 3f4, alignments3D/psize_A f4, alignments3D/error f4,
alignments3D/error_min f4, alignments3D/resid_pow f4, alignments3D/slice_pow f4, alignments3D/image_pow f4,
alignments3D/cross_cor f4, alignments3D/alpha f4, alignments3D/alpha_min f4, alignments3D/weight f4,
alignments3D/pose_ess f4, alignments3D/shift_ess f4, alignments3D/class_posterior f4, alignments3D/class u4,
alignments3D/class_ess f4,
location/micrograph_uid u8, location/exp_group_id u4, location/micrograph_path S110, location/micrograph_shape 2u4,
location/center_x_frac f4, location/center_y_frac f4, location/micrograph_psize_A f4,
pick_stats/ncc_score f4, pick_stats/power f4
"""


def make_tables(folder: Path, n: int) -> None:
    """Write the tables of n particles, and the first of their stacks."""
    from cryoforum_plugin.images.stacks import write_stack

    stack = np.arange(n) * STACKS // n
    index = np.arange(n) - np.searchsorted(stack, stack)
    first = folder / "Extract" / "job012" / f"{MICROGRAPH.format(0)}.mrcs"
    write_stack(first, np.zeros((1, 8, 8), np.float32), 1.78, overwrite=True)
    write_star(folder / "particles.star", stack, index)
    records = make_records(stack, index)
    write_cs(folder / "particles.cs", records)
    names = records.dtype.names or ()
    job = [name for name in names if name.split("/")[0] in ("uid", "ctf", "alignments3D")]
    rest = ["uid", *(name for name in names if name not in job)]
    write_cs(folder / JOB, repack_fields(records[job]))
    write_cs(folder / PASSTHROUGH, repack_fields(records[rest])[np.random.default_rng(2).permutation(n)])


def write_star(path: Path, stack: NDArray[np.int64], index: NDArray[np.int64]) -> None:
    """Write a refinement's particles as RELION 3.1 does."""
    rng = np.random.default_rng(0)
    template = " ".join(form for form, _, _ in COLUMNS.values()) + " \n"
    with open(path, "w", encoding="ascii") as file:
        file.write(OPTICS + "".join(f"_{label} #{i} \n" for i, label in enumerate(COLUMNS, 1)))
        for start in range(0, len(stack), ROWS_AT_ONCE):
            stacks, indices = (values[start : start + ROWS_AT_ONCE].tolist() for values in (stack, index))
            values = {
                label: rng.integers(low, high, len(stacks), endpoint=True).tolist()
                if form == COUNT
                else rng.uniform(low, high, len(stacks)).tolist()
                for label, (form, low, high) in COLUMNS.items()
            }
            names = [MICROGRAPH.format(number) for number in stacks]
            values["rlnMicrographName"] = [f"MotionCorr/job003/{name}.mrc" for name in names]
            values["rlnImageName"] = [
                f"{i + 1:06d}@Extract/job012/{name}.mrcs" for i, name in zip(indices, names, strict=True)
            ]
            file.writelines(template % row for row in zip(*values.values(), strict=True))
        file.write(" \n")


def write_cs(path: Path, records: NDArray[np.void]) -> None:
    with open(path, "wb") as file:
        np.save(file, records)


def make_records(stack: NDArray[np.int64], index: NDArray[np.int64]) -> NDArray[np.void]:
    """Return a refinement's particles as cryoSPARC keeps them."""
    rng, n = np.random.default_rng(1), len(stack)
    types = [tuple(field.split()) for field in FIELDS.replace("\n", " ").split(",")]
    records = np.zeros(n, dtype=np.dtype(types))
    for name, _ in types:
        if records.dtype[name].base == np.float32:
            records[name] = rng.uniform(0.1, 1, records[name].shape)
    records["uid"] = rng.permutation(np.arange(n, dtype=np.uint64) * np.uint64(7919) + np.uint64(2**60))
    names = [MICROGRAPH.format(number) for number in range(STACKS)]
    records["blob/path"] = np.array([f"Extract/job012/{name}.mrcs" for name in names], "S")[stack]
    records["location/micrograph_path"] = np.array([f"J3/motioncorrected/{name}.mrc" for name in names], "S")[
        stack
    ]
    records["blob/idx"], records["location/micrograph_uid"] = index, stack
    records["blob/sign"] = 1
    records["blob/shape"], records["location/micrograph_shape"] = 256, 4096
    records["alignments3D/split"] = np.arange(n) % 2
    for name in ("ctf/df1_A", "ctf/df2_A"):
        records[name] *= 3e4
    microscope = {"ctf/accel_kv": 300, "ctf/cs_mm": 2.7, "ctf/amp_contrast": 0.1}
    for name, value in (microscope | {"blob/psize_A": 1.78, "alignments3D/psize_A": 1.78}).items():
        records[name] = value
    return records


def random_prediction(n: int) -> Any:
    """Return a prediction with every field, as random numbers."""
    from cryoforum_plugin.particles import Prediction

    rng = np.random.default_rng(3)
    widths = {"rotation": (4,), "shift_A": (2,), "bingham": (10,), "alternative_rotation": (4,)}
    values = {field.name: rng.normal(size=(n, *widths.get(field.name, ()))) for field in fields(Prediction)}
    return Prediction(**values)


def do(work: Work, folder: Path) -> dict[str, float]:
    """Read and write in this process; return the seconds of both."""
    from cryoforum_plugin import formats

    seconds: dict[str, float] = {}
    for suffix in (".star", ".cs"):
        formats.adapter_for(Path("any" + suffix))  # imports are not what is measured
    if work.table is None:
        return seconds
    start = time.monotonic()
    particles = formats.read_particles(folder / work.table, folder)
    seconds["read_s"] = round(time.monotonic() - start, 2)
    if work.output is not None:
        prediction = random_prediction(len(particles)) if work.predict else None
        start = time.monotonic()
        formats.write_particles(particles, folder / work.output, prediction, True, folder)
        seconds["write_s"] = round(time.monotonic() - start, 2)
    return seconds


def measure(row: str, folder: Path) -> dict[str, float]:
    """Do one row in a process of its own."""
    report = folder / "report.json"
    load = round(os.getloadavg()[0], 1)  # of other programs too
    _, usage = run_process([sys.executable, __file__, "--do", row, "--output", report.name], folder)
    peak_GB = round(maxrss_bytes(usage) / 1e9, 2)
    cpu_s = round(usage.ru_utime + usage.ru_stime, 1)
    return {**json.loads(report.read_text()), "cpu_s": cpu_s, "peak_memory_GB": peak_GB, "load_before": load}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--counts", type=int, nargs="+", default=[1000, 10_000, 100_000, 1_000_000])
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--output", type=Path, default=RESULTS / "tables_million.json")
    parser.add_argument("--do", help=argparse.SUPPRESS)
    parser.add_argument("--make", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.make:
        make_tables(Path.cwd(), options.make)
        return
    if options.do:
        options.output.write_text(json.dumps(do(ROWS[options.do], Path.cwd())))
        return
    content: dict[str, Any] = {"command": command_line(), "machine": machine(), "results": {}}
    print(f"{'particles':>9}  {'':50}{'read, s':>8}{'write, s':>9}{'peak, GB':>9}")
    for n in options.counts:
        with tempfile.TemporaryDirectory() as name:
            # a process inherits the peak memory of the one it is forked from
            run_process([sys.executable, __file__, "--make", str(n)], Path(name))
            for row in options.rows:
                found = content["results"].setdefault(row, {})[n] = measure(row, Path(name))
                read, write = (f"{found[key]:.2f}" if key in found else "" for key in ("read_s", "write_s"))
                print(f"{n:9}  {row:50}{read:>8}{write:>9}{found['peak_memory_GB']:9.2f}", flush=True)
    write_results(options.output, content)


if __name__ == "__main__":
    main()
