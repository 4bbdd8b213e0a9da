"""RELION particle files of every version, in and out."""

from __future__ import annotations

import logging
import subprocess
from dataclasses import replace
from pathlib import Path

import mrcfile
import numpy as np
import pytest
import starfile
from particle_tables import BOX, angles_deg, make_particles, make_prediction

from cryoforum_plugin.errors import OutputError, ParticleFileError
from cryoforum_plugin.particles import Prediction
from relion_external.particles import new_document, read_particles, write_particles
from relion_external.star import Table
from relion_external.star_reader import read_star

OPTICS = """
# version 50001

data_optics

loop_
_rlnOpticsGroupName #1
_rlnOpticsGroup #2
_rlnVoltage #3
_rlnSphericalAberration #4
_rlnAmplitudeContrast #5
_rlnImagePixelSize #6
_rlnImageDimensionality #7
"first group" 2 300.000000 2.700000 0.100000 1.250000 2
second 1 200.000000 2.000000 0.070000 2.500000 2

"""
COLUMNS = {
    "rlnImageName": ["000002@Extract/a.mrcs", "1@Extract/b.mrcs", "\"3@Extract/my stack.mrcs\"", "000002@Extract/a.mrcs"],
    "rlnMicrographName": ["m1.mrc", "m2.mrc", "m1.mrc", "m1.mrc"],
    "rlnOpticsGroup": ["2", "1", "2", "2"],
    "rlnAngleRot": ["10.500000", "-20.25", "30", "10.500000"],
    "rlnAngleTilt": ["90.000000", "0.00", "1.5e1", "90.000000"],
    "rlnAnglePsi": ["-170.123456", "0", "5", "-170.123456"],
    "rlnOriginXAngst": ["1.250000", "-2.5", "0", "1.250000"],
    "rlnOriginYAngst": ["-3.750000", "5", "0", "-3.750000"],
    "rlnDefocusU": ["10000.5", "11000", "12000", "10000.5"],
    "rlnDefocusV": ["10200.5", "10900", "12100", "10200.5"],
    "rlnDefocusAngle": ["45.5", "-10", "0", "45.5"],
    "rlnPhaseShift": ["90.0", "0", "0", "90.0"],
    "rlnRandomSubset": ["1", "2", "0", "1"],
    "rlnComment": ["nan", "<NA>", "a#b", "None"],
}  # fmt: skip


def block(columns: dict[str, list[str]], name: str = "particles") -> str:
    """Return a loop as text."""
    head = f"data_{name}\n\nloop_\n" + "".join(f"_{label} #{i}\n" for i, label in enumerate(columns, 1))
    return head + "".join("  ".join(row) + " \n" for row in zip(*columns.values(), strict=True)) + "\n"


def tokens(table: Table, *labels: str) -> list[list[str]]:
    return [list(table.tokens(label)) for label in labels]


def without(*labels: str) -> dict[str, list[str]]:
    """Return COLUMNS without some."""
    return {label: values for label, values in COLUMNS.items() if label not in labels}


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


@pytest.fixture
def star(tmp_path: Path) -> Path:
    return written(tmp_path / "particles.star", OPTICS + block(COLUMNS))


def test_every_quantity_of_a_relion_5_file(star: Path) -> None:
    particles = read_particles(star, data_root=Path("/data"))
    assert particles.source == star
    assert particles.stacks == tuple(
        Path("/data/Extract") / name for name in ("a.mrcs", "b.mrcs", "my stack.mrcs")
    )
    assert particles.stack_index.tolist() == [0, 1, 2, 0]
    assert particles.slice_index.tolist() == [1, 0, 2, 1]
    assert particles.pixel_size_A.tolist() == [1.25, 2.5, 1.25, 1.25]
    assert particles.shift_A is not None
    assert particles.shift_A.tolist() == [[1.25, -3.75], [-2.5, 5.0], [0.0, 0.0], [1.25, -3.75]]
    assert particles.ctf is not None
    assert particles.ctf.defocus_u_A.tolist() == [10000.5, 11000.0, 12000.0, 10000.5]
    assert particles.ctf.defocus_v_A.tolist() == [10200.5, 10900.0, 12100.0, 10200.5]
    assert particles.ctf.defocus_angle_deg.tolist() == [45.5, -10.0, 0.0, 45.5]
    assert particles.ctf.voltage_kV.tolist() == [300.0, 200.0, 300.0, 300.0]
    assert particles.ctf.spherical_aberration_mm.tolist() == [2.7, 2.0, 2.7, 2.7]
    assert particles.ctf.amplitude_contrast.tolist() == [0.1, 0.07, 0.1, 0.1]
    assert particles.ctf.phase_shift_deg.tolist() == [90.0, 0.0, 0.0, 90.0]
    assert particles.contrast_sign.tolist() == [1.0] * 4
    assert particles.optics_group.tolist() == [2, 1, 2, 2]
    assert particles.half_set.tolist() == [1, 2, 0, 1]
    assert particles.micrograph.tolist() == [0, 1, 0, 0]
    assert particles.origin[0] == particles.origin[3]
    assert len(set(particles.origin.tolist())) == 3
    assert particles.uid.dtype == np.uint64
    assert particles.uid.tolist() == [0, 1, 2, 3]
    assert particles.prediction is None


def test_orientation_agrees_with_relions_own_formula(star: Path) -> None:
    rotation = read_particles(star).require_rotation()
    rot, tilt, psi = np.radians([10.5, 90.0, -170.123456])
    a = np.array([  # RELION's Euler_angles2matrix at tilt 90
        [-np.sin(psi) * np.sin(rot), np.sin(psi) * np.cos(rot), -np.cos(psi)],
        [-np.cos(psi) * np.sin(rot), np.cos(psi) * np.cos(rot), np.sin(psi)],
        [np.cos(rot), np.sin(rot), 0.0],
    ])  # fmt: skip
    assert tilt == pytest.approx(np.pi / 2)
    x, y, z, w = rotation[0]
    third = np.array([2 * (x * z + w * y), 2 * (y * z - w * x), 1 - 2 * (x * x + y * y)])  # R @ z
    np.testing.assert_allclose(third, a[2], atol=1e-12)
    first = np.array([1 - 2 * (y * y + z * z), 2 * (x * y + w * z), 2 * (x * z - w * y)])  # R @ x
    np.testing.assert_allclose(first, a[0], atol=1e-12)


def test_block_order_does_not_matter(star: Path, tmp_path: Path) -> None:
    other = read_particles(written(tmp_path / "b.star", block(COLUMNS) + OPTICS))
    particles = read_particles(star)
    np.testing.assert_array_equal(other.pixel_size_A, particles.pixel_size_A)
    np.testing.assert_array_equal(other.require_rotation(), particles.require_rotation())


def test_default_root_is_the_current_folder(star: Path, project: Path) -> None:
    assert read_particles(star).stacks[0] == project / "Extract" / "a.mrcs"


OLD = {
    **without("rlnOpticsGroup", "rlnOriginXAngst", "rlnOriginYAngst"),
    "rlnVoltage": ["300"] * 4,
    "rlnSphericalAberration": ["2.7"] * 4,
    "rlnAmplitudeContrast": ["0.1"] * 4,
    "rlnMagnification": ["40000"] * 4,
    "rlnDetectorPixelSize": ["5", "5", "10", "5"],
    "rlnOriginX": ["1", "2", "3", "-4"],
    "rlnOriginY": ["0.5", "0", "0", "0"],
}


@pytest.mark.parametrize("name", ["", "images", "particles", "model_class_1"])
def test_relion_3_0_and_older(name: str, tmp_path: Path) -> None:
    particles = read_particles(written(tmp_path / "old.star", block(OLD, name)))
    assert particles.pixel_size_A.tolist() == [1.25, 1.25, 2.5, 1.25]
    assert particles.shift_A is not None
    assert particles.shift_A.tolist() == [[1.25, 0.625], [2.5, 0.0], [7.5, 0.0], [-5.0, 0.0]]
    assert particles.optics_group.tolist() == [1] * 4
    assert particles.require_ctf().voltage_kV.tolist() == [300.0] * 4


def test_origins_go_by_label_not_by_version(tmp_path: Path) -> None:
    pixels = {
        **without("rlnOriginXAngst", "rlnOriginYAngst"),
        "rlnOriginX": ["2"] * 4,
        "rlnOriginY": ["-1"] * 4,
    }
    particles = read_particles(written(tmp_path / "a.star", OPTICS + block(pixels)))
    assert particles.shift_A is not None
    assert particles.shift_A[:2].tolist() == [[2.5, -1.25], [5.0, -2.5]]
    both = {**pixels, **{label: COLUMNS[label] for label in ("rlnOriginXAngst", "rlnOriginYAngst")}}
    particles = read_particles(written(tmp_path / "b.star", OPTICS + block(both)))
    assert particles.shift_A is not None
    assert particles.shift_A[0].tolist() == [1.25, -3.75]


def test_pixel_size_labels_of_old_files(tmp_path: Path) -> None:
    columns = {k: v for k, v in OLD.items() if k not in ("rlnMagnification", "rlnDetectorPixelSize")}
    path = written(tmp_path / "a.star", block({**columns, "rlnPixelSize": ["1.5"] * 4}))
    assert read_particles(path).pixel_size_A.tolist() == [1.5] * 4


def test_what_may_be_missing(tmp_path: Path) -> None:
    poses = ("rlnAngleRot", "rlnOriginXAngst", "rlnOriginYAngst")
    ctf = ("rlnDefocusU", "rlnDefocusV", "rlnDefocusAngle", "rlnPhaseShift")
    others = ("rlnRandomSubset", "rlnMicrographName")
    particles = read_particles(written(tmp_path / "a.star", OPTICS + block(without(*poses, *ctf, *others))))
    assert (particles.rotation, particles.shift_A, particles.ctf) == (None, None, None)
    assert particles.half_set.tolist() == [0] * 4
    assert particles.micrograph.tolist() == [-1] * 4
    with pytest.raises(ParticleFileError, match="no orientations"):
        particles.require_rotation()
    particles = read_particles(
        written(tmp_path / "b.star", OPTICS + block(without(*poses[1:], "rlnPhaseShift")))
    )
    assert particles.shift_A is not None
    assert not particles.shift_A.any()
    assert not particles.require_ctf().phase_shift_deg.any()


def test_images_without_a_number_are_single_images(tmp_path: Path) -> None:
    columns = {**COLUMNS, "rlnImageName": ["a.mrc", "b.mrc", "a.mrc", "c.mrc"]}
    particles = read_particles(written(tmp_path / "a.star", OPTICS + block(columns)))
    assert particles.slice_index.tolist() == [0] * 4
    assert particles.stack_index.tolist() == [0, 1, 0, 2]


def test_one_optics_group_needs_no_group_column(tmp_path: Path) -> None:
    optics = OPTICS.replace("second 1 200.000000 2.000000 0.070000 2.500000 2\n", "")
    particles = read_particles(written(tmp_path / "a.star", optics + block(without("rlnOpticsGroup"))))
    assert particles.optics_group.tolist() == [2] * 4
    assert particles.pixel_size_A.tolist() == [1.25] * 4


def test_2d_classification_is_noticed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    flat = {**COLUMNS, "rlnAngleRot": ["0"] * 4, "rlnAngleTilt": ["0"] * 4}
    read_particles(written(tmp_path / "a.star", OPTICS + block(flat)))
    assert "rot and tilt are 0 in every row" in caplog.text


def changed(**columns: list[str]) -> str:
    return OPTICS + block({**COLUMNS, **columns})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (OPTICS, r"no column _rlnImageName; give the particle file"),
        (OPTICS + block(without("rlnImageName")), r"no column _rlnImageName; this looks like a list of micrographs"),
        (OPTICS + block({k: [] for k in COLUMNS}), r"data_particles holds no particles"),
        ("data_optimiser_general\n_rlnExperimentalDataStarFile run_data.star\n", r"optimiser or model file: give the run"),
        (OPTICS + block(COLUMNS) + block(COLUMNS), r"several particle blocks \(data_particles, data_particles\)"),
        (block(OLD, "a") + block(OLD, "b"), r"several particle blocks \(data_a, data_b\)"),
        (changed(rlnImageName=["0@a.mrcs"] * 4), r"row 1 \(line 34\) .*image name '0@a.mrcs' is not of the form"),
        (changed(rlnImageName=["x@a.mrcs"] * 4), r"image name 'x@a.mrcs' is not of the form"),
        (changed(rlnAngleTilt=["1", "2", "nan", "4"]), r"row 3 \(line 36\) .*column _rlnAngleTilt: 'nan' is not a number"),
        (changed(rlnDefocusU=["1", "", "3", "4"]).replace('""', "text"), r"row 2 .*: \d+ values, 14 columns"),
        (changed(rlnDefocusU=["1", "text", "3", "4"]), r"row 2 .*column _rlnDefocusU: 'text' is not a number"),
        (changed(rlnOpticsGroup=["2", "3", "1", "3"]), r"row 2 .* uses optics group 3, which data_optics lacks \(2 rows"),
        (OPTICS.replace("second 1", "second 2") + block(COLUMNS), r"data_optics lists an optics group twice"),
        (OPTICS.replace("_rlnOpticsGroup #2", "_rlnX #2") + block(COLUMNS), r"data_optics has no column _rlnOpticsGroup"),
        (OPTICS + block(without("rlnOpticsGroup")), r"2 optics groups, but no column _rlnOpticsGroup"),
        (OPTICS.replace("rlnImagePixelSize", "rlnX") + block(COLUMNS), r"no pixel size \(_rlnImagePixelSize in data_optics"),
        (OPTICS.replace("2.500000", "0") + block(COLUMNS), r"row 2 .*pixel size from _rlnImagePixelSize is not positive"),
        (OPTICS.replace("2.500000", "x") + block(COLUMNS), r"row 2 \(line 15\) of data_optics, column _rlnImagePixelSize: 'x' is not"),
        (block({**OLD, "rlnMagnification": ["0"] * 4}), r"_rlnDetectorPixelSize / _rlnMagnification is not positive"),
        (OPTICS + block(without("rlnDefocusV")), r"incomplete CTF parameters, no column _rlnDefocusV; add it"),
        (OPTICS.replace("rlnVoltage", "rlnX") + block(COLUMNS), r"incomplete CTF parameters, no column _rlnVoltage"),
        (OPTICS.replace("2.500000 2", "2.500000 3") + block(COLUMNS), r"subtomograms \(rlnImageDimensionality is 3\)"),
        (block({**OLD, "rlnImageName": ["a.mrc"] * 4, "rlnCoordinateZ": ["1"] * 4}), r"subtomograms .*_rlnCoordinateZ"),
        (OPTICS.replace("rlnImageDimensionality", "rlnCtfDataAreCtfPremultiplied") + block(COLUMNS), r"premultiplied by"),
        (OPTICS.replace("rlnImageDimensionality", "rlnCtfDataArePhaseFlipped") + block(COLUMNS), r"phase-flipped"),
    ],
)  # fmt: skip
def test_unusable_files_say_why(text: str, message: str, tmp_path: Path) -> None:
    path = written(tmp_path / "bad.star", text)
    with pytest.raises(ParticleFileError, match=message) as caught:
        read_particles(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_unchanged_particles_are_written_byte_for_byte(star: Path, tmp_path: Path) -> None:
    particles = read_particles(star)
    write_particles(particles, tmp_path / "same.star")
    assert (tmp_path / "same.star").read_bytes() == star.read_bytes()
    with pytest.raises(OutputError, match="exists already"):
        write_particles(particles, tmp_path / "same.star")
    write_particles(particles[np.array([2, 0])], tmp_path / "same.star", overwrite=True)
    subset = {label: [values[2], values[0]] for label, values in COLUMNS.items()}
    assert (tmp_path / "same.star").read_text() == OPTICS + block(subset)


def test_predictions_round_trip_and_the_rest_is_kept(star: Path, tmp_path: Path) -> None:
    particles, prediction, path = read_particles(star), make_prediction(4), tmp_path / "predicted.star"
    write_particles(particles, path, prediction)
    again = read_particles(path)
    assert again.prediction is not None
    assert prediction.rotation is not None
    assert angles_deg(again.require_rotation(), prediction.rotation).max() < 1e-4
    np.testing.assert_allclose(again.shift_A, prediction.shift_A, atol=1e-6)
    np.testing.assert_array_equal(again.prediction.rotation, again.rotation)
    for name in ("confidence", "expected_error_deg", "expected_shift_error_A", "credible_radius_90_deg",
                 "lambda_max", "trace", "bingham", "outlier_score"):  # fmt: skip
        np.testing.assert_allclose(
            getattr(again.prediction, name), getattr(prediction, name), rtol=1e-8, atol=1e-6
        )
    before, after = read_star(star), read_star(path)
    assert after.tables[0] == replace(before.tables[0], source=path)
    kept = [label for label in COLUMNS if not label.startswith(("rlnAngle", "rlnOrigin"))]
    assert tokens(after.tables[1], *kept) == tokens(before.tables[1], *kept)
    assert after.tables[1].labels[: len(COLUMNS)] == tuple(COLUMNS)
    assert not [label for label in after.tables[1].labels if "Prior" in label]


def test_starfile_reads_our_predictions(tmp_path: Path) -> None:
    plain = written(tmp_path / "plain.star", OPTICS + block(without("rlnComment")))  # it would cut a#b
    prediction = make_prediction(4)
    write_particles(read_particles(plain), tmp_path / "a.star", prediction)
    frame = starfile.read(tmp_path / "a.star", always_dict=True)["particles"]
    np.testing.assert_allclose(frame["rlnParticleFigureOfMerit"], prediction.confidence, atol=1e-6)
    np.testing.assert_allclose(frame["rlnAccuracyRotations"], prediction.expected_error_deg, atol=1e-6)
    bingham = frame[[f"cryoforumBingham{i}" for i in range(1, 11)]].to_numpy()
    np.testing.assert_allclose(bingham, prediction.bingham, rtol=1e-8)
    assert frame["rlnImageName"][2] == "3@Extract/my stack.mrcs"


def test_text_of_unchanged_poses_stays(star: Path, tmp_path: Path) -> None:
    particles = read_particles(star)
    rotation, shift_A = -particles.require_rotation(), np.array(particles.shift_A)
    prediction = Prediction(np.full(4, 0.5), rotation=rotation, shift_A=shift_A)
    write_particles(particles, tmp_path / "a.star", prediction)
    table = read_star(tmp_path / "a.star").tables[1]
    assert {label: list(table.tokens(label)) for label in COLUMNS} == COLUMNS
    assert table.labels == (*COLUMNS, "rlnParticleFigureOfMerit")
    rotation[1], shift_A[2] = [0.0, 0.0, 1.0, 0.0], [7.0, 8.0]
    write_particles(particles, tmp_path / "b.star", prediction)
    table = read_star(tmp_path / "b.star").tables[1]
    assert tokens(table, "rlnAngleTilt")[0] == ["90.000000", "0.000000", "1.5e1", "90.000000"]
    assert tokens(table, "rlnOriginXAngst")[0] == ["1.250000", "-2.5", "7.000000", "1.250000"]


def test_other_poses_are_written_without_a_prediction(star: Path, tmp_path: Path) -> None:
    particles, other = read_particles(star), make_prediction(4)
    assert other.rotation is not None
    assert other.shift_A is not None
    moved = particles.with_poses(other.rotation, other.shift_A)[np.array([3, 1])]
    write_particles(moved, tmp_path / "a.star")
    again = read_particles(tmp_path / "a.star")
    assert angles_deg(again.require_rotation(), other.rotation[[3, 1]]).max() < 1e-4
    np.testing.assert_allclose(again.shift_A, other.shift_A[[3, 1]], atol=1e-6)


@pytest.mark.parametrize(
    "columns", [OLD, {k: v for k, v in OLD.items() if "Origin" not in k}], ids=["px", "none"]
)
def test_old_files_get_origins_in_pixels(columns: dict[str, list[str]], tmp_path: Path) -> None:
    particles = read_particles(written(tmp_path / "a.star", block(columns)))
    shift_A = np.array([[1.25, -1.25]] * 4)
    write_particles(particles, tmp_path / "b.star", Prediction(np.ones(4), shift_A=shift_A))
    table = read_star(tmp_path / "b.star").tables[0]
    assert "rlnOriginXAngst" not in table
    assert tokens(table, "rlnOriginX", "rlnOriginY") == [
        ["1.000000", "1.000000", "0.500000", "1.000000"], ["-1.000000", "-1.000000", "-0.500000", "-1.000000"],
    ]  # fmt: skip


def test_both_kinds_of_origins_are_kept_in_step(tmp_path: Path) -> None:
    columns = {**COLUMNS, "rlnOriginX": ["0"] * 4, "rlnOriginY": ["0"] * 4}
    particles = read_particles(written(tmp_path / "a.star", OPTICS + block(columns)))
    write_particles(particles, tmp_path / "b.star", Prediction(np.ones(4), shift_A=np.full((4, 2), 5.0)))
    table = read_star(tmp_path / "b.star").tables[1]
    assert tokens(table, "rlnOriginXAngst", "rlnOriginX") == [
        ["5.000000"] * 4,
        ["4.000000", "2.000000", "4.000000", "4.000000"],
    ]


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("field", ["confidence", "rotation", "bingham", "outlier_score", "shift_A"])
def test_nothing_that_is_not_finite_is_written(field: str, value: float, star: Path, tmp_path: Path) -> None:
    particles, prediction = read_particles(star), make_prediction(4)
    getattr(prediction, field)[1] = value
    write_particles(particles, tmp_path / "a.star", prediction)
    text = (tmp_path / "a.star").read_text().replace("nan", "", 1)  # one is the input's own text
    assert "nan" not in text
    assert "inf" not in text
    again = read_particles(tmp_path / "a.star")
    assert again.prediction is not None
    assert again.prediction.confidence[1] == 0
    assert again.prediction.expected_error_deg is not None
    assert again.prediction.expected_error_deg[1] == 180
    assert again.prediction.credible_radius_90_deg is not None
    assert again.prediction.credible_radius_90_deg[1] == 180
    assert again.prediction.outlier_score is not None
    assert again.prediction.outlier_score[1] == 1
    assert tokens(read_star(tmp_path / "a.star").tables[1], "rlnAngleRot")[0][1] == "-20.25"
    assert np.isfinite(getattr(prediction, field)[[0, 2, 3]]).all()
    assert not np.isfinite(getattr(prediction, field)[1]).any()  # what was given is left alone


def test_unpredicted_particles_without_a_pose(tmp_path: Path) -> None:
    columns = without("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi", "rlnOriginXAngst", "rlnOriginYAngst")
    particles, prediction = (
        read_particles(written(tmp_path / "a.star", OPTICS + block(columns))),
        make_prediction(4),
    )
    prediction.confidence[2] = np.nan
    write_particles(particles, tmp_path / "b.star", prediction)
    again = read_particles(tmp_path / "b.star")
    assert angles_deg(again.require_rotation()[2], np.array([0.0, 0.0, 0.0, 1.0])) == 0
    assert again.shift_A is not None
    assert again.shift_A[2].tolist() == [0.0, 0.0]


def test_a_prediction_of_other_length_is_a_mistake(star: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="5 rows for 4 particles"):
        write_particles(read_particles(star), tmp_path / "a.star", make_prediction(5))
    assert not (tmp_path / "a.star").exists()


def test_stale_priors_are_kept_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    columns = {**COLUMNS, "rlnAngleTiltPrior": ["90"] * 4, "rlnAnglePsiPrior": ["1"] * 4}
    particles = read_particles(written(tmp_path / "a.star", OPTICS + block(columns)))
    write_particles(particles, tmp_path / "b.star", replace(make_prediction(4), rotation=particles.rotation))
    assert caplog.text == ""
    write_particles(particles, tmp_path / "c.star", make_prediction(4))
    assert "_rlnAngleTiltPrior, _rlnAnglePsiPrior are left as they are" in caplog.text
    assert tokens(read_star(tmp_path / "c.star").tables[1], "rlnAnglePsiPrior")[0] == ["1"] * 4


def test_an_empty_selection_keeps_the_table(star: Path, tmp_path: Path) -> None:
    none = read_particles(star)[np.zeros(4, dtype=bool)]
    write_particles(none, tmp_path / "a.star", make_prediction(0))
    table = read_star(tmp_path / "a.star").tables[1]
    assert (len(table), table.labels[: len(COLUMNS)]) == (0, tuple(COLUMNS))
    with pytest.raises(ParticleFileError, match="holds no particles"):
        read_particles(tmp_path / "a.star")


def test_a_second_prediction_replaces_the_first(star: Path, tmp_path: Path) -> None:
    write_particles(read_particles(star), tmp_path / "a.star", make_prediction(4, seed=1))
    second = make_prediction(4, seed=2)
    write_particles(read_particles(tmp_path / "a.star"), tmp_path / "b.star", second)
    assert read_star(tmp_path / "a.star").tables[1].labels == read_star(tmp_path / "b.star").tables[1].labels
    again = read_particles(tmp_path / "b.star").prediction
    assert again is not None
    np.testing.assert_allclose(again.confidence, second.confidence, atol=1e-6)


def test_a_figure_of_merit_alone_is_no_prediction(tmp_path: Path) -> None:
    columns = {**COLUMNS, "rlnParticleFigureOfMerit": ["0.5"] * 4}
    assert read_particles(written(tmp_path / "a.star", OPTICS + block(columns))).prediction is None


def test_fresh_documents_round_trip(project: Path) -> None:
    made = make_particles(project)
    write_particles(made, project / "fresh.star")
    again = read_particles(project / "fresh.star")
    assert angles_deg(again.require_rotation(), made.require_rotation()).max() < 1e-4
    np.testing.assert_allclose(again.shift_A, made.shift_A, atol=1e-6)
    for name in vars(made.require_ctf()):
        np.testing.assert_allclose(getattr(again.ctf, name), getattr(made.ctf, name), atol=1e-6)
    for name in ("pixel_size_A", "stack_index", "slice_index", "half_set", "micrograph", "uid"):
        np.testing.assert_array_equal(getattr(again, name), getattr(made, name))
    assert again.stacks == made.stacks
    blocks = starfile.read(project / "fresh.star", always_dict=True)
    assert blocks["optics"]["rlnImageSize"].tolist() == [BOX, BOX]
    assert sorted(blocks["optics"]["rlnVoltage"].tolist()) == [200.0, 300.0]
    assert blocks["particles"]["rlnImageName"][:2].tolist() == [
        "000001@Extract/a.mrcs",
        "000001@Extract/b.mrcs",
    ]


def test_odd_names_of_stacks_in_fresh_documents(tmp_path: Path) -> None:
    made = make_particles(tmp_path)
    made = replace(made, stacks=(tmp_path / "100%d my.mrcs", tmp_path / "#%s.mrcs"))
    names = list(new_document(made, root=tmp_path).tables[1].strings("rlnImageName"))
    assert names[:2] == ["000001@100%d my.mrcs", "000001@#%s.mrcs"]


def test_fresh_documents_of_particles_with_little(tmp_path: Path) -> None:
    made = replace(
        make_particles(tmp_path), ctf=None, rotation=None, shift_A=None,
        half_set=np.zeros(12, dtype=np.int64), micrograph=np.full(12, -1), stacks=(tmp_path / "x", tmp_path / "y"),
    )  # fmt: skip
    document = new_document(made, root=tmp_path / "elsewhere")
    assert document.tables[1].labels == ("rlnImageName", "rlnOpticsGroup")
    assert next(document.tables[1].strings("rlnImageName")) == f"000001@{tmp_path / 'x'}"
    assert "rlnImageSize" not in document.tables[0]
    assert list(new_document(replace(made, box_px=64)).tables[0].strings("rlnImageSize")) == ["64", "64"]


def select(folder: Path, name: str) -> dict:
    """Return what RELION's Select job would leave of a file with confidence 0.5 to 1."""
    command = ["relion_star_handler", "--i", name, "--o", "selected.star", "--select", "rlnParticleFigureOfMerit",
               "--minval", "0.5", "--maxval", "1"]  # fmt: skip
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return starfile.read(folder / "selected.star", always_dict=True)


@pytest.mark.usefixtures("relion")
@pytest.mark.parametrize("host", ["relion 5", "fresh"])
def test_relion_selects_from_what_we_write(host: str, star: Path, project: Path) -> None:
    particles = make_particles(project) if host == "fresh" else read_particles(star)
    prediction = make_prediction(len(particles))
    write_particles(particles, project / "predicted.star", prediction)
    blocks = select(project, "predicted.star")
    kept = prediction.confidence >= 0.5
    assert 0 < kept.sum() < len(kept)
    expected = starfile.read(project / "predicted.star", always_dict=True)["particles"][kept]
    assert blocks["particles"]["rlnImageName"].tolist() == expected["rlnImageName"].tolist()
    for label in (
        "rlnAngleRot",
        "rlnAccuracyRotations",
        "rlnOriginXAngst",
        "cryoforumBingham7",
        "cryoforumTrace",
    ):
        np.testing.assert_allclose(blocks["particles"][label], expected[label], rtol=1e-5, atol=1e-5)
    again = read_particles(project / "selected.star")
    assert again.prediction is not None
    assert angles_deg(again.require_rotation(), prediction.rotation[kept]).max() < 1e-4


@pytest.mark.usefixtures("relion")
def test_relion_projects_with_the_poses_we_write(project: Path) -> None:
    made = make_particles(project, n=4)
    made = replace(
        made,
        pixel_size_A=np.full(4, 3.0),
        shift_A=np.array([[0.0, 0.0], [6.0, -3.0], [-6.0, 9.0], [3.0, 3.0]]),
    )
    write_particles(made, project / "poses.star")
    rng = np.random.default_rng(0)
    positions = rng.uniform(-8, 8, (6, 3))
    axis = np.arange(32) - 16
    z, y, x = np.meshgrid(axis, axis, axis, indexing="ij")
    volume = sum(np.exp(-((x - px) ** 2 + (y - py) ** 2 + (z - pz) ** 2) / 8) for px, py, pz in positions)
    with mrcfile.new(project / "map.mrc") as mrc:
        mrc.set_data(volume.astype(np.float32))
        mrc.voxel_size = 3.0
    command = ["relion_project", "--i", "map.mrc", "--o", "out", "--ang", "poses.star", "--angpix", "3"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    images = mrcfile.read(project / "out.mrcs")
    back = read_particles(project / "out.star")
    assert angles_deg(back.require_rotation(), made.require_rotation()).max() < 1e-3
    from scipy.spatial.transform import Rotation

    seen = Rotation.from_quat(made.require_rotation()).inv().as_matrix() @ positions.T  # (n, xyz, blob)
    for image, points, shift_A in zip(images, seen, made.shift_A, strict=True):
        px, py = points[:2] - shift_A[:, None] / 3.0
        exact = sum(
            np.exp(-((axis[None, :] - u) ** 2 + (axis[:, None] - v) ** 2) / 8)
            for u, v in zip(px, py, strict=True)
        )
        assert np.corrcoef(image.ravel(), exact.ravel())[0, 1] > 0.99


EXPECTED = {  # file: particles, stacks, pixel size, poses, shifts, ctf
    "parsers/relion5.star": (17, 2, 0.89, True, True, True),
    "parsers/mmirp_relion30_some_images_missing.star": (120, 3, 5.536508, False, True, True),
    "real/betagal_relion14/images.star": (6496, 15, 3.54, True, True, True),
    "real/empiar10076/empiar_10076_7.star": (7, 1, 1.31, False, False, True),
    "real/relion31_fibril/relion31.star": (5, 1, 2.806, True, True, True),
    "real/relion31_fibril/relion31.v2.star": (5, 1, 2.806, True, True, True),
    "real/relion_projections/rln_proj_64_centered.star": (4, 1, 1.0, True, True, False),
    "real/relion_projections/rln_proj_64_shifted.star": (4, 1, 1.0, True, True, False),
    "real/ribosome_tilts_64px/sta_testing_bin8.star": (219, 1, 1.96, True, True, True),
    "real/sample_200px/sample_particles_relion30.star": (17, 1, 1.338, True, True, True),
    "real/sample_200px/sample_particles_relion31.star": (17, 1, 1.4, True, True, True),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_reference_files_read_and_write_back(name: str, shared_data: Path, tmp_path: Path) -> None:
    path = shared_data / name
    particles = read_particles(path, path.parent)
    n, stacks, size, poses, shifts, ctf = EXPECTED[name]
    assert (len(particles), len(particles.stacks)) == (n, stacks)
    np.testing.assert_allclose(particles.pixel_size_A, size, rtol=1e-4)
    known = (particles.rotation is not None, particles.shift_A is not None, particles.ctf is not None)
    assert known == (poses, shifts, ctf)
    prediction = make_prediction(n)
    write_particles(particles, tmp_path / "a.star", prediction)
    again = read_particles(tmp_path / "a.star", path.parent)
    assert angles_deg(again.require_rotation(), prediction.rotation).max() < 1e-4
    np.testing.assert_allclose(again.shift_A, prediction.shift_A, atol=1e-5)
    before, after = read_star(path), read_star(tmp_path / "a.star")
    for old, new in zip(before.tables, after.tables, strict=True):
        ours = (
            "rlnAngleRot",
            "rlnAngleTilt",
            "rlnAnglePsi",
            "rlnOriginX",
            "rlnOriginY",
            "rlnOriginXAngst",
            "rlnOriginYAngst",
        )
        kept = [label for label in old.labels if old.name == "optics" or label not in ours]
        assert tokens(new, *kept) == tokens(old, *kept)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("parsers/cryocat_relion_3.0.star", "subtomograms"),
        ("parsers/cryocat_relion_4.0.star", "subtomograms"),
        ("real/relion_projections/rln_proj_64.star", "no pixel size"),
        ("real/betagal_relion14/model.star", "optimiser or model file"),
    ],
)
def test_reference_files_that_are_refused(name: str, message: str, shared_data: Path) -> None:
    with pytest.raises(ParticleFileError, match=message):
        read_particles(shared_data / name)


def test_reference_shifts_recentre_relions_projections(shared_data: Path) -> None:
    folder = shared_data / "real" / "relion_projections"
    shifted = read_particles(folder / "rln_proj_64_shifted.star", folder)
    assert shifted.shift_A is not None
    images = mrcfile.read(folder / "rln_proj_64_shifted.mrcs")
    centred = mrcfile.read(folder / "rln_proj_64_centered.mrcs")
    for image, target, (x, y) in zip(images, centred, shifted.shift_A.astype(int), strict=True):
        np.testing.assert_array_equal(np.roll(image, (y, x), axis=(0, 1)), target)


def test_log_is_quiet_for_ordinary_files(
    star: Path, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    with caplog.at_level(logging.WARNING):
        write_particles(read_particles(star), tmp_path / "a.star", make_prediction(4))
    assert caplog.text == ""
