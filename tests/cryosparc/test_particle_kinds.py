"""Particles as cryoSPARC has them: read as the job reads them, images as training reads them, and back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
import pytest
import torch
from fake_cryosparc import fixtures
from fake_cryosparc.synthetic import SLOT_NAMES, synthetic_particles
from particle_tables import angles_deg, make_prediction
from scipy.spatial.transform import Rotation

from cryoforum_plugin import formats
from cryoforum_plugin.errors import ParticleFileError
from cryoforum_plugin.images.pipeline import ImagePipeline
from cryoforum_plugin.images.stacks import StackReader
from cryoforum_plugin.images.working import WorkingBox
from cryoforum_plugin.particles import ParticleSet, Prediction
from cryoforum_plugin.particles.splitting import split_rows
from cryoforum_plugin.settings import preset, with_values
from cryoforum_plugin.training.preparation import prepare
from cryosparc_job.job import outputs
from cryosparc_job.job.client import project_folder, slot_names
from cryosparc_job.job.connection import connect, find_particles, save_particles
from cryosparc_job.job.life import running
from cryosparc_job.job.stacks import data_root

cryosparc_server = fixtures.cryosparc_server
COUNT, BOX = 40, 16


@dataclass(frozen=True)
class Found:
    """Particles of a job in cryoSPARC, read."""

    client: Any
    job: Any
    table: Path
    root: Path
    particles: ParticleSet


@dataclass(frozen=True)
class Instance:
    """A server, its project P1 and a folder of our own."""

    server: fixtures.Server
    project: Path
    folder: Path

    def find(self, given: Any, project: str = "P1") -> Found:
        """Make `given` (a Dataset) the output of a refinement and read it as the external job does."""
        made = self.server.state.add_finished_job(project, "W1", "homo_refine_new", {"particles": given})
        client = connect(self.server.url)
        job = find_particles(client, project, made["uid"], "particles")
        table = save_particles(job, "particles", self.folder / "read" / "particles.cs")
        origin = project_folder(client.find_project(project))
        root = data_root(client, project, origin, table, table.parent / "stacks")
        assert root == origin
        return Found(client, job, table, root, formats.read_particles(table, root))


@pytest.fixture
def instance(cryosparc_server: fixtures.Server, tmp_path: Path) -> Instance:
    """Return the running server."""
    return Instance(cryosparc_server, Path(cryosparc_server.state.projects["P1"]["project_dir"]), tmp_path)


def written_back(found: Found, prediction: Prediction) -> dict[str, Any]:
    """Write a prediction as an external job does; return what cryoSPARC then has, by output."""
    path = found.table.with_name("predicted.cs")
    formats.write_particles(found.particles, path, prediction)
    predicted = formats.read_particles(path, found.root)
    job = found.client.create_external_job("P1", "W1")
    job.add_input("particle", outputs.INPUT, min=1, max=1, slots=["blob", "alignments3D"])
    job.connect(outputs.INPUT, found.job.uid, "particles")
    slots = outputs.free_slots(slot_names(found.job, "particles"))
    names = outputs.declare(job, slots, selecting=False, has_poses=True)
    with running(job):
        for name, rows in outputs.rows_of(names, len(predicted), None).items():
            outputs.save(job, name, predicted, slots, rows)
    done = found.client.find_job("P1", job.uid)
    return {name: fixtures.load_all(done, name) for name in names}


def pipeline(particles: ParticleSet, side_A: float = 100.0) -> ImagePipeline:
    """Return what training and prediction read images with."""
    reader = StackReader(particles.stacks)
    box = WorkingBox(side_A, BOX)
    return ImagePipeline(particles, reader, reader.check(particles), box, "none", 1.0, torch.device("cpu"))


def bright_images(particles: ParticleSet) -> np.ndarray:
    """Return the images `(n, box, box)` of all rows, protein bright."""
    return pipeline(particles).read_usable(np.arange(len(particles))).numpy()


def images(n: int = COUNT, box: int = BOX) -> np.ndarray:
    """Return noise that float16 holds exactly."""
    return np.random.default_rng(5).normal(size=(n, box, box)).astype(np.float16).astype(np.float32)


KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "dark": {"sign": -1.0},
    "imported": {"path_prefix": ">"},
    "linked": {"symlinked": True},
    "all": {"sign": -1.0, "path_prefix": ">", "symlinked": True},
}


@pytest.mark.parametrize("kind", KINDS)
def test_images_are_found_and_bright(instance: Instance, kind: str) -> None:
    """Stacks alternate between float32 and float16 (mode 12)."""
    given = synthetic_particles(COUNT, instance.project, box=BOX, images=images(), job="J7", **KINDS[kind])
    found = instance.find(given)
    reader = StackReader(found.particles.stacks)
    assert [reader.header(stack).mode for stack in range(4)] == [2, 12, 2, 12]
    np.testing.assert_array_equal(bright_images(found.particles), images())
    predicted = found.table.with_name("predicted.cs")
    formats.write_particles(found.particles, predicted, make_prediction(COUNT))
    np.testing.assert_array_equal(bright_images(formats.read_particles(predicted, found.root)), images())


def test_signs_may_differ_in_one_table(instance: Instance) -> None:
    given = synthetic_particles(COUNT, instance.project, box=BOX, images=images())
    given["blob/sign"] = sign = np.where(np.arange(COUNT) % 3 == 0, -1, 1)
    found = instance.find(given)
    np.testing.assert_array_equal(bright_images(found.particles), images() * sign[:, None, None])


@pytest.mark.parametrize(
    ("dtype", "mode"),
    [(np.int8, 0), (np.int16, 1), (np.float32, 2), (np.uint16, 6), (np.float16, 12)],
)
def test_every_mode_of_stack(instance: Instance, dtype: Any, mode: int) -> None:
    given = synthetic_particles(COUNT, instance.project, box=BOX, stacks=1)
    low, high = {0: (-128, 127), 1: (-32768, 32767), 6: (0, 65535)}.get(mode, (-1000, 1000))
    pixels = np.random.default_rng(0).integers(low, high, (COUNT, BOX, BOX), endpoint=True).astype(dtype)
    pixels[0, 0, :2] = low, high
    with mrcfile.new(instance.project / given["blob/path"][0], pixels, overwrite=True) as file:
        assert file.header.mode == mode
    found = instance.find(given)
    np.testing.assert_array_equal(bright_images(found.particles), pixels.astype(np.float32))


def test_imported_stacks_that_are_links_one_by_one(instance: Instance) -> None:
    """Import Particle Stack leaves J1/imported/UID_name.mrc -> where the user has it, any name."""
    given = synthetic_particles(COUNT, instance.project, box=BOX, images=images(), job="J7")
    names = dict[str, str]()
    for number, name in enumerate(sorted(set(given["blob/path"]))):
        raw = instance.folder / "raw data" / f"Teilchen_ä_{number}.mrcs"
        raw.parent.mkdir(exist_ok=True)
        (instance.project / name).rename(raw)
        names[name] = f"J7/imported/{10**20 + number}_{raw.name}"
        (instance.project / names[name]).parent.mkdir(exist_ok=True)
        (instance.project / names[name]).symlink_to(raw)
    given["blob/path"] = np.array([names[name] for name in given["blob/path"]], dtype=object)
    found = instance.find(given)
    np.testing.assert_array_equal(bright_images(found.particles), images())


def test_a_project_folder_that_is_a_link(instance: Instance) -> None:
    folder = instance.server.state.add_project("P2", symlinked=True)
    given = synthetic_particles(COUNT, folder, box=BOX, images=images())
    found = instance.find(given, project="P2")
    assert found.root.is_symlink()
    np.testing.assert_array_equal(bright_images(found.particles), images())


def dots(shift_px: np.ndarray, box: int) -> np.ndarray:
    """Return images `(n, box, box)` of a spot at -shift_px `(n, 2)` x, y from pixel box // 2."""
    axis = np.arange(box) - box // 2
    x, y = (np.exp(-((axis + shift_px[:, i, None]) ** 2) / 4.5) for i in (0, 1))
    return np.einsum("ny,nx->nyx", y, x)


@pytest.mark.parametrize("blob_psize_A", [1.5, 3.0, 0.75])
def test_shifts_are_in_pixels_of_the_alignment(instance: Instance, blob_psize_A: float) -> None:
    """Binned after the refinement, or full size again: shifts still centre the particle."""
    psize_A, box = 1.5, 32
    options = {"box": box, "psize_A": psize_A, "blob_psize_A": blob_psize_A, "job": "J7"}
    shift_px = synthetic_particles(COUNT, **options)["alignments3D/shift"].clip(-3, 3)
    shift_A = shift_px * psize_A
    given = synthetic_particles(COUNT, instance.project, images=dots(shift_A / blob_psize_A, box), **options)
    given["alignments3D/shift"] = shift_px
    found = instance.find(given)
    particles, rows = found.particles, np.arange(COUNT)
    assert particles.shift_A is not None
    np.testing.assert_allclose(particles.shift_A, shift_A, atol=1e-5)
    np.testing.assert_allclose(particles.pixel_size_A, blob_psize_A)
    reading = pipeline(particles, side_A=BOX * blob_psize_A)
    centred = reading.working(rows, particles.shift_A, reading.read(rows)).numpy()
    centred -= centred[:, :1, :1]
    centred /= centred[:, BOX // 2, BOX // 2, None, None]  # the background was normalised
    np.testing.assert_allclose(centred, dots(np.zeros((COUNT, 2)), BOX), atol=0.02)

    prediction = make_prediction(COUNT)
    got = written_back(found, prediction)["particles_network_pose"]
    np.testing.assert_array_equal(got["alignments3D/psize_A"], np.float32(psize_A))
    np.testing.assert_allclose(got["alignments3D/shift"] * psize_A, prediction.shift_A, atol=1e-5)
    pose = Rotation.from_rotvec(got["alignments3D/pose"]).as_quat()
    assert angles_deg(pose, prediction.rotation).max() < 1e-4


@pytest.mark.parametrize("restacked", [False, True])
def test_copies_are_trained_on_or_validated_never_both(instance: Instance, restacked: bool) -> None:
    """Symmetry-expanded; after Restack every copy has an image of its own."""
    n, copies = 600, 3
    rng = np.random.default_rng(1)
    given = synthetic_particles(n, instance.project, box=BOX, copies=copies)
    if restacked:
        path = Path("J1/restack/batch.mrc")
        (instance.project / path).parent.mkdir()
        mrcfile.write(instance.project / path, rng.normal(size=(n, BOX, BOX)).astype(np.float32))
        given["blob/path"], given["blob/idx"] = np.full(n, str(path), dtype=object), np.arange(n)
    given = given.take(rng.permutation(n))
    found = instance.find(given)
    source = given["sym_expand/src_uid"]

    def check(training: np.ndarray, validation: np.ndarray) -> None:
        assert sorted([*training, *validation]) == list(range(n))
        assert len(validation) > n * 0.02
        assert not set(source[training]) & set(source[validation])

    for seed in range(3):
        check(*split_rows(found.particles, 0.1, seed))
    small = {"images.margin": None, "training.simulated": 0.0, "training.reference_particles": 100}
    settings = with_values(preset("default"), small)
    prepared = prepare(found.particles, settings, instance.folder, torch.device("cpu"), True)
    check(prepared.training_rows, prepared.validation_rows)


def test_copies_without_their_slot_are_known_by_their_image(instance: Instance) -> None:
    given = synthetic_particles(120, instance.project, box=BOX, copies=3)
    source = np.array(given["sym_expand/src_uid"])
    given = given.drop_fields([name for name in given.fields() if name.startswith("sym_expand")])
    training, validation = split_rows(instance.find(given).particles, 0.2, 0)
    assert not set(source[training]) & set(source[validation])


def test_groups_halves_and_everything_else_come_back_unchanged(instance: Instance) -> None:
    """Only our components and the network's poses are new; slots that we never read are passed through."""
    given = synthetic_particles(COUNT, instance.project, box=BOX, components=1)
    given["ctf/exp_group_id"] = group = np.arange(COUNT, dtype=np.uint32) % 3 * 8
    given["alignments3D/split"] = half = (np.arange(COUNT) % 3 == 0).astype(np.uint32)
    given.add_fields([("my_slot/number", "<u4")])
    given["my_slot/number"] = np.arange(COUNT)
    found = instance.find(given)
    slots = {name.split("/")[0] for name in np.load(found.table).dtype.names}
    assert slots == {"uid", "blob", "ctf", "alignments3D", "location", "components_mode_0"}
    np.testing.assert_array_equal(found.particles.optics_group, group)
    np.testing.assert_array_equal(found.particles.half_set, half + 1)

    got = written_back(found, make_prediction(COUNT))
    moved = {"alignments3D/pose", "alignments3D/shift"}
    for name, changed in (("particles", set[str]()), ("particles_network_pose", moved)):
        np.testing.assert_array_equal(got[name]["uid"], given["uid"])
        for field in given.fields():
            same = np.array_equal(got[name][field], given[field])
            assert same != (field in changed), (name, field)
    ours = set(got["particles"].prefixes()) - set(given.prefixes())
    assert ours == {f"components_mode_{k}" for k in (1, 2, 3, 4)}


def test_a_pose_that_is_not_a_number(instance: Instance) -> None:
    given = synthetic_particles(COUNT, instance.project, box=BOX)
    given["alignments3D/pose"][[4, 9]] = np.nan
    with pytest.raises(ParticleFileError) as error:
        instance.find(given)
    message = str(error.value)
    assert f"row 5 (uid {given['uid'][4]}), field alignments3D/pose:" in message
    assert "(and 1 more rows); remove the row" in message
    assert "\n" not in message


@pytest.mark.parametrize("missing", ["ctf", "location"])
def test_slots_that_may_be_missing(instance: Instance, missing: str) -> None:
    slots = tuple(name for name in SLOT_NAMES if name != missing)
    given = synthetic_particles(COUNT, instance.project, box=BOX, slots=slots, images=images())
    found = instance.find(given)
    particles = found.particles
    np.testing.assert_array_equal(bright_images(particles), images())
    if missing == "ctf":
        assert particles.ctf is None
        np.testing.assert_array_equal(particles.optics_group, 1)  # that of the location
        with pytest.raises(ParticleFileError, match=r"no CTF parameters .*pass --no-ctf"):
            prepare(particles, preset("default"), instance.folder, torch.device("cpu"), True)
    else:
        np.testing.assert_array_equal(particles.micrograph, -1)
        assert len(np.unique(particles.origin)) == COUNT
    prediction = make_prediction(COUNT)
    got = written_back(found, prediction)
    np.testing.assert_allclose(got["particles"]["components_mode_0/value"], prediction.confidence, rtol=1e-6)
    assert not [field for field in got["particles"].fields() if field.startswith(missing)]
