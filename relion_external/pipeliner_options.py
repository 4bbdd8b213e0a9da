"""Options of the CCP-EM Pipeliner jobs, named and ranged as the arguments of `cryoforum-relion`."""

from __future__ import annotations

from functools import partial
from typing import Any

from pipeliner.data_structure import NODE_MASK3D, NODE_MLMODEL, NODE_PARTICLEGROUPMETADATA
from pipeliner.job_options import (
    BooleanJobOption,
    ExternalFileJobOption,
    FileDescription,
    FloatJobOption,
    InputNodeJobOption,
    IntJobOption,
    MultipleChoiceJobOption,
    StringJobOption,
)

from cryoforum_plugin.settings import DEFAULT_VIEWS, PRESETS

INPUTS = ("in_parts", "in_mask")  # what RELION's own Input tab has comes before --job
CRITERIA = ("min_confidence", "max_error", "keep", "max_outlier", "target", "auto")
CHOOSING = ("images", "balance_views")  # how to select, but nothing to select by
TRAINING = ("preset", "epochs", "seed", "cache_dir", "config", "set")
DEVICES = ("device", "devices", "num_nodes")
_SYMMETRY = r"(C[1-9][0-9]{0,2}|D[1-9][0-9]{0,2}Y?|T|O|I[1-4]?)$"

_particles = partial(
    InputNodeJobOption,
    node_type=NODE_PARTICLEGROUPMETADATA,
    node_kwds=["relion"],
    pattern=FileDescription("Particles STAR file", [".star"]),
    is_required=True,
)
_in_training = partial(dict[str, Any], jobop_group="Training options")
_in_selection = partial(dict[str, Any], jobop_group="Selection options", in_continue=True)
_in_output = partial(dict[str, Any], jobop_group="Output options", in_continue=True)


def make_options() -> dict[str, Any]:
    """Make every option, in the order of the command line; each job takes some of them.

    A value left at its default is not passed on, so that a settings file, or the model, may decide it.
    """
    return _inputs() | _training() | _selection() | _output()


def _inputs() -> dict[str, Any]:
    return {
        "in_parts": _particles(label="Particles:"),
        "train_particles": _particles(
            label="Refined particles to learn from:",
            help_text="Particles with refined orientations, for example run_data.star of a 3D refinement of a clean "
            "subset. They should not be the particles to predict: what was learned by heart is predicted too well.",
        ),
        "model": InputNodeJobOption(
            label="Model:",
            node_type=NODE_MLMODEL,
            node_kwds=["cryoforum"],
            pattern=FileDescription("cryoforum model", ["model.pt"], exact=True),
            help_text="model/model.pt of a training job, learned from the same protein.",
            is_required=True,
            validation_regex=r"(.*/)?model\.pt$",
            regex_error_message="Must be the file model.pt of a training job",
        ),
        "symmetry": StringJobOption(
            label="Symmetry:",
            help_text="Point group with RELION's axes: Cn, Dn, T, O, I or I1 to I4. Left empty, it is that of the "
            "model that predicted the particles.",
            validation_regex=f"(?i){_SYMMETRY}",
            regex_error_message="Must be one of Cn, Dn, T, O, I, I1, I2, I3 and I4",
        ),
        "contrast": MultipleChoiceJobOption(
            label="Contrast of the images:",
            choices=["default", "check", "invert", "ignore"],
            default_value="default",
            help_text="Protein has to be bright. check refuses images with dark protein, invert turns them over, "
            "ignore takes them as they are. By default a training checks, and a prediction does as the training of "
            "its model did.",
        ),
    }


def _training() -> dict[str, Any]:
    return {
        "preset": MultipleChoiceJobOption(
            label="Preset:",
            choices=list(PRESETS),
            default_value="default",
            help_text="default is right for most; fast is for a first look; paper is the method of the Cryo-forum "
            "paper and wants a GPU.",
            **_in_training(),
        ),
        "epochs": IntJobOption(
            label="Number of epochs:",
            hard_min=1,
            suggested_max=200,
            help_text="Passes over the particles. Left empty, their number decides.",
            **_in_training(),
        ),
        "seed": IntJobOption(
            label="Random seed:",
            hard_min=0,
            hard_max=2**31 - 1,
            help_text="Left empty: 1. The same seed gives the same model.",
            **_in_training(),
        ),
        "cache_dir": StringJobOption(
            label="Folder for preprocessed images:",
            help_text="Keeps the preprocessed images there, so that other trainings on the same particles need not "
            "read the stacks again. Large; best a local disk. Left empty, they are kept until the model is finished.",
            **_in_training(),
        ),
        "config": ExternalFileJobOption(
            label="Settings file:",
            pattern=FileDescription("Settings", [".toml", ".json"]),
            help_text="TOML or JSON file of settings, or config.json of another model. What is changed from its "
            "default on this form comes before the file.",
            **_in_training(),
        ),
        "set": StringJobOption(
            label="Other settings:",
            help_text="Any other settings as section.key=value, separated by blanks, for example "
            "training.batch_size=128 images.size_px=96.",
            validation_regex=r"\s*([\w.]+=\S+\s*)*$",
            regex_error_message="Must be section.key=value, separated by blanks",
            **_in_training(),
        ),
    }


def _selection() -> dict[str, Any]:
    return {
        "min_confidence": FloatJobOption(
            label="Smallest confidence:",
            hard_min=0,
            hard_max=1,
            step_value=0.05,
            help_text="Keep particles whose error is below 5 degrees with at least this probability. A pipeline job "
            "without any criterion chooses it automatically.",
            **_in_selection(),
        ),
        "max_error": FloatJobOption(
            label="Largest expected error (deg):",
            hard_min=0,
            hard_max=180,
            help_text="Keep particles whose expected angular error is at most this.",
            **_in_selection(),
        ),
        "keep": FloatJobOption(
            label="Fraction to keep:",
            hard_min=0.001,
            hard_max=1,
            step_value=0.05,
            help_text="Keep this fraction of the particles, the most confident.",
            **_in_selection(),
        ),
        "max_outlier": FloatJobOption(
            label="Largest outlier score:",
            hard_min=0,
            hard_max=1,
            step_value=0.05,
            help_text="Keep particles that are at most so unlike those that the model learned from.",
            **_in_selection(),
        ),
        "target": StringJobOption(
            label="Wrong ones that may be kept:",
            help_text="5%:10 keeps as many particles as there can be with at most 5 % expected to be more than 10 "
            "degrees off.",
            validation_regex=r"\s*[0-9.]+\s*%?\s*:\s*[0-9.]+\s*$",
            regex_error_message="Must be like 5%:10 or 0.05:10",
            **_in_selection(),
        ),
        "auto": BooleanJobOption(
            label="Choose the threshold automatically?",
            default_value=False,
            help_text="Choose the set with the clearest half maps, of sets nested by confidence. Other criteria hold "
            "as well.",
            **_in_selection(),
        ),
        "images": BooleanJobOption(
            label="May the automatic choice look at the images?",
            default_value=True,
            help_text="If not, it goes by the confidences alone, which is quick.",
            **_in_selection(),
        ),
        "balance_views": BooleanJobOption(
            label="Keep views even?",
            default_value=False,
            help_text="Add the best of rare views until as large a part of each view is kept.",
            **_in_selection(),
        ),
    }


def _output() -> dict[str, Any]:
    return {
        "views": MultipleChoiceJobOption(
            label="Views of each image:",
            choices=["1", "2", "4", "8"],
            default_value=str(DEFAULT_VIEWS),
            help_text="In-plane views of each image that are predicted and combined: more is slower and a little "
            "more accurate.",
            **_in_output(),
        ),
        "refine": BooleanJobOption(
            label="Refine predicted poses?",
            default_value=True,
            help_text="Refine the predicted poses against the map of the particles that the model learned from, each "
            "half set against its own. Slower, and several times as accurate.",
            **_in_output(),
        ),
        "reconstruct": BooleanJobOption(
            label="Reconstruct half maps?",
            default_value=False,
            help_text="Reconstruct half maps of the selected particles (of all, where none are selected), and "
            "compare the FSC of all, selected and rejected particles.",
            **_in_output(),
        ),
        "in_mask": InputNodeJobOption(
            label="Mask for the FSC:",
            node_type=NODE_MASK3D,
            pattern=FileDescription("MRC map", [".mrc"]),
            help_text="Solvent mask in the box of the particles. Without one, a soft sphere is used.",
            **_in_output(),
        ),
        "device": StringJobOption(
            label="Device:",
            default_value="auto",
            help_text="auto, cpu, cuda, or one GPU as cuda:0, cuda:1 and so on. auto takes a GPU where there is one.",
            is_required=True,
            in_continue=True,
            validation_regex=r"(auto|cpu|cuda(:\d+)?)$",
            regex_error_message="Must be auto, cpu, cuda or cuda:N",
            jobop_group="Running options",
        ),
        "devices": IntJobOption(
            label="Devices that share the work:",
            default_value=1,
            hard_min=1,
            help_text="So many GPUs (or, with device cpu, parts of the processor) of each machine train one model, or predict, together.",
            in_continue=True,
            jobop_group="Running options",
        ),
        "num_nodes": IntJobOption(
            label="Machines that share the work:",
            default_value=1,
            hard_min=1,
            help_text="So many machines of the SLURM job train one model, or predict, together.",
            in_continue=True,
            jobop_group="Running options",
        ),
    }
