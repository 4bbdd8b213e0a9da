"""A trained model: weights and all that is needed to use them, in a folder that can be moved."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from cryoforum_plugin import __version__
from cryoforum_plugin.atomic import atomic_file
from cryoforum_plugin.checksum import checksum
from cryoforum_plugin.errors import ModelError, SettingsError
from cryoforum_plugin.images.working import WorkingBox
from cryoforum_plugin.network.pose_network import PoseNetwork
from cryoforum_plugin.settings import Settings, flatten, with_values

FORMAT_VERSION = 1


@dataclass(frozen=True)
class Model:
    """A network with its settings and working box.

    calibration : what `training.calibrate` measured. outliers : state of `confidence.outliers.OutlierModel`.
    half_set : of the particles it learned from, 0 = of both, or they had none. seen : `image_keys` of those
    particles, int64, ascending. directory : the folder it was read from. members : the models of half sets and folds that this
    one stands for; its own network is then that of the first.
    """

    network: PoseNetwork
    settings: Settings
    box: WorkingBox
    calibration: dict[str, Any]
    outliers: dict[str, Any]
    half_set: int = 0
    seen: torch.Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    directory: Path | None = None
    members: tuple[Model, ...] = ()

    @property
    def alone(self) -> tuple[Model, ...]:
        """The models that each predict by themselves: the members, or this one."""
        return self.members or (self,)


def build_network(settings: Settings, size_px: int) -> PoseNetwork:
    """Network of the given settings with fresh weights for a working box of `size_px`."""
    return PoseNetwork(size_px, settings.network)


def save_model(directory: Path, model: Model, provenance: dict[str, Any]) -> None:
    """Write calibration.json, config.json and last model.pt into `directory`, each whole or not at all.

    provenance : input names and checksums, versions; plain data only.
    """
    content = {
        "format_version": FORMAT_VERSION,
        "cryoforum_version": __version__,
        "settings": flatten(model.settings),
        "box": {"side_A": model.box.side_A, "size_px": model.box.size_px},
        "weights": model.network.state_dict(),
        "outliers": model.outliers,
        "calibration": model.calibration,
        "half_set": model.half_set,
        "seen": model.seen,
    }
    _write_json(directory / "calibration.json", model.calibration)
    _write_json(
        directory / "config.json", {"settings": flatten(model.settings), "box": content["box"], **provenance}
    )
    write_tensors(directory / "model.pt", content)


def save_members(
    directory: Path, names: Sequence[str], calibration: dict[str, Any], provenance: dict[str, Any]
) -> None:
    """Write calibration.json, config.json and last model.pt of a folder whose models lie in its folders `names`.

    calibration : what holds for all of them together. provenance : plain data, settings among them.
    """
    members = {name: checksum(directory / name / "model.pt") for name in names}
    _write_json(directory / "calibration.json", calibration)
    _write_json(directory / "config.json", provenance | {"members": list(names)})
    content = {"format_version": FORMAT_VERSION, "cryoforum_version": __version__, "members": members}
    write_tensors(directory / "model.pt", content | {"calibration": calibration})


def update_calibration(directory: Path, model: Model) -> None:
    """Give the model in `directory`, the same as `model` but for that, its calibration and outlier model."""
    content = torch.load(directory / "model.pt", map_location="cpu", weights_only=True)
    if model.members:
        for name, member in zip(content["members"], model.members, strict=True):
            update_calibration(directory / name, member)
            content["members"][name] = checksum(directory / name / "model.pt")
    else:
        content["outliers"] = model.outliers
    content["calibration"] = model.calibration
    _write_json(directory / "calibration.json", model.calibration)
    write_tensors(directory / "model.pt", content)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    with atomic_file(path, overwrite=True) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n")


def write_tensors(path: Path, content: dict[str, Any]) -> None:
    """Write what `torch.save` takes, whole or not at all. Raises OutputError, also for a full disk."""
    buffer = io.BytesIO()  # torch's own writer reports a full disk as a RuntimeError
    torch.save(content, buffer)
    with atomic_file(path, overwrite=True) as temporary:
        temporary.write_bytes(buffer.getbuffer())


def _member(directory: Path, known: str, device: torch.device) -> Model:
    """One of the models of a folder. Raises ModelError where it is not the one that the folder was made of."""
    model = load_model(directory, device)
    if checksum(directory / "model.pt") != known:
        raise ModelError(
            f"{directory} is of another training than the models beside it, one that was not finished: run train again with "
            "--resume, or with --overwrite"
        )
    return model


def load_model(directory: Path, device: torch.device) -> Model:
    """Read a model directory, with its members where it has them; weights in evaluation mode on `device`.

    Raises ModelError when it is missing, unfinished, damaged, or written by a newer version.
    """
    path = directory / "model.pt"
    if not directory.is_dir():
        raise ModelError(f"no model directory {directory}; give the folder that `cryoforum train -o` wrote")
    if not path.is_file():
        unfinished = (directory / "checkpoint").is_dir()
        hint = (
            "its training was not finished: run train again with --resume"
            if unfinished
            else "not a model directory"
        )
        raise ModelError(f"{directory} holds no model.pt; {hint}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        version = int(content["format_version"])
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror}; check its owner and permissions") from error
    except Exception as error:
        raise ModelError(
            f"{path} is damaged ({type(error).__name__}); copy it again or train again"
        ) from error
    if version > FORMAT_VERSION:
        raise ModelError(
            f"{path} was written by cryoforum {content.get('cryoforum_version')}, newer than this one "
            f"({__version__}); update cryoforum"
        )
    if "members" in content:
        members = tuple(
            _member(directory / name, known, device) for name, known in content["members"].items()
        )
        return replace(
            members[0], calibration=content["calibration"], half_set=0, directory=directory, members=members
        )
    try:
        settings = with_values(Settings(), content["settings"])
        box = WorkingBox(float(content["box"]["side_A"]), int(content["box"]["size_px"]))
        network = build_network(settings, box.size_px)
        network.load_state_dict(content["weights"])
        calibration, outliers = content["calibration"], content["outliers"]
        calibration["views"]["1"]["width"]
    except SettingsError as error:
        raise ModelError(
            f"{path} was written by another version of cryoforum ({error}); update it"
        ) from error
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ModelError(
            f"{directory} is damaged ({type(error).__name__}: {error}); copy it again or train again"
        ) from error
    network = network.to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    return Model(
        network,
        settings,
        box,
        calibration,
        outliers,
        int(content.get("half_set", 0)),
        content.get("seen", torch.zeros(0, dtype=torch.int64)),
        directory,
    )
