"""Exports of cryoSPARC read, and .csg groups written: image paths, predictions, commands; no server, no client."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from chain import cryoforum
from cs_tables import SHUFFLED, assert_whole, load, make_records, part, write_group, write_job_group, written
from particle_tables import BOX, angles_deg, make_particles, make_prediction

from cryoforum_plugin.confidence.matching import match_rows
from cryoforum_plugin.errors import OutputError
from cryoforum_plugin.formats import read_particles, write_particles
from cryoforum_plugin.images.stacks import StackReader
from cryosparc_job.cs_file import with_fields


def write_export(project: Path) -> Path:
    """Write an export as cryoSPARC does: images linked beside the table, all its paths with '>'."""
    particles = make_particles(project, 6)
    folder = project / "exports" / "groups" / "J42_particles"
    (folder / "J1" / "extract").mkdir(parents=True)
    for name, stack in zip("ab", particles.stacks, strict=True):
        (folder / "J1" / "extract" / f"{name}.mrc").symlink_to(stack)
    micrographs = {"location/micrograph_path": np.array([b">J1/motion/mic.mrc"] * 6)}
    written(folder / "J42_particles_exported.cs", with_fields(make_records(), micrographs))
    slots = ("alignments3D", "blob", "ctf", "location")
    return write_group(
        folder / "J42_particles_exported.csg", dict.fromkeys(slots, ">J42_particles_exported.cs")
    )


def images(path: Path) -> np.ndarray:
    particles = read_particles(path)
    return StackReader(particles.stacks).read(particles.stack_index, particles.slice_index)


@pytest.fixture
def job(tmp_path: Path) -> Path:
    return tmp_path / "P3" / "J42"


def test_an_export_finds_its_linked_images(project: Path) -> None:
    group, made = write_export(project), make_particles(project, 6)
    expected = StackReader(made.stacks).read(made.stack_index, made.slice_index)
    np.testing.assert_array_equal(images(group), expected)
    np.testing.assert_array_equal(images(group.with_suffix(".cs")), expected)


@pytest.mark.parametrize("suffix", [".cs", ".csg"])
@pytest.mark.parametrize("folder", ["exports/groups/J42_particles/new", "J50", "linked"])
def test_written_paths_lead_to_the_images(folder: str, suffix: str, project: Path) -> None:
    group = write_export(project)
    (project / "deep" / "er").mkdir(parents=True)
    (project / "linked").symlink_to(project / "deep" / "er")
    output = project / folder / f"out{suffix}"
    write_particles(read_particles(group), output)
    np.testing.assert_array_equal(images(output), images(group))
    write_particles(read_particles(output), project / "J51" / "again.cs")
    moved = load(project / "J51" / "again.cs")["blob/path"]
    assert moved[0] == b">../exports/groups/J42_particles/J1/extract/a.mrc"  # not by way of the first output
    old, new = load(group.with_suffix(".cs")), load(output.with_suffix(".cs"))
    here = Path(os.path.realpath(output.parent))
    for name in ("blob/path", "location/micrograph_path"):
        for before, after in zip(old[name].tolist(), new[name].tolist(), strict=True):
            assert after.startswith(b">../")
            found = here / after[1:].decode()
            assert found.parent.resolve() == (group.parent / before[1:].decode()).parent.resolve()
            assert found.name == Path(before.decode()).name


def test_an_output_beside_its_export_keeps_its_paths(project: Path) -> None:
    group = write_export(project)
    write_particles(read_particles(group), group.with_name("new.csg"))
    assert group.with_name("new.cs").read_bytes() == group.with_suffix(".cs").read_bytes()


def test_what_was_found_above_a_table_stays_where_the_table_is(project: Path) -> None:
    make_particles(project, 6)
    names = np.array([b">Extract/a.mrcs"] * 6)
    path = written(project / "J42" / "a.cs", with_fields(make_records(), {"blob/path": names}))
    write_particles(read_particles(path), project / "J42" / "b.cs")
    assert (project / "J42" / "b.cs").read_bytes() == path.read_bytes()


def test_paths_from_the_project_folder_stay(project: Path) -> None:
    particles = make_particles(project, 6)
    names = np.array([f"Extract/{'ab'[i]}.mrcs".encode() for i in particles.stack_index])
    path = written(project / "J42" / "a.cs", with_fields(make_records(), {"blob/path": names}))
    write_particles(read_particles(path), project / "J50" / "b.csg")
    assert load(project / "J50" / "b.cs")["blob/path"].tolist() == names.tolist()
    np.testing.assert_array_equal(images(project / "J50" / "b.csg"), images(path))


def test_paths_that_lead_nowhere_stay(job: Path, tmp_path: Path) -> None:
    write_particles(read_particles(write_job_group(job)), tmp_path / "b.cs")
    assert set(load(tmp_path / "b.cs")["blob/path"].tolist()) == set(make_records()["blob/path"].tolist())


def test_a_prediction_as_a_group(job: Path, tmp_path: Path) -> None:
    group, prediction = write_job_group(job), make_prediction(6)
    output = tmp_path / "out" / "predicted.csg"
    write_particles(read_particles(group), output, prediction)
    assert sorted(path.name for path in output.parent.iterdir()) == [
        "predicted.cs", "predicted.csg", "predicted_posterior.npz",
    ]  # fmt: skip
    content = yaml.safe_load(output.read_text())
    assert set(content) == {"created", "group", "results", "version"}
    assert set(content["group"]) == {"description", "name", "title", "type"}
    assert content["group"]["type"] == "particle"
    assert list(content["results"]) == [
        "alignments3D", "blob", *(f"components_mode_{k}" for k in range(4)), "ctf", "location",
    ]  # fmt: skip
    for slot, result in content["results"].items():
        kind = "components" if slot.startswith("components") else slot
        assert result == {"metafile": ">predicted.cs", "num_items": 6, "type": f"particle.{kind}"}
    assert set(make_records().dtype.names) < set(load(output.with_suffix(".cs")).dtype.names)
    for path in (output, output.with_suffix(".cs")):
        again = read_particles(path)
        assert again.prediction is not None
        np.testing.assert_array_equal(again.prediction.bingham, prediction.bingham)
        assert angles_deg(again.require_rotation(), prediction.rotation).max() < 1e-4


def test_a_group_is_written_whole_or_not_at_all(job: Path, tmp_path: Path) -> None:
    particles = read_particles(write_job_group(job))
    (tmp_path / "a.cs").write_text("mine")
    with pytest.raises(OutputError, match=r"a\.cs exists already"):
        write_particles(particles, tmp_path / "a.csg")
    assert (tmp_path / "a.cs").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["P3", "a.cs"]
    write_particles(particles, tmp_path / "a.csg", overwrite=True)
    assert_whole(tmp_path / "a.csg")


def test_groups_become_star_files_and_back(project: Path) -> None:
    group = write_export(project)
    write_particles(read_particles(group), project / "a.star")
    write_particles(read_particles(project / "a.star"), project / "J50" / "b.csg")
    first, last = read_particles(group), read_particles(project / "J50" / "b.csg")
    assert angles_deg(first.require_rotation(), last.require_rotation()).max() < 1e-4
    np.testing.assert_allclose(first.require_ctf().defocus_u_A, last.require_ctf().defocus_u_A, rtol=1e-6)
    np.testing.assert_array_equal(images(project / "J50" / "b.csg"), images(group))
    assert load(project / "J50" / "b.cs")["blob/path"][0].startswith(b">../")


def test_groups_become_tables_even_without_ctf(job: Path, tmp_path: Path) -> None:
    written(job / "a.cs", part(make_records(), "blob", "alignments3D"))
    group = write_group(job / "a.csg", {"blob": ">a.cs"})
    write_particles(read_particles(group), tmp_path / "b.cs")
    assert (tmp_path / "b.cs").read_bytes() == (job / "a.cs").read_bytes()


def test_a_group_and_a_file_are_compared_by_uid(job: Path, tmp_path: Path) -> None:
    group = read_particles(write_job_group(job))
    table = read_particles(written(tmp_path / "a.cs", make_records()[SHUFFLED]), Path("/elsewhere"))
    assert match_rows(table, group).tolist() == SHUFFLED.tolist()


def test_all_of_it_without_the_client(project: Path) -> None:
    group = write_export(project)
    code = (
        "import sys; sys.modules['cryosparc'] = None\n"
        "from pathlib import Path\n"
        "from cryoforum_plugin.formats import read_particles, write_particles\n"
        f"particles = read_particles(Path({str(group)!r}))\n"
        "write_particles(particles, Path('out.csg'))\n"
        "assert len(read_particles(Path('out.csg'))) == 6\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_select_reads_and_writes_groups(project: Path) -> None:
    group, prediction = write_export(project), make_prediction(6)
    folder = group.parent
    write_particles(read_particles(group), folder / "predicted.csg", prediction)
    outputs = ("-o", folder / "kept.csg", "--rejected", folder / "out.csg")
    result = cryoforum("select", folder / "predicted.csg", *outputs, "--keep", 0.5)
    assert result.exit_code == 0, result.output
    kept, rejected = read_particles(folder / "kept.csg"), read_particles(folder / "out.csg")
    assert len(kept) == len(rejected) == 3
    assert kept.prediction.confidence.min() > rejected.prediction.confidence.max()
    assert StackReader(kept.stacks).check(kept) == BOX
    result = cryoforum("select", folder / "predicted.csg", *outputs, "--min-confidence", 0, "--overwrite")
    assert result.exit_code == 0, result.output
    assert not (folder / "out.csg").exists()
    assert not (folder / "out.cs").exists()


def test_commands_see_both_files_of_a_group(project: Path) -> None:
    group = write_export(project)
    result = cryoforum("select", group, "-o", "a.csg", "--rejected", "a.cs", "--keep", 0.5)
    assert result.exit_code == 2
    assert "different files" in result.output
    Path("b.cs").touch()
    result = cryoforum("predict", "model", group, "-o", "b.csg")
    assert result.exit_code == 1
    assert "b.cs exists already" in result.output
