"""One body over both hosts: the same particles as .star and as .cs are the same particles."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from particle_tables import BOX, angles_deg, make_particles, make_prediction

from cryoforum_plugin.errors import OutputError, ParticleFileError
from cryoforum_plugin.formats import read_many, read_particles, write_particles
from cryoforum_plugin.images.stacks import StackReader
from cryoforum_plugin.particles import ParticleSet

BOTH = pytest.mark.parametrize("suffix", [".star", ".cs"])
PAIRS = pytest.mark.parametrize(
    ("first", "second"), [(".star", ".cs"), (".cs", ".star"), (".cs", ".cs"), (".star", ".star")]
)


def assert_same_particles(a: ParticleSet, b: ParticleSet) -> None:
    """Assert that poses, shifts, CTF, images, half sets and groupings agree."""
    assert angles_deg(a.require_rotation(), b.require_rotation()).max() < 1e-4
    np.testing.assert_allclose(a.shift_A, b.shift_A, atol=2e-5)
    for name in vars(a.require_ctf()):
        np.testing.assert_allclose(
            getattr(a.ctf, name), getattr(b.ctf, name), rtol=1e-6, atol=1e-2, err_msg=name
        )
    np.testing.assert_allclose(a.pixel_size_A, b.pixel_size_A, rtol=1e-6)
    assert [a.stacks[i] for i in a.stack_index] == [b.stacks[i] for i in b.stack_index]
    for name in ("slice_index", "half_set"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)
    for name in ("micrograph", "origin"):  # any numbers, but the same groups
        first = [np.unique(getattr(s, name), return_index=True, return_inverse=True)[1:] for s in (a, b)]
        np.testing.assert_array_equal(*(index[inverse] for index, inverse in first), err_msg=name)


@BOTH
def test_what_is_written_is_read(suffix: str, project: Path) -> None:
    made = make_particles(project)
    write_particles(made, project / f"a{suffix}")
    again = read_particles(project / f"a{suffix}")
    assert_same_particles(again, made)
    assert StackReader(again.stacks).check(again) == BOX


@PAIRS
def test_hosts_agree_after_conversion(first: str, second: str, project: Path) -> None:
    write_particles(make_particles(project), project / f"a{first}")
    particles = read_particles(project / f"a{first}")
    write_particles(particles, project / f"b{second}")
    assert_same_particles(read_particles(project / f"b{second}"), particles)


@PAIRS
def test_predictions_survive_conversion_and_selection(first: str, second: str, project: Path) -> None:
    prediction, rows = make_prediction(12), np.array([7, 2, 9])
    write_particles(make_particles(project), project / f"a{first}")
    write_particles(read_particles(project / f"a{first}"), project / f"b{first}", prediction)
    write_particles(read_particles(project / f"b{first}")[rows], project / f"c{second}")
    again = read_particles(project / f"c{second}")
    assert again.prediction is not None
    assert angles_deg(again.require_rotation(), prediction.rotation[rows]).max() < 1e-4
    for name in ("confidence", "expected_error_deg", "expected_shift_error_A", "credible_radius_90_deg",
                 "lambda_max", "trace", "bingham", "outlier_score"):  # fmt: skip
        np.testing.assert_allclose(
            getattr(again.prediction, name), getattr(prediction, name)[rows], rtol=1e-6, atol=1e-6
        )


@BOTH
def test_images_read_alike(suffix: str, project: Path) -> None:
    made = make_particles(project)
    write_particles(made, project / f"a{suffix}")
    again = read_particles(project / f"a{suffix}")[::-1]
    images = StackReader(again.stacks).read(again.stack_index, again.slice_index)
    expected = StackReader(made.stacks).read(made.stack_index, made.slice_index)
    np.testing.assert_array_equal(images[::-1], expected)


@BOTH
def test_missing_and_existing_files(suffix: str, project: Path) -> None:
    with pytest.raises(ParticleFileError, match=rf"none{suffix}: no such file"):
        read_particles(Path(f"none{suffix}"))
    write_particles(make_particles(project), project / f"a{suffix}")
    with pytest.raises(OutputError, match="exists already"):
        write_particles(make_particles(project), project / f"a{suffix}")


@pytest.mark.parametrize("name", ["a.mrcs", "a", "a.csv"])
def test_unknown_suffixes(name: str, tmp_path: Path) -> None:
    message = r"unknown kind of particle file; the name must end in \.star, \.cs or \.csg"
    with pytest.raises(ParticleFileError, match=message):
        read_particles(tmp_path / name)
    with pytest.raises(ParticleFileError, match=message):
        write_particles(make_particles(tmp_path), tmp_path / name)


def test_what_cannot_be_converted(project: Path, caplog: pytest.LogCaptureFixture) -> None:
    made = make_particles(project)
    write_particles(replace(made, ctf=None), project / "a.star")
    with pytest.raises(
        ParticleFileError, match=r"no CTF parameters, so it cannot become b\.cs; .* ends in \.star"
    ):
        write_particles(read_particles(project / "a.star"), project / "b.cs")
    write_particles(replace(made, contrast_sign=-made.contrast_sign), project / "dark.cs")
    assert caplog.text == ""
    write_particles(read_particles(project / "dark.cs"), project / "dark.star")
    assert "protein is dark in these images" in caplog.text


@BOTH
def test_one_file_of_many_is_itself(suffix: str, project: Path) -> None:
    write_particles(make_particles(project), project / f"a{suffix}")
    assert read_many([project / f"a{suffix}"]).host is not None
    with pytest.raises(ParticleFileError, match="no particle files given"):
        read_many([])


def test_many_files_become_one_set(project: Path) -> None:
    made = make_particles(project)
    other = make_particles(project / "two", n=5, seed=2)
    write_particles(made, project / "a.star")
    write_particles(other, project / "b.cs")
    write_particles(made[np.array([3, 4])], project / "again.cs")
    joined = read_many([project / "a.star", project / "b.cs", project / "again.cs"])
    assert (joined.host, joined.prediction) == (None, None)
    assert str(joined.source) == ", ".join(str(project / name) for name in ("a.star", "b.cs", "again.cs"))
    assert_same_particles(replace(joined[:12], origin=made.origin), made)
    np.testing.assert_allclose(
        joined.shift_A, np.concatenate([made.shift_A, other.shift_A, made.shift_A[3:5]]), atol=1e-5
    )
    np.testing.assert_allclose(joined.pixel_size_A[12:17], other.pixel_size_A, rtol=1e-6)
    assert len(joined.stacks) == 4
    assert len(np.unique(joined.uid)) == 19
    assert len(np.unique(joined.origin)) == 17
    assert joined.origin[17:].tolist() == joined.origin[3:5].tolist()
    assert not set(joined.micrograph[:12].tolist()) & set(joined.micrograph[12:17].tolist())
    assert joined.micrograph[17:].tolist() == joined.micrograph[3:5].tolist()
    images = StackReader(joined.stacks).read(joined.stack_index, joined.slice_index)
    expected = StackReader(other.stacks).read(other.stack_index, other.slice_index)
    np.testing.assert_array_equal(images[12:17], expected)
    assert joined[np.array([1, 18])].host is None


def test_many_files_keep_expanded_copies_together(project: Path) -> None:
    made = make_particles(project)
    from cryosparc_job.cs_file import with_fields

    write_particles(made, project / "a.cs")
    particles = read_particles(project / "a.cs")
    source = np.repeat(np.arange(6), 2).astype("<u8")
    expanded = with_fields(particles.host.records, {"sym_expand/src_uid": source})
    np.save(project / "b.npy", expanded)
    (project / "b.npy").rename(project / "b.cs")
    write_particles(made[np.array([0])], project / "c.star")
    joined = read_many([project / "b.cs", project / "c.star"])
    assert joined.origin[12] == joined.origin[0] == joined.origin[1]
    assert len(np.unique(joined.origin)) == 6


def test_unique_uids_are_kept(project: Path) -> None:
    made = make_particles(project)
    write_particles(replace(made, uid=made.uid + np.uint64(2**63)), project / "a.cs")
    write_particles(made, project / "b.star")
    joined = read_many([project / "a.cs", project / "b.star"])
    assert joined.uid[:12].tolist() == [2**63 + i for i in range(12)]


def test_many_files_must_have_the_same_parts(project: Path) -> None:
    made = make_particles(project)
    write_particles(made, project / "a.star")
    write_particles(replace(made, rotation=None, shift_A=None), project / "flat.star")
    write_particles(replace(made, ctf=None), project / "noctf.star")
    with pytest.raises(ParticleFileError, match=r"flat\.star: no orientations"):
        read_many([project / "a.star", project / "flat.star"])
    assert read_many([project / "flat.star", project / "flat.star"]).rotation is None
    with pytest.raises(ParticleFileError, match=r"noctf\.star: no CTF parameters, unlike the other files"):
        read_many([project / "a.star", project / "noctf.star"])
    assert read_many([project / "noctf.star"] * 2).ctf is None


def test_adapters_are_imported_when_asked() -> None:
    code = (
        "import sys, cryoforum_plugin.formats;"
        "assert not [m for m in sys.modules if m.split('.')[0] in ('relion_external', 'cryosparc_job', 'cryosparc', 'torch')]"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_reference_pair_agrees(shared_data: Path) -> None:
    folder = shared_data / "real" / "empiar10076"
    star = read_particles(folder / "empiar_10076_7.star", folder)
    cs = read_particles(folder / "empiar_10076_7.cs")
    assert star.stacks == cs.stacks
    np.testing.assert_array_equal(star.slice_index, cs.slice_index)
    np.testing.assert_allclose(star.pixel_size_A, cs.pixel_size_A, rtol=1e-6)
    for name in vars(star.require_ctf()):
        np.testing.assert_allclose(
            getattr(star.ctf, name), getattr(cs.ctf, name), rtol=1e-6, atol=1e-6, err_msg=name
        )
    assert StackReader(star.stacks).check(star) == StackReader(cs.stacks).check(cs) == 320


def test_reference_refinement_becomes_star(shared_data: Path, tmp_path: Path) -> None:
    source = shared_data / "real" / "cryosparc_refined" / "cryosparc_P12_J24_001_particles.cs"
    cs = read_particles(source, tmp_path)
    write_particles(cs, tmp_path / "a.star", data_root=tmp_path)
    star = read_particles(tmp_path / "a.star", tmp_path)
    assert_same_particles(star, replace(cs, micrograph=star.micrograph))
    with np.load(source.with_name("oracle_pose_ctf.npz")) as oracle:
        from scipy.spatial.transform import Rotation

        matrices = Rotation.from_quat(star.require_rotation()).as_matrix().transpose(0, 2, 1)
        np.testing.assert_allclose(matrices, oracle["rotation_matrix"], atol=1e-6)
        shift = star.shift_A / (2.95 * 180)
        np.testing.assert_allclose(shift, oracle["translation_fraction_of_box"], atol=1e-7)
        np.testing.assert_allclose(star.require_ctf().defocus_u_A, oracle["ctf"][:, 2], atol=1e-2)
