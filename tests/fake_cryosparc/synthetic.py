"""Particles as a refinement leaves them, with stacks on disk if wanted; a volume and a mask."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cryosparc.mrc as mrc
import numpy as np
from cryosparc.dataset import Dataset
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from fake_cryosparc.slots import SLOTS
from fake_cryosparc.state import State

SLOT_NAMES = ("blob", "ctf", "alignments3D", "alignments2D", "location", "pick_stats")
PARTICLES_A_MICROGRAPH = 200
LONG_NAME = "FoilHole_23112345_Data_{:08d}_20240131_120000_Fractions_patch_aligned_doseweighted"  # by EPU
Columns = dict[str, NDArray[Any]]


def synthetic_particles(
    n: int,
    folder: Path | None = None,
    *,
    box: int = 32,
    psize_A: float = 1.5,
    stacks: int = 4,
    seed: int = 0,
    job: str = "J1",
    slots: tuple[str, ...] = SLOT_NAMES,
    sign: float = 1.0,
    blob_psize_A: float | None = None,
    path_prefix: str = "",
    micrograph: str = "mic{}",
    symlinked: bool = False,
    copies: int = 1,
    components: int = 0,
    images: NDArray[Any] | None = None,
    pose: NDArray[Any] | None = None,
) -> Dataset:
    """Return n refined particles (70 fields) in `stacks` stacks of the extraction job `job`.

    folder : the project's; writes the stacks there, every other one as float16. None writes nothing.
    sign : blob/sign; with -1 the images are written dark on light.
    blob_psize_A : of the images if they are not those that were refined (downsampled, or full size again).
    path_prefix : ">" as in imported and exported tables.
    micrograph : name of the micrograph of a stack, from its number.
    symlinked : put the stacks outside of the project and link to them.
    copies : of each particle, symmetry-expanded about z with new uids and sym_expand/src_uid.
    components : how many components_mode_k are taken, as by 3DVA.
    images `(n, box, box)` light on dark, pose `(n, 3)` : instead of noise and random ones.
    """
    rng = np.random.default_rng(seed)
    row = np.arange(n) // copies  # the image of each row
    stack, index = row % stacks, row // stacks
    names = np.array(
        [f"{job}/extract/{10**17 + s:021d}_{micrograph.format(s)}_particles.mrc" for s in range(stacks)],
        dtype=object,
    )
    columns: Columns = {"uid": rng.integers(1, 2**64, n, dtype=np.uint64)}
    registry = SLOTS["particle"]
    for slot in slots:
        columns |= {f"{slot}/{name}": _zeros(n, dtype) for name, dtype in registry[slot]}
    _fill_blob(columns, (path_prefix + names)[stack], index, box, blob_psize_A or psize_A, sign)
    _fill_ctf(columns, rng, row)
    _fill_alignments(columns, rng, row, psize_A, copies, pose)
    _fill_location(columns, rng, stack, micrograph)
    if copies > 1:
        _expand(columns, copies)
    for mode in range(components):
        columns[f"components_mode_{mode}/component"] = np.full(n, mode, np.uint32)
        columns[f"components_mode_{mode}/value"] = rng.normal(size=n).astype(np.float32)
    if folder is not None:
        if images is None:
            images = rng.normal(size=(-(-n // copies), box, box))
        _write_stacks(folder, names, images * sign, blob_psize_A or psize_A, symlinked)
    return Dataset(columns)


def synthetic_volume(
    folder: Path, *, name: str = "J2/J2_map.mrc", slot: str = "map", box: int = 32
) -> Dataset:
    """Write a ball and return the dataset of a volume, or with slot "mask" of a mask."""
    axis = np.arange(box) - box // 2
    ball = (axis**2 + axis[:, None] ** 2 + axis[:, None, None] ** 2 < (box / 3) ** 2).astype(np.float32)
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    mrc.write(folder / name, ball, 1.5)
    columns = {f"{slot}/path": np.array([name], object), f"{slot}/shape": np.full((1, 3), box, np.uint32)}
    return Dataset(
        {"uid": np.array([7], np.uint64), **columns, f"{slot}/psize_A": np.array([1.5], np.float32)}
    )


def add_refinement(state: State, n: int = 400, box: int = 32) -> None:
    """Add P1 with W1, the extraction job J1 with stacks on disk, and J2, a refinement of its particles."""
    folder = state.add_project("P1")
    state.add_job("P1", "W1", "extract_micrographs_multi")
    particles = synthetic_particles(n, folder, box=box)
    volume = synthetic_volume(folder, box=box)
    mask = synthetic_volume(folder, name="J2/J2_mask.mrc", slot="mask", box=box)
    outputs = {"particles": particles, "volume": volume, "mask": mask}
    state.add_finished_job("P1", "W1", "nonuniform_refine_new", outputs)
    state.set_status(state.job("P1", "J1"), "completed")


def add_refinement_without_images(state: State, n: int) -> None:
    """Add P1 with W1, J1, and J2, a refinement of very many particles whose stacks are empty files."""
    folder = state.add_project("P1")
    state.add_job("P1", "W1", "extract_micrographs_multi")
    particles = synthetic_particles(n, box=256, stacks=-(-n // PARTICLES_A_MICROGRAPH), micrograph=LONG_NAME)
    (folder / "J1" / "extract").mkdir()
    for name in set(particles["blob/path"].tolist()):
        (folder / name).touch()
    state.add_finished_job("P1", "W1", "nonuniform_refine_new", {"particles": particles})
    state.set_status(state.job("P1", "J1"), "completed")


def _zeros(n: int, dtype: str) -> NDArray[Any]:
    if dtype == "O":
        return np.full(n, "", dtype=object)
    kind = np.dtype(dtype)
    return np.zeros((n, *kind.shape), kind.base)


def _set(columns: Columns, slot: str, **values: Any) -> None:
    """Fill columns of a slot that is there, keeping their types."""
    for name, value in values.items():
        if f"{slot}/{name}" in columns:
            columns[f"{slot}/{name}"][...] = value


def _fill_blob(
    columns: Columns, path: NDArray[Any], index: NDArray[Any], box: int, psize_A: float, sign: float
) -> None:
    _set(columns, "blob", path=path, idx=index, shape=box, psize_A=psize_A, sign=sign)


def _fill_ctf(columns: Columns, rng: np.random.Generator, row: NDArray[Any]) -> None:
    images = int(row.max(initial=-1)) + 1
    defocus_A = rng.uniform(8e3, 2e4, images)[row]
    angle = rng.uniform(0, np.pi, images)[row]
    _set(columns, "ctf", type="spline", exp_group_id=1, accel_kv=300, cs_mm=2.7, amp_contrast=0.1, scale=1)
    _set(columns, "ctf", df1_A=defocus_A, df2_A=defocus_A - 200, df_angle_rad=angle, scale_const=1)


def _fill_alignments(
    columns: Columns,
    rng: np.random.Generator,
    row: NDArray[Any],
    psize_A: float,
    copies: int,
    pose: NDArray[Any] | None,
) -> None:
    n, images = len(row), int(row.max(initial=-1)) + 1
    shift = rng.normal(0, 2, (images, 2))[row]
    common = {"psize_A": psize_A, "shift": shift, "alpha": 1, "class_posterior": 1, "class_ess": 1}
    split = rng.integers(0, 2, images)[row]
    error = rng.uniform(2e4, 3e4, n)
    for slot in ("alignments3D", "alignments2D"):
        scale = rng.uniform(0.5, 1.5, n)
        _set(columns, slot, split=split, error=error, error_min=error, alpha_min=scale, **common)
    _set(columns, "alignments2D", pose=rng.uniform(-np.pi, np.pi, n))
    if pose is None and images:
        rotation = Rotation.random(images, rng=rng)[row]
        turn = 2 * np.pi / copies * (np.arange(n) % copies)
        turned = Rotation.from_rotvec(turn[:, None] * [0, 0, 1]) * rotation
        pose = turned.as_rotvec()
    if pose is not None:
        _set(columns, "alignments3D", pose=pose)


def _fill_location(columns: Columns, rng: np.random.Generator, stack: NDArray[Any], micrograph: str) -> None:
    n = len(stack)
    names = [f"J0/{micrograph.format(s)}.mrc" for s in range(int(stack.max(initial=0)) + 1)]
    micrographs = np.array(names, dtype=object)
    _set(columns, "location", micrograph_uid=stack + 7, exp_group_id=1, micrograph_path=micrographs[stack])
    x, y = rng.uniform(size=(2, n))
    _set(columns, "location", micrograph_shape=4096, center_x_frac=x, center_y_frac=y)
    _set(columns, "pick_stats", ncc_score=rng.uniform(0, 1, n), power=rng.uniform(10, 20, n))


def _expand(columns: Columns, copies: int) -> None:
    """Add sym_expand; copy 0 of a particle holds the uid that all of them name as their source."""
    n = len(columns["uid"])
    row = np.arange(n)
    columns |= {f"sym_expand/{name}": _zeros(n, dtype) for name, dtype in SLOTS["particle"]["sym_expand"]}
    source = columns["uid"][row // copies * copies]
    _set(columns, "sym_expand", src_uid=source, idx=row % copies, symmetry=f"C{copies}")


def _write_stacks(
    folder: Path, names: NDArray[Any], images: NDArray[Any], psize_A: float, symlinked: bool
) -> None:
    extract = folder / Path(names[0]).parent
    if symlinked:
        elsewhere = folder.resolve().parent / "raw" / extract.parent.name
        elsewhere.mkdir(parents=True, exist_ok=True)
        extract.parent.mkdir(parents=True, exist_ok=True)
        extract.symlink_to(elsewhere, target_is_directory=True)
    extract.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        kind = np.float16 if number % 2 else np.float32
        mrc.write(folder / name, images[number :: len(names)].astype(kind), psize_A)
