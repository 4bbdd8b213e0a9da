"""What an external job is asked to do, and the check of it before anything is begun."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryoforum_plugin.confidence.selection import Criteria
from cryoforum_plugin.errors import HostError
from cryoforum_plugin.launch import Devices
from cryoforum_plugin.launch.devices import check_devices
from cryoforum_plugin.prediction.run import PredictOptions
from cryoforum_plugin.settings import Settings
from cryosparc_job.job.calls import call
from cryosparc_job.job.client import connected_to, lane_names, output_types, slot_names
from cryosparc_job.job.connection import check_output, find_particles, full_uid
from cryosparc_job.job.outputs import INPUT, POSES

RECONSTRUCTION, LOCAL_REFINEMENT = "homo_reconstruct", "new_local_refine"


@dataclass(frozen=True)
class Source:
    """Particles in cryoSPARC, and where the external job goes: "P3", "W1", "J42" or just the numbers."""

    project: str
    workspace: str
    job: str
    output: str = "particles"
    url: str | None = None
    email: str | None = None


@dataclass(frozen=True)
class Next:
    """A job to queue afterwards on the selected particles, or on all where none are selected.

    kind : RECONSTRUCTION or LOCAL_REFINEMENT. lane : None = the master itself. volume, mask : "J42.volume"
    for a local refinement; None = outputs of the particles' job.
    """

    kind: str
    lane: str | None = None
    volume: str | None = None
    mask: str | None = None


@dataclass(frozen=True)
class Request:
    """What to do with a source.

    train : settings of a training, None = use the model that is there. train_on : (job, output) to train on,
    None = the source. init_from, overwrite, cache_dir : as `train` takes them. predict : whether to write poses and
    uncertainty. again : only from a prediction that was made before, whatever its options. criteria : None =
    no selected and rejected outputs. fsc : reconstruct all, selected and rejected particles here, for their
    FSC. devices, num_nodes : that share the work. precision : auto, 32 or bf16. then : jobs to queue.
    """

    source: Source
    model_dir: Path
    train: Settings | None = None
    train_on: tuple[str, str] | None = None
    init_from: Path | None = None
    overwrite: bool = False
    cache_dir: Path | None = None
    predict: bool = True
    again: bool = False
    options: PredictOptions = field(default_factory=PredictOptions)
    criteria: Criteria | None = None
    fsc: bool = False
    device: str = "auto"
    devices: int = 1
    num_nodes: int = 1
    precision: str = "auto"
    then: tuple[Next, ...] = ()

    @property
    def shared_devices(self) -> Devices:
        """Devices that share the training and the prediction."""
        return Devices(self.device, self.devices, self.num_nodes)

    @property
    def verbs(self) -> str:
        """What is done, in words."""
        done = {"train": self.train is not None, "predict": self.predict, "select": self.criteria is not None}
        *before, last = [verb for verb, wanted in done.items() if wanted] or ["nothing"]
        return f"{', '.join(before)} and {last}" if before else last


@dataclass(frozen=True)
class Plan:
    """A request that can be carried out: the jobs it names, as the client's objects.

    particles, training : (job, output). volumes : connections of each job to queue, besides its particles.
    """

    particles: tuple[Any, str]
    training: tuple[Any, str]
    has_poses: bool
    volumes: tuple[dict[str, tuple[str, str]], ...]


def check(client: Any, request: Request) -> Plan:
    """Look at everything a request names. Raises CryoForumError for what is not there or does not fit."""
    source = request.source
    if request.train is None and not request.predict:
        raise HostError("nothing to do: neither train nor predict")
    check_devices(request.shared_devices)
    if request.train is None and not (request.model_dir / "model.pt").is_file():
        raise HostError(f"{request.model_dir} holds no model.pt; train a model there first")
    learns_here = request.train is not None and request.train_on is None
    needed = ("blob", "alignments3D") if learns_here else ("blob",)
    job, output = _original(client, source) if request.again else (source.job, source.output)
    found = find_particles(client, source.project, job, output, needed)
    training = (found, output)
    if request.train_on is not None:
        there, name = request.train_on
        training = (find_particles(client, source.project, there, name), name)
    _check_lanes(client, {following.lane for following in request.then if following.lane is not None})
    volumes = tuple(_volumes(client, source.project, found, following) for following in request.then)
    return Plan((found, output), training, "alignments3D" in slot_names(found, output), volumes)


def _original(client: Any, source: Source) -> tuple[str, str]:
    """The particles of the source; of an external job of ours, all the particles it worked on."""
    project, uid = full_uid("P", source.project), full_uid("J", source.job)
    job = call(f"finding {project} {uid}", client.find_job, project, uid)
    before = connected_to(job, INPUT) if POSES in output_types(job) else None
    return before or (uid, source.output)


def _check_lanes(client: Any, lanes: set[str]) -> None:
    """Raise HostError for a lane that cryoSPARC does not have."""
    if not lanes:
        return
    known = lane_names(call("asking for the lanes", client.get_lanes))
    for lane in sorted(lanes - set(known)):
        raise HostError(f"cryoSPARC has no lane {lane!r}; it has {', '.join(known) or 'none'}")


def _volumes(client: Any, project: str, source: Any, following: Next) -> dict[str, tuple[str, str]]:
    """Map and mask of a local refinement; nothing for a reconstruction."""
    if following.kind != LOCAL_REFINEMENT:
        return {}
    found = {}
    for name, given in (("volume", following.volume), ("mask", following.mask)):
        uid, _, output = (given or f"{source.uid}.{name}").partition(".")
        job = call(f"finding {name} {uid}", client.find_job, full_uid("P", project), full_uid("J", uid))
        try:
            check_output(job, output or name, name)
        except HostError as error:
            raise HostError(f"--{name}: {error}; a local refinement needs a {name}") from error
        found[name] = (job.uid, output or name)
    return found
