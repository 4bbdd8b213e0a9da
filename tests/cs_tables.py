"""cryoSPARC tables with known numbers, built in code."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml
from scipy.spatial.transform import Rotation

from cryosparc_job.groups import read_table

SHUFFLED = np.array([3, 0, 5, 1, 4, 2])
PASSTHROUGH = ("blob", "location")
TYPE = [
    ("uid", "<u8"), ("blob/path", "S40"), ("blob/idx", "<u4"), ("blob/shape", "<u4", (2,)),
    ("blob/psize_A", "<f4"), ("blob/sign", "<f4"), ("ctf/type", "S9"), ("ctf/exp_group_id", "<u4"),
    ("ctf/accel_kv", "<f4"), ("ctf/cs_mm", "<f4"), ("ctf/amp_contrast", "<f4"), ("ctf/df1_A", "<f4"),
    ("ctf/df2_A", "<f4"), ("ctf/df_angle_rad", "<f4"), ("ctf/phase_shift_rad", "<f4"),
    ("alignments3D/split", "<u4"), ("alignments3D/shift", "<f4", (2,)), ("alignments3D/pose", "<f4", (3,)),
    ("alignments3D/psize_A", "<f4"), ("alignments3D/error", "<f4"), ("location/micrograph_uid", "<u8"),
]  # fmt: skip


def make_records(n: int = 6) -> np.ndarray:
    """Return a table as a refinement of binned particles leaves it."""
    rng = np.random.default_rng(3)
    records = np.zeros(n, dtype=TYPE)
    records["uid"] = rng.integers(2**63, 2**64, n, dtype=np.uint64)
    records["blob/path"] = [b">J1/extract/a.mrc", b">J1/extract/b.mrc"] * (n // 2)
    records["blob/idx"] = np.arange(n) // 2
    records["blob/shape"] = 8
    records["blob/psize_A"] = 1.5
    records["blob/sign"] = -1
    records["ctf/type"] = b"ctffind4"
    records["ctf/exp_group_id"] = 7
    records["ctf/accel_kv"] = 300
    records["ctf/cs_mm"] = 2.7
    records["ctf/amp_contrast"] = 0.1
    records["ctf/df1_A"] = rng.uniform(8e3, 3e4, n)
    records["ctf/df2_A"] = rng.uniform(8e3, 3e4, n)
    records["ctf/df_angle_rad"] = rng.uniform(-1.57, 4.71, n)
    records["ctf/phase_shift_rad"] = np.pi / 2
    records["alignments3D/split"] = np.arange(n) % 2
    records["alignments3D/shift"] = rng.normal(size=(n, 2))
    records["alignments3D/pose"] = Rotation.random(n, rng=rng).as_rotvec()
    records["alignments3D/psize_A"] = 3.0
    records["alignments3D/error"] = np.nan  # not ours, so not our business
    records["location/micrograph_uid"] = [2**63, 5] * (n // 2)
    return records


def written(path: Path, records: np.ndarray, compressed: bool = False) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if compressed:
        dataset = pytest.importorskip("cryosparc.dataset")
        dataset.Dataset(records).save(str(path), format=dataset.CSDAT_FORMAT)
    else:
        with open(path, "wb") as file:
            np.save(file, records)
    return path


def load(path: Path) -> np.ndarray:
    """Read a .cs with the client's own reader where it is compressed."""
    if path.read_bytes()[:6] == b"\x93NUMPY":
        return np.load(path)
    return pytest.importorskip("cryosparc.dataset").Dataset.load(str(path)).to_records(fixed=True)


def part(records: np.ndarray, *slots: str) -> np.ndarray:
    """Return a table of some slots, as cryoSPARC writes them: uid first, no gaps."""
    names = ["uid", *(name for name in records.dtype.names if name.split("/")[0] in slots)]
    table = np.empty(len(records), dtype=[(name, records.dtype[name]) for name in names])
    for name in names:
        table[name] = records[name]
    return table


def write_group(path: Path, metafiles: dict[str, str], kind: str = "particle") -> Path:
    results = {
        slot: {"metafile": file, "num_items": 6, "type": f"{kind}.{slot}"} for slot, file in metafiles.items()
    }
    path.write_text(yaml.safe_dump({"group": {"name": "x", "type": kind}, "results": results}))
    return path


def write_job(folder: Path, name: str = "J42_005_particles.cs", passthrough: str = "J42_passthrough_particles.cs") -> Path:  # fmt: skip
    """Write a refinement's files: poses and CTF in one file, images in the other, in another order."""
    records = make_records()
    written(folder / passthrough, part(records, *PASSTHROUGH)[SHUFFLED])
    return written(folder / name, part(records, "ctf", "alignments3D"))


def write_job_group(folder: Path) -> Path:
    write_job(folder)
    files = dict.fromkeys(("alignments3D", "ctf"), ">J42_005_particles.cs")
    return write_group(
        folder / "J42_particles.csg", files | dict.fromkeys(PASSTHROUGH, ">J42_passthrough_particles.cs")
    )


def assert_whole(path: Path) -> None:
    """Assert that a path reads as the table that the files were cut from, whatever the order of columns."""
    records, expected = read_table(path)[0], make_records()
    assert set(records.dtype.names) == set(expected.dtype.names)
    for name in expected.dtype.names:
        np.testing.assert_array_equal(records[name], expected[name], err_msg=name)
        assert records.dtype[name] == expected.dtype[name]
