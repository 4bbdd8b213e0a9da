"""The jobs for the CCP-EM Pipeliner, found, checked, run and shown by the real pipeliner."""

from __future__ import annotations

import json
import os
import shlex
import sysconfig
from pathlib import Path
from typing import Any

import pytest
from chain import TINY, simulate
from pipeliner.api.manage_project import PipelinerProject
from pipeliner.job_factory import get_job_types, job_from_dict, read_job
from pipeliner.project_graph import ProjectGraph

from cryoforum_plugin import __version__
from relion_external.job.command_line import parse_job
from relion_external.job.nodes import HALF_MAP
from relion_external.job.parameters import FREE_PARAMETERS, JOBS
from relion_external.pipeliner_jobs import OUTPUTS
from relion_external.pipeliner_options import CRITERIA
from relion_external.star_reader import read_star

MODEL = "CryoForum/job001/model/model.pt"
INPUTS = {  # what each job cannot do without
    "train": {"in_parts": "a.star"},
    "predict": {"in_parts": "a.star", "model": MODEL},
    "select": {"in_parts": "predicted.star", "keep": 0.5},
    "pipeline": {"in_parts": "a.star", "train_particles": "b.star"},
}
CHANGED = {  # a value for every option that is not its default; empty-looking ones among them
    "in_parts": "my particles.star",
    "in_mask": "mask.mrc",
    "train_particles": "it's refined.star",
    "model": MODEL,
    "symmetry": "D2",
    "contrast": "invert",
    "preset": "fast",
    "epochs": 3,
    "seed": 0,
    "cache_dir": "/fast disk/images",
    "config": "my settings.toml",
    "set": "training.batch_size=8 images.size_px=32",
    "min_confidence": 0.0,
    "max_error": 7.5,
    "keep": 0.25,
    "max_outlier": 0.9,
    "target": "5%:10",
    "auto": True,
    "images": False,
    "balance_views": True,
    "views": "4",
    "refine": False,
    "device": "cuda",
    "devices": 2,
    "num_nodes": 3,
}


def make(kind: str, **options: Any) -> Any:
    return job_from_dict({"_rlnJobTypeLabel": f"cryoforum.{kind}", **options})


def wrong(job: Any) -> set[str]:
    """Names of the options with an error."""
    errors = [result for result in job.validate_joboptions() if result.type == "error"]
    return {name for name, option in job.joboptions.items() if any(option in e.raised_by for e in errors)}


def command(job: Any) -> list[str]:
    job.output_dir = "CryoForum/job002/"
    (only,) = job.get_commands()
    return [str(argument) for argument in only.cmd]


def test_the_pipeliner_finds_a_job_for_everything_the_program_does() -> None:
    found = get_job_types("cryoforum.")
    assert sorted(job.PROCESS_NAME for job in found) == sorted(f"cryoforum.{kind}" for kind in JOBS)
    for job in found:
        assert job.jobinfo.alternative_unavailable_reason is None
        assert job.jobinfo.references[0].title.startswith("Cryo-forum")
        assert len({option.label for option in job.joboptions.values()}) == len(
            job.joboptions
        )  # keys of run.job
        assert all(option.help_text for name, option in job.joboptions.items() if name in CHANGED)


def test_every_parameter_of_the_program_is_on_some_form() -> None:
    on_forms = {name for kind in JOBS for name in make(kind).joboptions}
    assert {str(option.name) for option in FREE_PARAMETERS} - on_forms == {"job"}


@pytest.mark.parametrize("kind", JOBS)
def test_a_filled_form_is_valid(kind: str) -> None:
    assert not wrong(make(kind, **INPUTS[kind]))


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind, names in INPUTS.items() for name in names if name != "keep"]
)
def test_a_missing_input_is_refused(kind: str, name: str) -> None:
    assert wrong(make(kind, **(INPUTS[kind] | {name: ""}))) == {name}


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        ("predict", "model", "CryoForum/job001/model/weights.pt"),
        ("predict", "min_confidence", 1.01),
        ("predict", "max_error", -1.0),
        ("select", "keep", 0.0),
        ("select", "symmetry", "D"),
        ("train", "symmetry", "I5"),
        ("train", "device", "gpu"),
        ("train", "epochs", 0),
        ("train", "set", "training.batch_size 8"),
    ],
)
def test_a_wrong_value_is_refused(kind: str, name: str, value: Any) -> None:
    assert wrong(make(kind, **(INPUTS[kind] | {name: value}))) == {name}


def test_a_selection_needs_a_criterion() -> None:
    assert wrong(make("select", in_parts="predicted.star")) == set(CRITERIA)
    for name in CRITERIA:
        assert not wrong(make("select", in_parts="predicted.star", **{name: CHANGED[name]}))


@pytest.mark.parametrize(
    ("kind", "options", "expected"),
    [
        ("train", {}, "--in_parts a.star --job train --j 1"),
        ("predict", {}, "--in_parts a.star --job predict --model CryoForum/job001/model --j 1"),
        (
            "predict",
            {"in_parts": "my particles.star", "in_mask": "mask.mrc", "auto": True, "nr_threads": 8},
            "--in_parts 'my particles.star' --in_mask mask.mrc --job predict --model CryoForum/job001/model "
            "--auto yes --j 8",
        ),
        (
            "select",
            {"keep": "", "max_error": 5},
            "--in_parts predicted.star --job select --max_error 5.0 --j 1",
        ),
        (
            "pipeline",
            {"reconstruct": False, "set": "a.b=1 c.d=2", "other_args": "--seed 3"},
            "--in_parts a.star --job pipeline --train_particles b.star --set 'a.b=1 c.d=2' --reconstruct no --j 1 "
            "--seed 3",
        ),
    ],
)
def test_command_lines(kind: str, options: dict[str, Any], expected: str) -> None:
    job = make(kind, **(INPUTS[kind] | options))
    assert command(job) == shlex.split(f"cryoforum-relion --o CryoForum/job002/ {expected}")


@pytest.mark.parametrize("kind", JOBS)
def test_the_program_understands_every_option(kind: str, project: Path) -> None:
    (project / CHANGED["config"]).write_text("[training]\nbatch_size = 16\n")
    job = make(kind)
    values = {name: value for name, value in CHANGED.items() if name in job.joboptions}
    if "reconstruct" in job.joboptions:
        values["reconstruct"] = not job.joboptions["reconstruct"].default_value
    for name, value in values.items():
        job.joboptions[name].value = value
    job.write_jobstar("./")
    parsed = parse_job(command(read_job("job.star"))[1:])
    assert parsed.job == kind
    given = {name: str(getattr(parsed, name)) for name in values}
    assert given == {name: str(value) for name, value in values.items()} | (
        {"model": str(Path(MODEL).parent)} if "model" in values else {}
    )


@pytest.mark.parametrize("name", ["contrast", "preset", "views"])
def test_the_program_knows_every_choice(name: str) -> None:
    option = make("pipeline").joboptions[name]
    for choice in set(option.choices) - {option.default_value}:
        parsed = parse_job(command(make("pipeline", **(INPUTS["pipeline"] | {name: choice})))[1:])
        assert str(getattr(parsed, name)) == choice


@pytest.mark.parametrize(
    ("kind", "options", "expected"),
    [
        ("train", {}, "model/model.pt logfile.pdf"),
        ("predict", {}, "predicted.star logfile.pdf"),
        ("predict", {"auto": True}, "predicted.star selected.star logfile.pdf"),
        ("select", {"reconstruct": True}, "selected.star half1.mrc half2.mrc logfile.pdf"),
        ("pipeline", {}, "model/model.pt predicted.star selected.star half1.mrc half2.mrc logfile.pdf"),
        ("pipeline", {"reconstruct": False}, "model/model.pt predicted.star selected.star logfile.pdf"),
    ],
)
def test_nodes_declared_before_the_run(kind: str, options: dict[str, Any], expected: str) -> None:
    job = make(kind, **(INPUTS[kind] | options))
    job.output_dir = "CryoForum/job002/"
    job.create_output_nodes()
    types = {node.name.removeprefix(job.output_dir): node.type for node in job.output_nodes}
    assert types == {name: OUTPUTS[name] for name in expected.split()}
    assert {types[name] for name in types if name.startswith("half")} <= {HALF_MAP.label}


@pytest.fixture
def pipeliner(project: Path, monkeypatch: pytest.MonkeyPatch) -> PipelinerProject:
    """An empty pipeliner project in the current folder, with the programs of this environment on PATH."""
    monkeypatch.setenv("PATH", f"{sysconfig.get_path('scripts')}{os.pathsep}{os.environ['PATH']}")
    return PipelinerProject(make_new_project=True)


def process_of(job: Any) -> Any:
    """What the project's pipeline knows of a job."""
    with ProjectGraph() as graph:
        return graph.find_process(job.output_dir)


def rows(folder: str, name: str) -> int:
    """Number of particles in a STAR file."""
    document = read_star(Path(folder) / name)
    return next(len(table) for table in document.tables if "rlnImageName" in table)


def nodes_for_relion(job: Any) -> dict[str, str]:
    """Name and label of what the program itself lists as its outputs."""
    (table,) = read_star(Path(job.output_dir) / "RELION_OUTPUT_NODES.star").tables
    columns = (list(table.strings("rlnPipeLineNodeName")), list(table.strings("rlnPipeLineNodeTypeLabel")))
    return dict(zip(*columns, strict=True))


def shown(pipeliner: PipelinerProject, job: Any) -> list[str]:
    """Kinds of the display objects; one that could not be made has the kind pending."""
    return [display.dobj_type for display in pipeliner.get_job(job.output_dir).save_results_display_files()]


def test_train_and_predict(pipeliner: PipelinerProject) -> None:
    simulate(Path(), 200)
    settings = " ".join(TINY[i + 1] for i, word in enumerate(TINY) if word == "--set")
    training = make("train", in_parts="sim/train.star", epochs=1, set=settings)
    pipeliner.run_job(training, run_in_foreground=True)
    check_training(pipeliner, training)

    model = f"{training.output_dir}model/model.pt"
    prediction = make("predict", in_parts="sim/test.star", model=model, keep=0.4)
    pipeliner.run_job(prediction, run_in_foreground=True)
    check_prediction(pipeliner, prediction)
    makers = {node.name: node.output_from_process for node in process_of(prediction).input_nodes}
    assert makers[model].name == training.output_dir


def check_training(pipeliner: PipelinerProject, training: Any) -> None:
    """Status, nodes, display, figures, version and clean-up of a training that has ended."""
    process, folder = process_of(training), training.output_dir
    assert process.status == "Succeeded"
    model = f"{folder}model/model.pt"
    expected = nodes_for_relion(training) | {model: OUTPUTS["model/model.pt"]}
    assert {node.name: node.type for node in process.output_nodes} == expected
    assert shown(pipeliner, training) == ["graph", "graph", "montage", "pdffile"]
    job = pipeliner.get_job(folder)
    assert job.gather_metadata()["train"]["particles"] == rows("sim", "train.star")
    assert job.jobinfo.programs[0].get_version_from_logs(folder) == __version__
    assert pipeliner.run_cleanup([folder])
    assert not (Path(folder) / "model" / "checkpoint").exists()
    assert Path(model).is_file()


def check_prediction(pipeliner: PipelinerProject, prediction: Any) -> None:
    """Status, nodes, display, figures and continuation of a prediction with selection that has ended."""
    process, folder = process_of(prediction), prediction.output_dir
    assert process.status == "Succeeded"
    assert {node.name: node.type for node in process.output_nodes} == nodes_for_relion(prediction)
    kinds = shown(pipeliner, prediction)
    assert "pending" not in kinds
    assert {"histogram", "image", "montage", "pdffile"} <= set(kinds)
    report, _ = pipeliner.prepare_metadata_report(folder)
    figures = json.loads(Path(report).read_text())["Jobs metadata"][folder]["results"]
    counts = {"kept": rows(folder, "selected.star"), "rejected": rows(folder, "rejected.star")}
    assert figures["select"]["counts"]["all"] == counts
    assert sum(counts.values()) == rows("sim", "test.star")
    again = pipeliner.get_continuation_job(folder)
    assert again.is_continue
    assert again.get_commands()[0].cmd == prediction.get_commands()[0].cmd


def test_a_failing_run_is_failed(pipeliner: PipelinerProject) -> None:
    Path("a.star").touch()
    job = make("train", in_parts="a.star", other_args="--sede 3")
    pipeliner.run_job(job, run_in_foreground=True)
    process = process_of(job)
    assert process.status == "Failed"
    assert not process.output_nodes
    assert "did you mean 'seed'" in (Path(job.output_dir) / "run.err").read_text()
