"""Folders of tables: which are read, and how tables that differ come together."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest
import starfile
from cs_tables import make_records, write_group, written
from particle_tables import make_particles, make_prediction
from watch_bench import Bench, assert_same_predictions

from cryoforum_plugin import formats
from cryoforum_plugin.errors import ParticleFileError
from cryoforum_plugin.particles import ParticleSet
from cryoforum_plugin.watching.sources import Sources
from cryosparc_job.cs_file import with_fields


def with_optics(path: Path, name: str, voltage: str) -> Path:
    """Give the optics group of a table another name and voltage."""
    path.write_text(path.read_text().replace("opticsGroup1 1 300.000000", f"{name} 1 {voltage}"))
    return path


def test_tables_with_other_optics_groups(bench: Bench) -> None:
    folder = bench.here / "jobs"
    bench.table(range(5), "jobs/job1/particles.star")
    bench.watch(folder, "out.star", "--once")
    with_optics(bench.table([5, 6], "jobs/job2/particles.star"), "krios", "300.000000")
    with_optics(bench.table([7, 8], "jobs/job3/particles.star"), "opticsGroup1", "300.0")
    with_optics(bench.table([9], "jobs/job4/particles.star"), "opticsGroup1", "200.000000")
    result = bench.watch(folder, "out.star", "--once")
    assert (
        "optics group opticsGroup1 is not what it is in the particles before it; it becomes" in result.stderr
    )
    bench.table([9, 10], "jobs/job4/particles.star")
    with_optics(folder / "job4" / "particles.star", "opticsGroup1", "200.000000")
    bench.watch(folder, "out.star", "--once")
    tables = starfile.read(bench.here / "out.star")
    optics = dict(
        zip(tables["optics"]["rlnOpticsGroup"], tables["optics"]["rlnOpticsGroupName"], strict=True)
    )
    assert optics == {1: "opticsGroup1", 2: "krios", 3: "opticsGroup1_2"}
    assert tables["optics"]["rlnVoltage"].tolist() == [300.0, 300.0, 200.0]
    assert tables["particles"]["rlnOpticsGroup"].tolist() == [1] * 5 + [2, 2, 1, 1, 3, 3]
    whole = bench.predicted(bench.folder / "sim" / "test.star")
    first, second = formats.read_particles(bench.here / "out.star"), formats.read_particles(whole)
    np.testing.assert_allclose(first.rotation[:9], second.rotation[:9], atol=2e-3)  # type: ignore[index]


def test_what_relion_leaves_in_a_folder_is_left_alone(bench: Bench) -> None:
    folder = bench.here
    bench.table(range(8), "Extract/job3/particles.star")
    bench.table(range(4), "Extract/job3/Movies/mic1_extract.star")
    bench.predicted(bench.table([20, 21], "new.star"), "External_predicted.star")
    (folder / "new.star").unlink()
    bench.table([30], ".particles.x1.star")
    (folder / "micrographs.star").write_text("data_micrographs\n\nloop_\n_rlnMicrographName #1\nm.mrc\n")
    (folder / "job.star").write_text("data_job\n\n_rlnJobType 0\n")
    result = bench.watch(folder, "out.star", "--once")
    assert "8 new particles, 8 in all" in result.stdout
    assert "warning" not in result.stderr.replace("warning: contrast", "")
    assert "8 particles" in bench.watch(folder, "out.star", "--once").stdout  # nor its own output


def test_a_pattern_chooses_tables(bench: Bench) -> None:
    for number in (1, 2):
        bench.table([number], f"jobs/job{number}/particles.star")
        bench.table([10 + number], f"jobs/job{number}/other.star")
    result = bench.watch(bench.here / "jobs", "out.star", "--once", "--pattern", "job*/particles.star")
    assert "2 particles in" in result.stdout


def test_a_table_that_does_not_fit_is_left_out_and_the_others_go_on(bench: Bench) -> None:
    folder = bench.here / "jobs"
    bench.table(range(5), "jobs/a.star")
    bench.watch(folder, "out.star", "--once")
    lacking = bench.table([5, 6], "jobs/b.star")
    lacking.write_text(lacking.read_text().replace("_rlnMicrographName", "_rlnSomethingElse"))
    surplus = bench.table([7], "jobs/c.star")
    surplus.write_text(
        surplus.read_text()
        .replace("_rlnPhaseShift #13\n", "_rlnPhaseShift #13\n_rlnExtra #14\n")
        .replace(" 0.000000\n", " 0.000000 5\n")
    )
    (folder / "d.star").write_text("data_particles\n\nloop_\n_rlnImageName #1\n_rlnX #2\n1@x.mrcs\n")
    result = bench.watch(folder, "out.star", "--once")
    assert "6 particles in" in result.stdout
    assert "b.star: no column _rlnMicrographName" in result.stderr
    assert "left out until it changes" in result.stderr
    assert "c.star: left out _rlnExtra" in result.stderr
    assert "d.star: line 6: row 1 of data_particles: 1 values, 2 columns" in result.stderr


def test_exports_of_cryosparc_in_a_folder(bench: Bench) -> None:
    everything = bench.here / "all.cs"
    formats.write_particles(bench.particles, everything)
    whole, order = formats.read_particles(everything), []
    for number in range(3):
        folder = bench.here / "exports" / f"J{number}_particles"
        rows = np.arange(5 * number, 5 * number + 7)
        order += [row for row in rows.tolist() if row not in order]
        formats.write_particles(whole[rows], folder / f"J{number}_exported.cs")
        slots = ("blob", "ctf", "alignments3D")
        write_group(folder / f"J{number}_exported.csg", dict.fromkeys(slots, f">J{number}_exported.cs"))
    others = bench.here / "exports" / "J9"
    formats.write_particles(whole[40:43], others / "J9_class_averages.cs")
    write_group(others / "J9_templates.csg", {"blob": ">J9_class_averages.cs"}, kind="template")
    bench.watch(bench.here / "exports", "exports/out.cs", "--once")
    bench.watch(bench.here / "exports", "exports/out.cs", "--once")
    assert_same_predictions(bench.here / "exports" / "out.cs", bench.predicted(everything, "whole.cs"), order)


def sources(given: Path, interval_s: float = 0.0) -> Sources:
    return Sources(given, (".star",), set(), interval_s)


def test_a_table_is_read_when_it_was_the_same_for_an_interval(tmp_path: Path) -> None:
    path = tmp_path / "p.star"
    path.write_text("data_\n\nloop_\n_rlnImageName #1\n1@a\n")
    watched = sources(path, 0.15)
    assert watched.look() == ([], True)  # new: it may be growing
    time.sleep(0.2)
    path.write_text(path.read_text() + "2@a\n")
    assert watched.look() == ([], True)
    time.sleep(0.2)
    ((found, signature),), changing = watched.look()
    assert (found, changing) == (path, False)
    watched.taken(path, signature)
    assert watched.look() == ([], False)
    os.utime(path)
    assert watched.look() == ([], True)
    os.utime(path, (1e9, 1e9))
    assert sources(path, 0.15).look()[0]  # an old one is read at first sight


def test_a_folder_is_listed_again_only_when_it_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "p.star").write_text("data_\n\nloop_\n_rlnImageName #1\n1@a\n")
    for folder in (tmp_path / "a", tmp_path):
        os.utime(folder, (1e9, 1e9))
    watched = sources(tmp_path)
    assert len(watched.look()[0]) == 1
    listed: list[str] = []
    scan = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: (listed.append(str(path)), scan(path))[1])
    assert len(watched.look()[0]) == 1
    assert not listed
    (tmp_path / "a" / "q.star").write_text("data_\n\nloop_\n_rlnImageName #1\n2@a\n")
    assert len(watched.look()[0]) == 2
    assert listed == [str(tmp_path / "a")]


def test_slots_are_matched_by_what_they_hold(tmp_path: Path) -> None:
    adapter = formats.adapter_for(Path("x.cs"))
    made = make_records(4)
    mode = {
        "components_mode_0/component": np.zeros(4, "<u4"),
        "components_mode_0/value": np.full(4, 7, "<f4"),
    }
    tables = []
    for name, records in (("a", made), ("b", with_fields(made, mode))):
        records["uid"] = np.arange(4) + (10 if name == "b" else 0)
        table = formats.read_particles(written(tmp_path / f"{name}.cs", records))
        tables.append(adapter.predicted(table, tmp_path / "out.cs", make_prediction(4)))
    both = adapter.appended(*tables, tmp_path / "b.cs")
    formats.write_particles(both, tmp_path / "out.cs")
    read = formats.read_particles(tmp_path / "out.cs")
    assert read.prediction is not None
    np.testing.assert_allclose(
        read.prediction.confidence, np.tile(make_prediction(4).confidence, 2), rtol=1e-6
    )
    np.testing.assert_allclose(
        read.prediction.outlier_score, np.tile(make_prediction(4).outlier_score, 2), rtol=1e-6
    )  # type: ignore[arg-type]
    assert (read.host.records["components_mode_0/component"] == 0).all()
    with pytest.raises(ParticleFileError, match="no field components_mode_0/component"):
        adapter.appended(tables[1], tables[0], tmp_path / "a.cs")


@pytest.mark.parametrize(
    ("known", "added", "joined"),
    [
        (np.array(["a"], "S1"), np.array(["abcd"], "S4"), np.array(["a", "abcd"], "S4")),
        (np.array(["a"], "U1"), np.array(["abcd"], "U4"), np.array(["a", "abcd"], "U4")),
        (np.array([1], "<u4"), np.array([2], "<u8"), np.array([1, 2], "<u4")),
        (np.array([1], "<u4"), np.array([2**32 + 2], "<u8"), None),
        (np.array([2**63 + 1], "<u8"), np.array([2], "<i8"), np.array([2**63 + 1, 2], "<u8")),
        (np.array([1.0], "<f4"), np.array([1e300], "<f8"), None),
        (np.array([1.0], "<f4"), np.array([np.nan], "<f8"), np.array([1.0, np.nan], "<f4")),
        (np.array([1], "<u4"), np.array(["1"], "S1"), None),
    ],
)
def test_values_of_another_type_are_kept_or_refused(
    tmp_path: Path, known: np.ndarray, added: np.ndarray, joined: np.ndarray | None
) -> None:
    adapter = formats.adapter_for(Path("x.cs"))
    tables = [
        formats.read_particles(
            written(
                tmp_path / f"{name}.cs", with_fields(make_records(2), {"note/field": np.repeat(column, 2)})
            )
        )
        for name, column in (("a", known), ("b", added))
    ]
    if joined is None:
        with pytest.raises(ParticleFileError, match=r"b\.cs: field note/field holds values"):
            adapter.appended(*tables, tmp_path / "b.cs")
        return
    found = adapter.appended(*tables, tmp_path / "b.cs").host.records["note/field"]
    np.testing.assert_array_equal(found, np.repeat(joined, 2), strict=True)


def test_optics_groups_with_blanks_in_their_names_stay_readable(tmp_path: Path) -> None:
    adapter = formats.adapter_for(Path("x.star"))
    formats.write_particles(make_particles(tmp_path, 2), tmp_path / "p.star")
    text = (tmp_path / "p.star").read_text()
    paths = [tmp_path / f"{k}.star" for k in range(3)]
    for path, aberration in zip(paths, ("2.7", "2.0", "2.0"), strict=True):
        path.write_text(text.replace("opticsGroup1", '"my group"').replace("2.700000", aberration))
    done, *others = map(formats.read_particles, paths)
    for other in others:
        done = adapter.appended(done, other, paths[1])
    formats.write_particles(done, tmp_path / "all.star")
    read = formats.read_particles(tmp_path / "all.star")
    names = read.host.document.table("optics").tokens("rlnOpticsGroupName")
    assert list(names) == ['"my group"', "opticsGroup2", '"my group_2"', "opticsGroup2_2"]
    assert sorted(read.optics_group.tolist()) == [1, 2, 3, 3, 4, 4]


def test_tables_with_and_without_optics_stay_apart(tmp_path: Path) -> None:
    adapter = formats.adapter_for(Path("x.star"))

    def new(n: int) -> ParticleSet:
        formats.write_particles(make_particles(tmp_path, n), tmp_path / "p.star", overwrite=True)
        return formats.read_particles(tmp_path / "p.star")

    one, two = (adapter.predicted(new(n), tmp_path / "o.star", make_prediction(n)) for n in (4, 6))
    assert len(adapter.appended(one, two, tmp_path / "p.star").host.particles) == 10
    document = two.host.document
    plain = two.host.with_particles(two.host.particles)
    object.__setattr__(plain, "document", document.with_table(0, document.tables[1]))
    with pytest.raises(ParticleFileError, match=r"no optics table \(RELION 3.0\), unlike"):
        adapter.appended(one, type(two)(**{**two.__dict__, "host": plain}), tmp_path / "p.star")
