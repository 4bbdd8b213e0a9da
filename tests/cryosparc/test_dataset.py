""".cs files, plain and compressed, in and out."""

from __future__ import annotations

import logging
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cs_tables import load, make_records, written
from particle_tables import angles_deg, make_particles, make_prediction
from scipy.spatial.transform import Rotation

from cryoforum_plugin.errors import OutputError, ParticleFileError
from cryoforum_plugin.particles import ParticleSet, Prediction
from cryosparc_job.cs_file import with_fields
from cryosparc_job.dataset import read_particles, write_particles
from cryosparc_job.posterior_file import posterior_path


@pytest.fixture(params=[False, True], ids=["numpy", "csdat"])
def cs(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return written(tmp_path / "P1" / "J5" / "particles.cs", make_records(), request.param)


def test_every_quantity(cs: Path) -> None:
    records, particles = make_records(), read_particles(cs, Path("/data"))
    assert particles.stacks == (Path("/data/J1/extract/a.mrc"), Path("/data/J1/extract/b.mrc"))
    assert particles.stack_index.tolist() == [0, 1] * 3
    assert particles.slice_index.tolist() == [0, 0, 1, 1, 2, 2]
    assert particles.pixel_size_A.tolist() == [1.5] * 6
    expected = Rotation.from_rotvec(records["alignments3D/pose"].astype(float)).as_quat()
    assert angles_deg(particles.require_rotation(), expected).max() < 1e-6
    np.testing.assert_allclose(particles.shift_A, records["alignments3D/shift"] * 3.0, rtol=1e-6)
    ctf = particles.require_ctf()
    np.testing.assert_array_equal(ctf.defocus_u_A, records["ctf/df1_A"])
    np.testing.assert_array_equal(ctf.defocus_v_A, records["ctf/df2_A"])
    np.testing.assert_allclose(ctf.defocus_angle_deg, np.degrees(records["ctf/df_angle_rad"].astype(float)))
    np.testing.assert_allclose(ctf.phase_shift_deg, 90, rtol=1e-6)
    assert ctf.voltage_kV.tolist() == [300.0] * 6
    assert particles.contrast_sign.tolist() == [-1.0] * 6
    assert particles.optics_group.tolist() == [7] * 6
    assert particles.half_set.tolist() == [1, 2] * 3
    assert particles.micrograph.tolist() == [1, 0] * 3
    assert len(set(particles.origin.tolist())) == 6
    np.testing.assert_array_equal(particles.uid, records["uid"])
    assert particles.prediction is None


def test_the_project_folder_is_found_above_the_file(cs: Path, tmp_path: Path, project: Path) -> None:
    assert read_particles(cs).stacks[0] == project / "J1" / "extract" / "a.mrc"
    stack = tmp_path / "P1" / "J1" / "extract" / "b.mrc"
    stack.parent.mkdir(parents=True)
    stack.touch()
    assert read_particles(cs).stacks == (stack.with_name("a.mrc"), stack)
    assert read_particles(cs, tmp_path).stacks[1] == tmp_path / "J1" / "extract" / "b.mrc"


def test_symmetry_expanded_copies_share_their_origin(tmp_path: Path) -> None:
    source = np.array([11, 12, 11, 12, 13, 13], dtype="<u8")
    records = with_fields(make_records(), {"sym_expand/src_uid": source})
    particles = read_particles(written(tmp_path / "a.cs", records))
    assert particles.origin.tolist() == [0, 1, 0, 1, 2, 2]


def without(*prefixes: str) -> np.ndarray:
    records = make_records()
    return records[[name for name in records.dtype.names if not name.startswith(prefixes)]].copy()


def test_what_may_be_missing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = written(tmp_path / "a.cs", without("alignments3D", "ctf", "location", "blob/sign"))
    with caplog.at_level(logging.INFO):
        particles = read_particles(path)
    assert "no 3D alignment" in caplog.text
    assert (particles.rotation, particles.shift_A, particles.ctf) == (None, None, None)
    assert particles.half_set.tolist() == [0] * 6
    assert particles.micrograph.tolist() == [-1] * 6
    assert particles.contrast_sign.tolist() == [1.0] * 6


def spoiled(name: str, value: float) -> np.ndarray:
    records = make_records()
    records[name][2:4] = value
    return records


@pytest.mark.parametrize(
    ("records", "message"),
    [
        (without("blob/path"), r"no field blob/path; .*passthrough"),
        (without("uid", "blob/idx"), r"no field uid, blob/idx"),
        (make_records()[:0], r"holds no particles"),
        (without("ctf/cs_mm"), r"incomplete CTF parameters, no field ctf/cs_mm"),
        (
            spoiled("alignments3D/pose", np.nan),
            r"row 3 \(uid \d+\), field alignments3D/pose: .* \(and 1 more rows\)",
        ),
        (spoiled("ctf/df1_A", np.inf), r"row 3 \(uid \d+\), field ctf/df1_A: inf is not a number"),
        (spoiled("blob/psize_A", 0), r"row 3: field blob/psize_A is not positive"),
        (spoiled("alignments3D/psize_A", 0), r"row 3: field alignments3D/psize_A is not positive"),
        (np.zeros(3), r"not a .cs file but a plain NumPy array"),
    ],
)
def test_unusable_files_say_why(records: np.ndarray, message: str, tmp_path: Path) -> None:
    path = written(tmp_path / "a.cs", records)
    with pytest.raises(ParticleFileError, match=message) as caught:
        read_particles(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"the file is empty"),
        (b"data_particles\n", r"not a .cs file"),
        (b"\x93NUMPY\x01\x00v\x00{'descr", r"damaged \.cs file"),
        (b"\x95CSDAT\xff\xff\x00\x00{", r"damaged \.cs file"),
    ],
)
def test_damaged_files_are_refused(content: bytes, message: str, tmp_path: Path) -> None:
    if content.startswith(b"\x95"):
        pytest.importorskip("cryosparc.dataset")
    path = tmp_path / "a.cs"
    path.write_bytes(content)
    with pytest.raises(ParticleFileError, match=message):
        read_particles(path)


@pytest.mark.parametrize("compressed", [False, True])
def test_cut_files_are_refused(compressed: bool, tmp_path: Path) -> None:
    path = written(tmp_path / "a.cs", make_records(), compressed)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ParticleFileError, match=r"damaged \.cs file"):
        read_particles(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ParticleFileError, match=r"cannot read .*none\.cs: No such file"):
        read_particles(tmp_path / "none.cs")


def test_compressed_files_without_the_client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.cs"
    path.write_bytes(b"\x95CSDAT")
    monkeypatch.setitem(sys.modules, "cryosparc", None)
    with pytest.raises(
        ParticleFileError, match=r"needs cryosparc-tools; run: pip install 'cryoforum\[cryosparc\]'"
    ):
        read_particles(path)


def same_fields(path: Path, other: Path, names: tuple[str, ...]) -> bool:
    a, b = load(path), load(other)
    return all(a[name].tobytes() == b[name].tobytes() and a.dtype[name] == b.dtype[name] for name in names)


def test_unchanged_particles_are_written_as_they_were(cs: Path, tmp_path: Path) -> None:
    particles, path = read_particles(cs), tmp_path / "same.cs"
    write_particles(particles, path)
    assert path.read_bytes() == cs.read_bytes()
    assert not posterior_path(path).exists()
    with pytest.raises(OutputError, match="exists already"):
        write_particles(particles, path)
    write_particles(particles[np.array([4, 1])], path, overwrite=True)
    assert path.read_bytes()[:6] == cs.read_bytes()[:6]
    assert load(path)["uid"].tolist() == make_records()["uid"][[4, 1]].tolist()


def test_predictions_round_trip_and_the_rest_is_kept(cs: Path, tmp_path: Path) -> None:
    particles, prediction, path = read_particles(cs), make_prediction(6), tmp_path / "predicted.cs"
    write_particles(particles, path, prediction)
    assert path.read_bytes()[:6] == cs.read_bytes()[:6]
    names = make_records().dtype.names
    kept = tuple(name for name in names if name not in ("alignments3D/pose", "alignments3D/shift"))
    assert same_fields(cs, path, kept)
    records = load(path)
    assert records.dtype.names[: len(names)] == names
    assert records.dtype.names[len(names) :] == tuple(
        f"components_mode_{k}/{part}" for k in range(4) for part in ("component", "value")
    )
    assert [records.dtype[f"components_mode_0/{part}"].str for part in ("component", "value")] == [
        "<u4",
        "<f4",
    ]
    fields = ("confidence", "expected_error_deg", "credible_radius_90_deg", "outlier_score")
    for k, name in enumerate(fields):
        np.testing.assert_array_equal(
            records[f"components_mode_{k}/value"], getattr(prediction, name).astype("f4")
        )
    again = read_particles(path)
    assert again.prediction is not None
    assert angles_deg(again.require_rotation(), prediction.rotation).max() < 1e-4
    np.testing.assert_allclose(again.shift_A, prediction.shift_A, rtol=1e-6, atol=1e-6)
    for name in fields:
        np.testing.assert_allclose(getattr(again.prediction, name), getattr(prediction, name), rtol=1e-6)
    for name in ("bingham", "lambda_max", "trace", "expected_shift_error_A"):
        np.testing.assert_array_equal(getattr(again.prediction, name), getattr(prediction, name))


def test_a_subset_of_predictions_stays_recognised(cs: Path, tmp_path: Path) -> None:
    prediction = make_prediction(6)
    write_particles(read_particles(cs), tmp_path / "all.cs", prediction)
    rows = np.array([5, 0, 3])
    write_particles(read_particles(tmp_path / "all.cs")[rows], tmp_path / "some.cs")
    again = read_particles(tmp_path / "some.cs").prediction
    assert again is not None
    np.testing.assert_array_equal(again.bingham, prediction.bingham[rows])
    np.testing.assert_allclose(again.confidence, prediction.confidence[rows], rtol=1e-6)


def test_a_side_file_of_an_overwritten_prediction_goes(tmp_path: Path) -> None:
    path, out = written(tmp_path / "a.cs", make_records()), tmp_path / "b.cs"
    write_particles(read_particles(path), out, make_prediction(6))
    with pytest.raises(OutputError, match="exists already"):
        write_particles(read_particles(path), out)
    assert posterior_path(out).exists()
    write_particles(read_particles(path), out, overwrite=True)
    assert not posterior_path(out).exists()


def test_a_side_file_in_the_way_is_not_overwritten(tmp_path: Path) -> None:
    path, out = written(tmp_path / "a.cs", make_records()), tmp_path / "b.cs"
    posterior_path(out).touch()
    with pytest.raises(OutputError, match=r"b_posterior\.npz exists already"):
        write_particles(read_particles(path), out, make_prediction(6))
    assert not out.exists()


def test_slots_of_others_are_respected_and_ours_reused(tmp_path: Path) -> None:
    others = {"components_mode_0/component": np.zeros(6, "<u4"), "components_mode_0/value": np.full(6, 9, "<f4"),
              "components_mode_2/value": np.full(6, 8, "<f4")}  # fmt: skip
    path = written(tmp_path / "a.cs", with_fields(make_records(), others))
    write_particles(read_particles(path), tmp_path / "b.cs", make_prediction(6, seed=1))
    second = make_prediction(6, seed=2)
    write_particles(read_particles(tmp_path / "b.cs"), tmp_path / "c.cs", second)
    records = load(tmp_path / "c.cs")
    assert records.dtype == load(tmp_path / "b.cs").dtype
    assert set(records["components_mode_0/value"].tolist()) == {9.0}
    assert set(records["components_mode_2/value"].tolist()) == {8.0}
    for k, name in (
        (1, "confidence"),
        (3, "expected_error_deg"),
        (4, "credible_radius_90_deg"),
        (5, "outlier_score"),
    ):
        np.testing.assert_array_equal(
            records[f"components_mode_{k}/value"], getattr(second, name).astype("f4")
        )


def test_a_foreign_or_broken_side_file_is_ignored(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = written(tmp_path / "a.cs", make_records())
    write_particles(read_particles(path), tmp_path / "b.cs", make_prediction(6))
    other = make_records()
    other["uid"] += np.uint64(1)
    written(tmp_path / "b.cs", other)
    assert read_particles(tmp_path / "b.cs").prediction is None
    assert "belongs to other particles" in caplog.text
    posterior_path(tmp_path / "b.cs").write_bytes(b"PK\x03\x04 no")
    assert read_particles(tmp_path / "b.cs").prediction is None
    assert "not a readable posterior file" in caplog.text


def test_unchanged_poses_keep_their_bits(cs: Path, tmp_path: Path) -> None:
    particles = read_particles(cs)
    rotation, shift_A = -particles.require_rotation(), np.array(particles.shift_A)
    rotation[1], shift_A[2] = [0.0, 0.0, 1.0, 0.0], [6.0, -3.0]
    write_particles(particles, tmp_path / "b.cs", Prediction(np.ones(6), rotation=rotation, shift_A=shift_A))
    old, new = load(cs), load(tmp_path / "b.cs")
    assert (old["alignments3D/pose"] != new["alignments3D/pose"]).any(axis=1).tolist() == [False, True] + [
        False
    ] * 4
    assert new["alignments3D/shift"][2].tolist() == [2.0, -1.0]
    assert (old["alignments3D/shift"] != new["alignments3D/shift"]).any(axis=1).sum() == 1


def test_other_poses_are_written_without_a_prediction(cs: Path, tmp_path: Path) -> None:
    other = make_prediction(6)
    moved = read_particles(cs).with_poses(other.rotation, other.shift_A)[::2]
    write_particles(moved, tmp_path / "a.cs")
    again = read_particles(tmp_path / "a.cs")
    assert angles_deg(again.require_rotation(), other.rotation[::2]).max() < 1e-4
    np.testing.assert_allclose(again.shift_A, other.shift_A[::2], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("field", ["confidence", "rotation", "bingham"])
def test_nothing_that_is_not_finite_is_written(field: str, tmp_path: Path) -> None:
    path = written(tmp_path / "a.cs", make_records())
    prediction = make_prediction(6)
    getattr(prediction, field)[1] = np.nan
    write_particles(read_particles(path), tmp_path / "b.cs", prediction)
    records = load(tmp_path / "b.cs")
    values = [float(records[f"components_mode_{k}/value"][1]) for k in range(4)]
    assert values == [0.0, 180.0, 180.0, 1.0]
    np.testing.assert_array_equal(records["alignments3D/pose"][1], make_records()["alignments3D/pose"][1])
    with np.load(posterior_path(tmp_path / "b.cs")) as side:
        assert all(np.isfinite(side[name]).all() for name in ("bingham", "trace", "lambda_max"))


def test_first_poses_of_particles_without_any(tmp_path: Path) -> None:
    path = written(tmp_path / "a.cs", without("alignments3D"))
    prediction = make_prediction(6)
    write_particles(read_particles(path), tmp_path / "b.cs", prediction)
    again = read_particles(tmp_path / "b.cs")
    assert angles_deg(again.require_rotation(), prediction.rotation).max() < 1e-4
    np.testing.assert_allclose(again.shift_A, prediction.shift_A, rtol=1e-6, atol=1e-6)
    assert load(tmp_path / "b.cs")["alignments3D/psize_A"].tolist() == [1.5] * 6


def test_fresh_tables_round_trip(project: Path) -> None:
    made = make_particles(project)
    write_particles(made, project / "J1" / "fresh.cs")
    again = read_particles(project / "J1" / "fresh.cs")
    assert again.stacks == made.stacks
    assert load(project / "J1" / "fresh.cs")["blob/path"][0] == b"Extract/a.mrcs"
    assert angles_deg(again.require_rotation(), made.require_rotation()).max() < 1e-4
    np.testing.assert_allclose(again.shift_A, made.shift_A, rtol=1e-6, atol=1e-6)
    for name in vars(made.require_ctf()):
        np.testing.assert_allclose(getattr(again.ctf, name), getattr(made.ctf, name), rtol=1e-6, atol=1e-2)
    for name in ("stack_index", "slice_index", "half_set", "micrograph", "uid", "contrast_sign"):
        np.testing.assert_array_equal(getattr(again, name), getattr(made, name))
    with pytest.raises(ParticleFileError, match=r"no CTF parameters, which a \.cs file needs"):
        write_particles(replace(made, ctf=None), project / "none.cs")


def test_stacks_outside_the_root_get_absolute_paths(tmp_path: Path) -> None:
    made = make_particles(tmp_path)
    write_particles(made, tmp_path / "a.cs", data_root=tmp_path / "elsewhere")
    assert read_particles(tmp_path / "a.cs").stacks == made.stacks


def oracle(shared_data: Path) -> tuple[ParticleSet, dict[str, np.ndarray]]:
    folder = shared_data / "real" / "cryosparc_refined"
    with np.load(folder / "oracle_pose_ctf.npz") as file:
        return read_particles(folder / "cryosparc_P12_J24_001_particles.cs"), dict(file)


def test_reference_poses_shifts_and_ctf_agree_with_the_oracle(shared_data: Path) -> None:
    particles, expected = oracle(shared_data)
    matrices = Rotation.from_quat(particles.require_rotation()).as_matrix()
    np.testing.assert_allclose(matrices.transpose(0, 2, 1), expected["rotation_matrix"], atol=1e-6)
    assert particles.shift_A is not None
    fraction = particles.shift_A / (particles.pixel_size_A * 180)[:, None]
    np.testing.assert_allclose(fraction, expected["translation_fraction_of_box"], atol=1e-7)
    ctf = particles.require_ctf()
    ours = np.stack([ctf.defocus_u_A, ctf.defocus_v_A, ctf.defocus_angle_deg, ctf.voltage_kV,
                     ctf.spherical_aberration_mm, ctf.amplitude_contrast, ctf.phase_shift_deg], axis=1)  # fmt: skip
    np.testing.assert_allclose(ours, expected["ctf"][:, 2:], rtol=1e-6)
    np.testing.assert_allclose(particles.pixel_size_A, expected["ctf"][:, 1], rtol=1e-6)


def test_the_oracles_poses_are_written_as_they_came(shared_data: Path, tmp_path: Path) -> None:
    particles, expected = oracle(shared_data)
    rotation = Rotation.from_matrix(expected["rotation_matrix"].transpose(0, 2, 1)).as_quat()
    shift_A = expected["translation_fraction_of_box"] * (particles.pixel_size_A * 180)[:, None]
    n = len(particles)
    empty = particles.with_poses(np.tile([0.0, 0.0, 0.0, 1.0], (n, 1)), np.zeros((n, 2)))
    write_particles(empty, tmp_path / "empty.cs")
    write_particles(
        read_particles(tmp_path / "empty.cs"), tmp_path / "b.cs", Prediction(np.ones(n), rotation, shift_A)
    )
    old, new = load(particles.source), load(tmp_path / "b.cs")
    np.testing.assert_allclose(new["alignments3D/shift"], old["alignments3D/shift"], atol=1e-5)
    poses = [Rotation.from_rotvec(r["alignments3D/pose"].astype(float)).as_quat() for r in (old, new)]
    assert angles_deg(*poses).max() < 1e-4


@pytest.mark.parametrize(
    ("name", "n", "poses"),
    [
        ("real/cryosparc_refined/t20s_empiar10025_J209_particles.cs", 11764, True),
        ("real/cryosparc_refined/cryosparc_P12_J24_001_particles.cs", 2019, True),
        ("real/empiar10076/empiar_10076_7.cs", 7, False),
        ("parsers/cryosparc_J2_particles_exported.cs", 22, False),
    ],
)
def test_reference_files_read_and_write_back(
    name: str, n: int, poses: bool, shared_data: Path, tmp_path: Path
) -> None:
    particles = read_particles(shared_data / name)
    assert (len(particles), particles.rotation is not None) == (n, poses)
    assert not [stack for stack in particles.stacks if ">" in str(stack)]
    write_particles(particles, tmp_path / "a.cs", make_prediction(n))
    names = load(shared_data / name).dtype.names
    kept = tuple(field for field in names if field not in ("alignments3D/pose", "alignments3D/shift"))
    assert same_fields(shared_data / name, tmp_path / "a.cs", kept)
