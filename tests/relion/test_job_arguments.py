"""Command lines as RELION builds them, and what is said about wrong ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from cryoforum_plugin.errors import HostError
from cryoforum_plugin.host_job.steps import AGAIN
from cryoforum_plugin.launch import Devices
from relion_external.job.command_line import job_folder, parse_job
from relion_external.job.learning import devices_of
from relion_external.job.parameters import Job
from relion_external.job.worker import in_gui_words

HOST_LINE = "--o External/job005/ --in_parts Import/job001/particles.star"


def test_a_command_line_of_relion_with_everything_in_it() -> None:
    job = parse_job(
        f"{HOST_LINE} --in_3Dref External/job002/model/reference.mrc --job predict --min_confidence 0.5"
        " --auto --keep --set training.epochs=3 images.size_px=48 --model my models/first --views 8"
        " --reconstruct Yes --j 4 --pipeline_control External/job005/ --pipeline-control".split()
    )
    assert job == Job(
        job="predict",
        o=Path("External/job005"),
        in_parts=Path("Import/job001/particles.star"),
        in_3dref=Path("External/job002/model/reference.mrc"),
        j=4,
        model=Path("my models/first"),
        min_confidence=0.5,
        auto=True,
        views=8,
        reconstruct=True,
        set="training.epochs=3 images.size_px=48",
    )


def test_values_of_yes_and_no() -> None:
    for text, value in (
        ("Yes", True),
        ("true", True),
        ("1", True),
        ("No", False),
        ("false", False),
        ("0", False),
    ):
        assert parse_job(f"{HOST_LINE} --job train --reconstruct {text}".split()).reconstruct is value


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ("--job pipelin", "parameter 'job' on the Params tab: 'pipelin' is not one of"),
        ("--job predict --modle x", "unknown parameter 'modle' on the Params tab; did you mean 'model'?"),
        ("--job predict --mode x", "unknown parameter 'mode'"),
        ("--job train --qqq x", "known are job, train_particles"),
        ("--job predict", "no model"),
        ("--job pipeline", "train_particles"),
        ("--job select", "nothing to select by"),
        ("--job select --keep 2", "parameter 'keep' on the Params tab: 2.0 is not in the range"),
        ("--job select --target 5:10", "parameter 'target' on the Params tab: '5:10' is no target"),
        ("--job select --keep nan", "parameter 'keep' on the Params tab: nan is not a number"),
        ("--job train --config absent.toml", "parameter 'config' on the Params tab: cannot read absent.toml"),
        ("--job train --epochs many", "parameter 'epochs' on the Params tab"),
        ("--job train --j 0", "'Number of threads' on the Running tab"),
        ("--job train --seed 1 --seed 2", "given twice"),
        ("--job train --in_mics mics.star", "works on particles"),
        ("--job predict --model x --refine maybe", "parameter 'refine' on the Params tab"),
        ("--job train --train_particles x.star", "'train_particles'"),
        ("", "no parameter 'job'"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_in_words_of_the_gui(more: str, words: str) -> None:
    with pytest.raises(HostError, match=r".") as error:
        parse_job(f"{HOST_LINE} {more}".split())
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_no_particles() -> None:
    with pytest.raises(HostError, match="'Input particles' on the Input tab"):
        parse_job(["--o", "External/job005/", "--job", "train", "--j", "1"])
    with pytest.raises(HostError, match="stands before any label"):
        parse_job(["value", "--o", "x"])
    assert job_folder(["value", "--o", "x"]) == Path("x")


def test_parameters_from_a_file_give_way_to_the_params_tab(tmp_path: Path) -> None:
    config = tmp_path / "all parameters.toml"
    config.write_text('[job]\njob = "train"\nepochs = 7\nsymmetry = "D2"\n[training]\nbatch_size = 32\n')
    job = parse_job(f"{HOST_LINE} --config {config} --epochs 9".split(" "))
    assert (job.job, job.epochs, job.symmetry) == ("train", 9, "D2")
    config.write_text('preset = "fast"\n')
    assert parse_job(f"{HOST_LINE} --job train --config {config}".split(" ")).preset == "fast"
    config.write_text('[job]\njbo = "train"\n')
    with pytest.raises(HostError, match="did you mean 'job'"):
        parse_job(f"{HOST_LINE} --config {config}".split(" "))


def test_parameters_of_other_jobs_are_named() -> None:
    job = parse_job(f"{HOST_LINE} --job train --epochs 3 --keep 0.5 --model x --symmetry C4".split())
    assert job.unused() == ["model", "keep"]
    assert parse_job(f"{HOST_LINE} --job select --keep 0.5 --in_3dref ref.mrc".split()).unused() == [
        "in_3dref"
    ]


def test_a_prediction_that_selects_nothing_uses_no_options_of_a_selection() -> None:
    plain = parse_job(f"{HOST_LINE} --job predict --model x --balance_views yes --images no".split())
    assert plain.unused() == ["images", "balance_views"]
    assert (
        parse_job(f"{HOST_LINE} --job predict --model x --balance_views yes --keep 0.5".split()).unused()
        == []
    )


def test_job_folder() -> None:
    assert job_folder(["--in_parts", "x", "--o", "External/job001/"]) == Path("External/job001")
    assert job_folder(["--in_parts", "x"]) is None


def test_messages_of_the_core_speak_of_the_gui() -> None:
    assert in_gui_words("or pass --no-ctf if so") == "or set the parameter set to images.ctf=none if so"
    assert in_gui_words("loosen (or use --auto)") == "loosen (or use the parameter auto)"
    assert in_gui_words("m exists already; choose another output or pass --overwrite").endswith(
        "start a new job"
    )


def test_devices_that_share_a_training() -> None:
    job = parse_job(
        [
            "--o",
            "External/job001/",
            "--in_parts",
            "a.star",
            "--job",
            "train",
            "--devices",
            "4",
            "--num_nodes",
            "2",
        ]
    )
    assert devices_of(job) == Devices("auto", 4, 2)
    assert (
        "devices"
        in parse_job(
            ["--o", "o", "--in_parts", "a", "--job", "select", "--auto", "yes", "--devices", "4"]
        ).unused()
    )
    message = in_gui_words("--devices 4: torch sees 1 CUDA device here; give --device cuda")
    assert message == "devices 4: torch sees 1 CUDA device here; give device cuda"
    assert in_gui_words(f"process 2 of 4 was killed; {AGAIN}").endswith(
        "; press Continue, which goes on where it stopped"
    )
