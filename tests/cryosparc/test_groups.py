"""Outputs that cryoSPARC spreads over files: .csg groups and passthrough files, read; no server, no client."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import numpy as np
import pytest
from cs_tables import (
    PASSTHROUGH,
    SHUFFLED,
    assert_whole,
    load,
    make_records,
    part,
    write_group,
    write_job,
    write_job_group,
    written,
)
from hypothesis import given
from hypothesis import strategies as st

from cryoforum_plugin.errors import ParticleFileError
from cryoforum_plugin.formats import read_particles, write_particles
from cryosparc_job.groups import read_table
from cryosparc_job.joining import joined


@pytest.fixture
def job(tmp_path: Path) -> Path:
    return tmp_path / "P3" / "J42"


def test_a_group_is_its_files_joined(job: Path) -> None:
    group = write_job_group(job)
    assert_whole(group)
    particles = read_particles(group, Path("/data"))
    assert particles.source == group
    assert particles.stacks == (Path("/data/J1/extract/a.mrc"), Path("/data/J1/extract/b.mrc"))
    assert particles.half_set.tolist() == [1, 2] * 3
    assert particles.slice_index.tolist() == [0, 0, 1, 1, 2, 2]


@given(st.lists(st.integers(0, 30), unique=True, min_size=1), st.lists(st.integers(0, 30), unique=True))
def test_rows_are_joined_by_uid_in_the_order_of_the_first(first: list[int], second: list[int]) -> None:
    left, right = (
        np.array([(uid, 10 * uid + kind) for uid in uids], dtype=[("uid", "<u8"), (f"s{kind}/x", "<i8")])
        for kind, uids in enumerate((first, second))
    )
    shared = [uid for uid in first if uid in second]
    if not shared:
        with pytest.raises(ParticleFileError, match=r"none of its particles is in b\.cs"):
            joined(left, Path("a.cs"), right, Path("b.cs"))
    else:
        result = joined(left, Path("a.cs"), right, Path("b.cs"))
        assert result.tolist() == [(uid, 10 * uid, 10 * uid + 1) for uid in shared]


def test_rows_without_a_partner_are_counted(job: Path, caplog: pytest.LogCaptureFixture) -> None:
    group = write_job_group(job)
    written(job / "J42_passthrough_particles.cs", part(make_records(), "blob")[[4, 0, 1]])
    assert read_particles(group).uid.tolist() == make_records()["uid"][[0, 1, 4]].tolist()
    assert "left out 3 of 6 particles, not in J42_passthrough_particles.cs" in caplog.text


def test_files_that_do_not_belong_together(job: Path) -> None:
    group, records = write_job_group(job), make_records()
    records["uid"] += np.uint64(1)
    written(job / "J42_passthrough_particles.cs", part(records, "blob"))
    with pytest.raises(ParticleFileError, match=r"none of its particles is in J42_passthrough_particles\.cs"):
        read_particles(group)


@pytest.mark.parametrize("name", ["J42_005_particles.cs", "J42_passthrough_particles.cs"])
def test_repeated_uids_are_refused(name: str, job: Path) -> None:
    group = write_job_group(job)
    records = load(job / name)
    records["uid"][1] = records["uid"][4]
    written(job / name, records)
    with pytest.raises(ParticleFileError, match=rf"uid {records['uid'][4]} occurs more than once"):
        read_particles(group)


def test_the_jobs_own_slots_win(job: Path) -> None:
    """Also whole: a shift of one alignment is not put beside a pose of another."""
    group, old = write_job_group(job), make_records()
    new = part(make_records(), "ctf", "alignments3D")
    new = new[[name for name in new.dtype.names if name != "alignments3D/shift"]].copy()
    written(job / "J42_005_particles.cs", new)
    old["alignments3D/pose"] += 1
    written(job / "J42_passthrough_particles.cs", part(old, "blob", "alignments3D")[SHUFFLED])
    records, _ = read_table(group)
    np.testing.assert_array_equal(records["alignments3D/pose"], make_records()["alignments3D/pose"])
    assert "alignments3D/shift" not in records.dtype.names


def test_a_metafile_may_start_in_the_project(job: Path) -> None:
    write_job(job)
    files = {"ctf": "J42/J42_005_particles.cs", "blob": "J42/J42_passthrough_particles.cs"}
    assert_whole(write_group(job / "J42_particles.csg", files))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("group: {type: particle\n", "damaged .csg file, or none of cryoSPARC's"),
        ("just text\n", "damaged .csg file, or none of cryoSPARC's"),
        ("", "damaged .csg file, or none of cryoSPARC's"),
        ("group: {type: particle}\n", "damaged .csg file, or none of cryoSPARC's"),
        ("created: 2023-13-45\ngroup: {type: particle}\nresults: {}\n", "damaged .csg file"),
        ("group: {type: particle}\nresults: {blob: {metafile: 3}}\n", "damaged .csg file"),
        ("\xff\xfe", "damaged .csg file"),
        ("group: {type: particle}\nresults: {blob: {num_items: 0}}\n", "it names no .cs file; "),
        (
            "group: {type: particle}\nresults: {blob: {metafile: '>a.cs'}}\n",
            "the file it names, a.cs, is missing; copy it beside the .csg",
        ),
        (
            "group: {type: volume}\nresults: {map: {metafile: '>a.cs'}}\n",
            "a group of type volume, not particle; give the .csg of the job's particles",
        ),
        ("group: {type: exposure}\nresults: {}\n", "a group of type exposure, not particle"),
    ],
)
def test_unusable_groups_say_why(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "J42_particles.csg"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(ParticleFileError) as caught:
        read_particles(path)
    assert str(caught.value).startswith(f"{path}: {message}")
    assert "\n" not in str(caught.value)


def test_a_damaged_file_of_a_group_is_named(job: Path) -> None:
    group = write_job_group(job)
    (job / "J42_passthrough_particles.cs").write_bytes(b"no table")
    with pytest.raises(ParticleFileError, match=r"J42_passthrough_particles\.cs: not a \.cs file"):
        read_particles(group)


def test_a_file_takes_what_the_group_beside_it_names(job: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_job_group(job)
    (job / "J42_volume.csg").write_text("group: {type: volume}")
    (job / "broken.csg").write_text("{")
    with caplog.at_level(logging.INFO):
        assert_whole(job / "J42_005_particles.cs")
    assert [record.levelname for record in caplog.records] == ["INFO"]
    assert "J42_005_particles.cs: took blob, location from J42_passthrough_particles.cs" in caplog.text


@pytest.mark.parametrize(
    ("folder", "name", "passthrough"),
    [
        ("J42", "J42_005_particles.cs", "J42_passthrough_particles.cs"),
        ("data", "cryosparc_P3_J42_005_particles.cs", "P3_J42_passthrough_particles.cs"),
        ("data", "J42_class_00_final_particles.cs", "J42_passthrough_particles_class_0.cs"),
        ("data", "particles_selected.cs", "J42_passthrough_particles_selected.cs"),
        ("J42", "particles_selected.cs", "passthrough_particles_selected.cs"),
        ("J42", "split_0.cs", "J42_passthrough_split_0.cs"),
    ],
)
def test_a_file_takes_what_its_passthrough_file_holds(folder: str, name: str, passthrough: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:  # fmt: skip
    assert_whole(write_job(tmp_path / folder, name, passthrough))
    assert f"{name}: took blob, location from {passthrough}, joined by uid" in caplog.text
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_relative_paths_find_their_neighbours(
    job: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write_job_group(job)
    monkeypatch.chdir(job)
    assert_whole(Path("J42_particles.csg"))
    assert_whole(Path("J42_005_particles.cs"))
    assert caplog.text == ""
    Path("J42_particles.csg").unlink()
    assert_whole(Path("J42_005_particles.cs"))
    assert "took blob, location" in caplog.text


def test_of_several_passthrough_files_those_that_hold_the_particles(job: Path) -> None:
    """Here of two classes, and downloaded slot by slot."""
    records, half = make_records(), make_records()[:3]
    written(job / "J42_class_00_particles.cs", part(half, "alignments3D"))
    written(job / "J42_passthrough_particles_class_1.cs", part(records[3:], "blob", "ctf"))
    written(job / "J42_passthrough_particles_class_0_blob.cs", part(half, "blob")[::-1])
    written(job / "J42_passthrough_particles_class_0_ctf.cs", part(half, "ctf")[::-1])
    written(job / "J42_passthrough_exposures.cs", part(records, "ctf")[:0])
    table, _ = read_table(job / "J42_class_00_particles.cs")
    for name in ("uid", "blob/idx", "ctf/df1_A", "alignments3D/pose"):
        np.testing.assert_array_equal(table[name], half[name])


def test_no_particle_is_lost_to_the_passthrough_file_of_one_class(job: Path) -> None:
    path = write_job(job, passthrough="J42_passthrough_particles_all_classes.cs")
    written(job / "J42_passthrough_particles_Class_0.cs", part(make_records()[:3], "blob"))
    assert_whole(path)


def test_a_passthrough_file_takes_nothing_from_another(job: Path) -> None:
    path = written(job / "J42_passthrough_particles_class_0.cs", part(make_records(), "blob", "ctf"))
    written(job / "J42_passthrough_particles_all_classes.cs", part(make_records(), "alignments3D"))
    assert read_particles(path).rotation is None


def test_files_of_other_jobs_are_left_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_job(tmp_path, "J42_005_particles.cs", "J7_passthrough_particles.cs")
    with pytest.raises(
        ParticleFileError, match=r"no field blob/path.*passthrough file: give the job's \.csg"
    ):
        read_particles(path)
    assert caplog.text == ""
    path = write_job(tmp_path, "particles_selected.cs", "J8_passthrough_particles.cs")
    with pytest.raises(ParticleFileError, match="no field blob/path"):
        read_particles(path)
    assert "which are of several jobs; give the .csg" in caplog.text


def test_rows_are_not_given_up_for_poses(job: Path) -> None:
    records = make_records()
    path = written(job / "J42_extracted.cs", part(records, "blob", "ctf"))
    written(job / "J42_passthrough_particles.cs", part(records, "alignments3D", "location")[:4])
    assert len(read_particles(path)) == 6
    assert read_particles(path).rotation is None
    written(job / "J42_passthrough_particles.cs", part(records, "alignments3D", "location")[SHUFFLED])
    assert_whole(path)


def test_a_whole_table_stays_as_it_is(job: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_job_group(job)
    path = written(job / "J42_006_particles.cs", make_records())
    with caplog.at_level(logging.INFO):
        write_particles(read_particles(path), job / "same.cs")
    assert (job / "same.cs").read_bytes() == path.read_bytes()
    assert caplog.text == ""


def test_compressed_parts(job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    group = write_job_group(job)
    passthrough = part(make_records(), *PASSTHROUGH)[SHUFFLED]
    written(job / "J42_passthrough_particles.cs", passthrough, compressed=True)
    assert read_particles(group).uid.tolist() == make_records()["uid"].tolist()
    assert read_particles(job / "J42_005_particles.cs").slice_index.tolist() == [0, 0, 1, 1, 2, 2]
    monkeypatch.setitem(sys.modules, "cryosparc", None)
    for path in (group, job / "J42_005_particles.cs"):
        with pytest.raises(
            ParticleFileError, match=r"J42_passthrough_particles\.cs: a compressed \.cs file needs"
        ):
            read_particles(path)
