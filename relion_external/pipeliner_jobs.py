"""Jobs for the CCP-EM Pipeliner and its interface Doppio: train, predict, select, and all in one.

Each is a form for `cryoforum-relion`. Only the pipeliner imports this module (entry points
`ccpem_pipeliner.jobs`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pipeliner.job_options import JobOptionValidationResult
from pipeliner.node_factory import create_node
from pipeliner.pipeliner_job import ExternalProgram, PipelinerCommand, PipelinerJob, Ref

from cryoforum_plugin import __version__
from relion_external.pipeliner_options import CHOOSING, CRITERIA, DEVICES, INPUTS, TRAINING, make_options
from relion_external.pipeliner_results import recorded_figures, results

PROGRAM = "cryoforum-relion"
OUTPUTS = {  # every file that may become a node, with the label that RELION shows it by
    "model/model.pt": "MlModel.pt.cryoforum",
    "model/reference.mrc": "DensityMap.mrc.relion.cryoforum",
    "predicted.star": "ParticleGroupMetadata.star.relion.cryoforum",
    "selected.star": "ParticleGroupMetadata.star.relion.cryoforum",
    "rejected.star": "ParticleGroupMetadata.star.relion.cryoforum",
    "half1.mrc": "DensityMap.mrc.relion.halfmap.cryoforum",
    "half2.mrc": "DensityMap.mrc.relion.halfmap.cryoforum",
    "logfile.pdf": "LogFile.pdf.relion.cryoforum",
}
_VERSION = re.compile(r"cryoforum(?:-relion)?,?\s+(?:version\s+)?(?P<v>\d+(?:\.\d+)*[a-z0-9.+]*)")
_PAPER = Ref(
    authors=["Chung SC"],
    title="Cryo-forum: A framework for orientation recovery with uncertainty measure with the application in "
    "cryo-EM image analysis",
    journal="arXiv",
    year="2023",
    doi="https://doi.org/10.48550/arXiv.2307.09847",
)


class CryoforumJob(PipelinerJob):  # type: ignore[misc]  # the pipeliner has no annotations
    """What the four jobs share; a subclass names its options, what it makes, and how it presents itself."""

    PROCESS_NAME: str
    OUT_DIR = "CryoForum"
    CATEGORY_LABEL = "Orientation Prediction"
    OPTIONS: tuple[str, ...] = ()
    DEFAULTS: tuple[tuple[str, Any], ...] = ()  # where they differ from those of make_options
    MADE: tuple[str, ...] = ("logfile.pdf",)  # outputs that every successful run has
    TITLE = SUMMARY = PARTICLES = PARTICLES_HELP = ""

    def __init__(self) -> None:
        super().__init__()
        self.can_continue = True
        self.jobinfo.display_name = self.TITLE
        self.jobinfo.version = __version__
        self.jobinfo.job_author = "The cryoforum developers"
        self.jobinfo.short_desc = self.SUMMARY
        self.jobinfo.long_desc = " ".join((self.__doc__ or "").split())
        self.jobinfo.references = [_PAPER]
        version = [PROGRAM, "--version"]
        self.jobinfo.programs = [
            ExternalProgram(command=PROGRAM, name="cryoforum", vers_com=version, vers_regex=_VERSION)
        ]
        options = make_options()
        options["in_parts"].label, options["in_parts"].help_text = self.PARTICLES, self.PARTICLES_HELP
        for name, value in self.DEFAULTS:
            options[name].default_value = options[name].value = value
        self.joboptions = {name: option for name, option in options.items() if name in self.OPTIONS}
        self.get_runtab_options(threads=True, addtl_args=True)

    def get_commands(self) -> list[Any]:
        """Build the command line. The same command in the same folder continues what was interrupted."""
        inputs = [name for name in self.OPTIONS if name in INPUTS]
        others = [name for name in self.OPTIONS if name not in INPUTS]
        command = [PROGRAM, "--o", self.output_dir, *self._arguments(inputs)]
        command += ["--job", self._kind(), *self._arguments(others)]
        command += ["--j", str(self.get_nr_threads()), *self.parse_additional_args()]
        return [PipelinerCommand(command)]

    def additional_joboption_validation(self) -> list[Any]:
        """Refuse a selection without a criterion."""
        if self._kind() != "select" or self._selects():
            return []
        options = [self.joboptions[name] for name in CRITERIA]
        return [JobOptionValidationResult("error", options, "At least one of these is required")]

    def create_output_nodes(self) -> None:
        """Declare what a run with these options is sure to make, so that later jobs can be scheduled."""
        self._add_nodes(self._sure())

    def create_post_run_output_nodes(self) -> None:
        """Add what only some runs make: the reference map, and rejected particles."""
        self._add_nodes(name for name in self._present() if name not in self._sure())

    def get_current_output_nodes(self) -> list[Any]:
        """Return nodes of what a stopped job has made so far."""
        return [self._node(name) for name in self._present()]

    def create_results_display(self) -> list[Any]:
        """Show what there is."""
        return results(Path(self.output_dir))

    def gather_metadata(self) -> dict[str, Any]:
        """Return the figures that the run recorded."""
        return recorded_figures(Path(self.output_dir))

    def prepare_clean_up_lists(self, do_harsh: bool = False) -> tuple[list[str], list[str]]:
        """Return the files and folders that a finished job can do without: the training's checkpoint."""
        checkpoint = Path(self.output_dir) / "model" / "checkpoint"
        return [], [str(checkpoint)] if checkpoint.is_dir() else []

    def _kind(self) -> str:
        return self.PROCESS_NAME.split(".")[1]

    def _arguments(self, names: Iterable[str]) -> list[str]:
        """Name and value of the options that differ from their defaults."""
        arguments = []
        for name in names:
            option = self.joboptions[name]
            if option.is_blank or option.value == option.default_value:
                continue
            value = option.get_string()
            if name == "model":
                value = str(Path(value).parent)
            elif isinstance(option.value, bool):
                value = value.lower()
            arguments += [f"--{name}", value]
        return arguments

    def _selects(self) -> bool:
        options = [self.joboptions[name] for name in CRITERIA if name in self.joboptions]
        return any(option.value is not False and not option.is_blank for option in options)

    def _sure(self) -> list[str]:
        names = list(self.MADE)
        if self._selects() and "selected.star" not in names:
            names.append("selected.star")
        if "reconstruct" in self.joboptions and self.joboptions["reconstruct"].value:
            names += ["half1.mrc", "half2.mrc"]
        return names

    def _present(self) -> list[str]:
        return [name for name in OUTPUTS if Path(self._path(name)).is_file()]

    def _path(self, name: str) -> str:
        return str(Path(self.output_dir) / name)

    def _node(self, name: str) -> Any:
        kind, _, *keywords = OUTPUTS[name].split(".")
        return create_node(self._path(name), kind, keywords)

    def _add_nodes(self, names: Iterable[str]) -> None:
        self.output_nodes += [self._node(name) for name in names]


class TrainJob(CryoforumJob):
    """Learn the orientations of a protein from refined particles, for predicting many more in seconds.

    A few thousand particles of a clean 3D refinement are enough to begin with; more make the model better. The
    result is a model with calibrated uncertainty, and the map it was learned with.
    """

    PROCESS_NAME = "cryoforum.train"
    TITLE = "Train orientation prediction"
    SUMMARY = "Learn orientations from refined particles"
    PARTICLES = "Refined particles:"
    PARTICLES_HELP = "Particles with refined orientations, for example run_data.star of a 3D refinement."
    OPTIONS = ("in_parts", "symmetry", "contrast", *TRAINING, *DEVICES)
    DEFAULTS = (("symmetry", "C1"),)
    MADE = ("model/model.pt", "logfile.pdf")


class PredictJob(CryoforumJob):
    """Predict orientation, shift and calibrated uncertainty of every particle with a trained model.

    Every row and column of the input is kept. With a criterion, the particles are also divided into selected and
    rejected ones.
    """

    PROCESS_NAME = "cryoforum.predict"
    TITLE = "Predict orientations"
    SUMMARY = "Predict orientations and their uncertainty with a trained model"
    PARTICLES = "Particles:"
    PARTICLES_HELP = "Particles of the same protein; orientations they have are replaced."
    OPTIONS = (
        "in_parts",
        "in_mask",
        "model",
        "contrast",
        *CRITERIA,
        *CHOOSING,
        "views",
        "refine",
        "reconstruct",
        *DEVICES,
    )
    MADE = ("predicted.star", "logfile.pdf")


class SelectJob(CryoforumJob):
    """Keep the particles whose predicted orientation is certain enough; all criteria given have to be met."""

    PROCESS_NAME = "cryoforum.select"
    OUT_DIR = "Select"
    CATEGORY_LABEL = "Subset Selection"
    TITLE = "Select by predicted uncertainty"
    SUMMARY = "Divide predicted particles into certain and uncertain ones"
    PARTICLES = "Predicted particles:"
    PARTICLES_HELP = "predicted.star of a prediction job."
    OPTIONS = ("in_parts", "in_mask", "symmetry", *CRITERIA, *CHOOSING, "reconstruct", "device")
    MADE = ("selected.star", "logfile.pdf")


class PipelineJob(CryoforumJob):
    """Learn from one set of particles, predict another, select the certain ones and reconstruct half maps.

    Without a criterion the threshold is chosen automatically, so that the reconstruction becomes clearest.
    """

    PROCESS_NAME = "cryoforum.pipeline"
    TITLE = "Train, predict, select and reconstruct"
    SUMMARY = "From refined particles to a clean set of many more, in one job"
    PARTICLES = "Particles to predict:"
    PARTICLES_HELP = PredictJob.PARTICLES_HELP
    OPTIONS = (
        *("in_parts", "in_mask", "train_particles", "symmetry", "contrast", *TRAINING),
        *(name for name in CRITERIA if name != "auto"),  # it is the default
        *CHOOSING,
        *("views", "refine", "reconstruct", *DEVICES),
    )
    DEFAULTS = (("symmetry", "C1"), ("reconstruct", True))
    MADE = ("model/model.pt", "predicted.star", "selected.star", "logfile.pdf")
