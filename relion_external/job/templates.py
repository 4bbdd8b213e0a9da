"""Ready job.star files of the External job, which RELION 3.1, 4 and 5 read."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path

from cryoforum_plugin.atomic import atomic_file
from cryoforum_plugin.errors import HostError
from relion_external.star import StarDocument, new_table
from relion_external.tokens import quote

FOLDER = "cryoforum_jobs"
GUI_FILE = ".gui_externaljob.star"  # what RELION's GUI fills the External tab with
_EXTERNAL = "99"  # job type of RELION 3.1, which 4 and 5 still read and turn into relion.external
_PARAMETERS: dict[str, dict[str, str]] = {
    "train": {"job": "train", "symmetry": "C1", "preset": "default", "device": "auto"},
    "predict": {"job": "predict", "views": "2", "device": "auto"},
    "select": {"job": "select", "min_confidence": "0.5", "reconstruct": "yes"},
    "pipeline": {
        "job": "pipeline",
        "train_particles": "Refine3D/job001/run_data.star",
        "symmetry": "C1",
        "preset": "default",
        "auto": "yes",
        "reconstruct": "yes",
        "device": "auto",
    },
}
_INPUT = {
    "train": "Refine3D/job001/run_data.star",
    "predict": "Extract/job001/particles.star",
    "select": "External/job001/predicted.star",
    "pipeline": "Extract/job001/particles.star",
}


def write_templates(
    project: Path, executable: str | None = None, fill_gui: str | None = None, overwrite: bool = False
) -> dict[Path, bool]:
    """Write PROJECT/cryoforum_jobs/<job>/job.star for each job type; return which were written, which kept.

    executable : as a shell reads it; default the full path of `cryoforum-relion`. fill_gui : job type to fill
    the GUI's tab with. Raises HostError when `project` is no folder.
    """
    if not project.is_dir():
        raise HostError(f"{project} is not a folder; give the folder of a RELION project")
    executable = executable or shlex.quote(own_path())
    files = {project / FOLDER / name / "job.star": name for name in _PARAMETERS}
    if fill_gui is not None:
        files[project / GUI_FILE] = fill_gui
    written = {path: overwrite or path.name == GUI_FILE or not path.exists() for path in files}
    for path in (path for path in files if written[path]):
        with atomic_file(path, overwrite=True) as temporary:
            temporary.write_text(template(path, files[path], executable).text())
    return written


def template(path: Path, job: str, executable: str) -> StarDocument:
    """A job.star for one job type; four threads, the rest as RELION's GUI would leave it."""
    options = {"fn_exe": executable, "in_part": _INPUT[job]}
    options |= {"in_3dref": "External/job001/model/reference.mrc"} if job == "predict" else {}
    for number, (label, value) in enumerate(_PARAMETERS[job].items(), 1):
        options |= {f"param{number}_label": label, f"param{number}_value": value}
    options |= {"nr_threads": str(min(4, os.cpu_count() or 1)), "do_queue": "No"}
    columns = {
        "rlnJobOptionVariable": list(options),
        "rlnJobOptionValue": [quote(value) for value in options.values()],
    }
    head = ("", "data_job", "", f"_rlnJobType {_EXTERNAL}", "_rlnJobIsContinue 0", "")
    return StarDocument(path, head, (new_table(path, "joboptions_values", columns),))


def own_path() -> str:
    """Full path of the console script beside this Python, else the one on PATH, else its name."""
    beside = Path(sys.executable).parent / "cryoforum-relion"
    return str(beside) if beside.exists() else shutil.which("cryoforum-relion") or "cryoforum-relion"
