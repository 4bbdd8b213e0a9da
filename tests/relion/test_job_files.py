"""What RELION reads of a job: node files of every version, templates; and the help page."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import starfile
from click.testing import CliRunner

from relion_external.job import cli
from relion_external.job.command_line import parse_job
from relion_external.job.nodes import HALF_MAP, LOG_FILE, PARTICLES, REFERENCE, write_output_nodes
from relion_external.job.parameters import FREE_PARAMETERS
from relion_external.job.templates import write_templates

V31 = """
data_pipeline_nodes

loop_
_rlnPipeLineNodeName #1
_rlnPipeLineNodeType #2
Import/job001/particles.star 3
"""
V4 = """
# version 30001

data_pipeline_nodes

loop_
_rlnPipeLineNodeName #1
_rlnPipeLineNodeTypeLabel #2
Import/job001/mask.mrc Mask3D.mrc.relion
"""
V5 = """
# version 50001

data_pipeline_nodes

loop_
_rlnPipeLineNodeName #1
_rlnPipeLineNodeTypeLabel #2
_rlnPipeLineNodeTypeLabelDepth #3
"""


@pytest.mark.parametrize(
    ("pipeline", "particles"),
    [
        (V31, None),
        (V4, "ParticlesData.star.relion.cryoforum"),
        (V5, "ParticleGroupMetadata.star.relion.cryoforum"),
        (
            V5 + "Extract/job002/particles.star ParticlesData.star.relion 1\n",
            "ParticlesData.star.relion.cryoforum",
        ),
        ("", "ParticleGroupMetadata.star.relion.cryoforum"),
    ],
)
def test_node_files_of_every_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pipeline: str, particles: str | None
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Path("External/job002")
    folder.mkdir(parents=True)
    if pipeline:
        (folder / "job_pipeline.star").write_text(pipeline)
    write_output_nodes(
        folder,
        [("predicted.star", PARTICLES), ("half1.mrc", HALF_MAP), ("model/reference.mrc", REFERENCE), ("logfile.pdf", LOG_FILE)],
    )  # fmt: skip
    nodes = starfile.read(folder / "RELION_OUTPUT_NODES.star")
    assert nodes["rlnPipeLineNodeName"].tolist()[0] == "External/job002/predicted.star"
    assert nodes["rlnPipeLineNodeType"].tolist() == [3, 10, 6, 13]
    if particles is None:
        assert "rlnPipeLineNodeTypeLabel" not in nodes
    else:
        labels = nodes["rlnPipeLineNodeTypeLabel"].tolist()
        assert labels[0] == particles
        assert labels[1].startswith("DensityMap.mrc.")
        assert "halfmap" in labels[1]
        assert "LogFile.pdf.relion" in labels[3]


def test_templates_hold_known_parameters_and_fit_the_params_tab(tmp_path: Path) -> None:
    known = {option.name for option in FREE_PARAMETERS}
    paths = write_templates(tmp_path, "cryoforum-relion", fill_gui="predict")
    assert [path.parent.name for path in list(paths)[:4]] == ["train", "predict", "select", "pipeline"]
    for path in paths:
        options = starfile.read(path)["joboptions_values"]
        values = dict(zip(options["rlnJobOptionVariable"], options["rlnJobOptionValue"], strict=True))
        labels = [value for key, value in values.items() if key.endswith("_label")]
        assert set(labels) <= known
        assert len(labels) <= 10
        given = [
            f"--{values[f'param{i}_label']} {values[f'param{i}_value']}" for i in range(1, len(labels) + 1)
        ]
        given += [f"--in_3dref {values['in_3dref']}"] if "in_3dref" in values else []
        job = parse_job(
            f"--o External/job009/ --in_parts {values['in_part']} {' '.join(given)} --j 2".split()
        )
        assert job.unused() == []
        assert job.job == ("predict" if path.name.startswith(".") else path.parent.name)
    assert (tmp_path / ".gui_externaljob.star").exists()


def test_help_lists_every_parameter_and_install_template(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli._commands(), ["--help"])
    assert result.exit_code == 0
    for option in FREE_PARAMETERS:
        assert f"--{option.name}" in result.output
    assert CliRunner().invoke(cli.install_template, [str(tmp_path)]).exit_code == 0
    again = CliRunner().invoke(cli.install_template, [str(tmp_path), "--fill-gui", "select"])
    assert again.output.count("kept: ") == 4
    assert again.output.count("written: ") == 1
    absent = CliRunner().invoke(cli.install_template, [str(tmp_path / "absent")])
    assert "is not a folder" in absent.output


def test_help_imports_nothing_heavy() -> None:
    code = "import sys; from relion_external.job.cli import _commands; _commands(); print('torch' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        == "False\n"
    )
