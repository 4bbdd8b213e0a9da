"""A whole external job: its steps in order, and what goes back to cryoSPARC."""

from __future__ import annotations

import logging
from contextlib import closing
from pathlib import Path
from typing import Any

from cryoforum_plugin import __version__, formats
from cryoforum_plugin.atomic import atomic_file
from cryoforum_plugin.confidence.selection import Selection, select_particles
from cryoforum_plugin.errors import CryoForumError, HostError
from cryoforum_plugin.host_job.record import JobRecord
from cryoforum_plugin.host_job.steps import (
    describe,
    predict_table,
    prediction_identity,
    reconstruct_sets,
    train_model,
)
from cryoforum_plugin.network.device import choose_device
from cryoforum_plugin.network.model import load_model
from cryoforum_plugin.particles import ParticleSet
from cryoforum_plugin.reconstruction.reconstruct import ReconstructionSettings
from cryoforum_plugin.reconstruction.write import write_fsc
from cryoforum_plugin.report import figures, write_report
from cryoforum_plugin.report.collect import read_fsc, read_metrics
from cryosparc_job.job import client as generation
from cryosparc_job.job import outputs
from cryosparc_job.job.calls import call, quietly
from cryosparc_job.job.connection import connected, full_uid, save_particles
from cryosparc_job.job.event_log import EventLog, shown
from cryosparc_job.job.life import check_alive, fail, running
from cryosparc_job.job.request import Plan, Request, check
from cryosparc_job.job.stacks import data_root

LOG = logging.getLogger("cryoforum")
TRAINING = "training_particles"


def run(request: Request) -> str:
    """Do what is asked for as a new external job; return its uid.

    Raises CryoForumError; the job, where one could be made, is then marked failed with that line.
    """
    with connected(request.source.url, request.source.email) as client:
        try:
            plan = check(client, request)
        except CryoForumError as error:
            _failed_job(client, request, error)
            raise
        slots = outputs.free_slots(generation.slot_names(*plan.particles))
        text = outputs.explanation(slots, plan.has_poses) if request.predict else ""
        job = _make_job(client, request, text)
        try:
            _connect(job, plan, request)
            names = (
                outputs.declare(job, slots, request.criteria is not None, plan.has_poses)
                if request.predict
                else []
            )
        except CryoForumError as error:
            quietly("starting the job", job.start, "running")
            fail(job, error)
            raise
        with running(job), shown(job) as events:
            Work(client, job, plan, request, events).do(names)
        for following, volumes in zip(request.then, plan.volumes, strict=True):
            queue_next(client, job, request, following.kind, following.lane, volumes)
        return str(job.uid)


def _make_job(client: Any, request: Request, text: str) -> Any:
    project, workspace = full_uid("P", request.source.project), full_uid("W", request.source.workspace)
    title = f"cryoforum: {request.verbs}"
    return call(
        f"making an external job in {project} {workspace}",
        client.create_external_job,
        project,
        workspace,
        title=title,
        desc=text,
    )


def _failed_job(client: Any, request: Request, error: CryoForumError) -> None:
    """Leave a failed job in cryoSPARC that says what was wrong, if there is a place for one."""
    try:
        job = _make_job(client, request, "")
    except HostError:
        return
    quietly("starting the job", job.start, "running")
    fail(job, error)


def _connect(job: Any, plan: Plan, request: Request) -> None:
    """Add and connect the inputs."""
    inputs = {outputs.INPUT: plan.particles}
    if request.train_on is not None:
        inputs[TRAINING] = plan.training
    for name, (source, output) in inputs.items():
        there = generation.slot_names(source, output)
        needed = [slot for slot in ("blob", "ctf", "alignments3D") if slot in there]
        call("adding the input", job.add_input, "particle", name, min=1, max=1, slots=needed)
        call("connecting the input", job.connect, name, source.uid, output)


class Work:
    """The work of a job that runs.

    folder : tables and record of these particles and this model, beside the model; what an earlier job
    finished there is not done again.
    """

    def __init__(self, client: Any, job: Any, plan: Plan, request: Request, events: EventLog) -> None:
        self.client, self.job, self.plan, self.request, self.events = client, job, plan, request, events
        self.folder = self._folder(*plan.particles)

    def _record(self, source: Any, output: str) -> JobRecord:
        """The record of what was done with these particles and this model, by any job."""
        values = {
            "address": self.request.source.url,
            "project": source.project_uid,
            "particles": f"{source.uid}.{output}",
            "external job": self.job.uid,
            "model": self.request.model_dir,
        }
        return JobRecord(self._folder(source, output), values)

    def _folder(self, source: Any, output: str) -> Path:
        directory = self.request.model_dir
        return (
            directory.with_name(f"{directory.name}_cryosparc") / f"{source.project_uid}_{source.uid}_{output}"
        )

    def do(self, names: list[str]) -> None:
        """Train, predict, select and write the outputs `names`, as far as asked for."""
        request, tables = self.request, dict[str, ParticleSet]()
        LOG.info("cryoforum %s: %s, model %s", __version__, request.verbs, request.model_dir)
        if request.train is not None:
            with closing(self._record(*self.plan.training)) as record:
                self._train(record)
            check_alive(self.job)
        if request.predict:
            with closing(self._record(*self.plan.particles)) as record:
                predicted = self._predict(record)
                check_alive(self.job)
                tables = self._write(record, names, predicted)
        with_report = request.model_dir if not tables else self.folder
        write_report(with_report, with_report / "report.html", tables=tables or None, overwrite=True)
        LOG.info("report: %s", with_report / "report.html")

    def _read(self, source: Any, output: str, table: Path) -> tuple[ParticleSet, Path]:
        """Particles in `table`, and the folder that their image paths start from."""
        project = call("finding the project", self.client.find_project, source.project_uid)
        folder = generation.project_folder(project)
        cache = self.folder.parent / f"{source.project_uid}_stacks"
        root = data_root(self.client, source.project_uid, folder, table, cache)
        particles = formats.read_particles(table, root)
        _, *counts = describe("", particles).items()
        LOG.info("%s.%s: %s", source.uid, output, ", ".join(f"{name} {value}" for name, value in counts))
        return particles, root

    def _train(self, record: JobRecord) -> None:
        request, (source, output) = self.request, self.plan.training
        assert request.train is not None
        directory, folder = request.model_dir, self._folder(source, output)
        table = save_particles(source, output, folder / "particles.cs")
        train_model(
            record, directory, table, lambda: self._read(source, output, table)[0], request.train, request.device,
            precision=request.precision, name=f"{source.uid}.{output}", start_anew="give another --model-dir, or --overwrite",
            init_from=request.init_from, overwrite=request.overwrite,
        )  # fmt: skip
        write_report(directory, directory / "report.html", overwrite=True)
        curves = figures.training_curves(read_metrics(directory / "metrics.csv"))
        self.events.plot(curves, "training")
        self.events.tile(curves)
        self.events.checkpoint("trained")

    def _predict(self, record: JobRecord) -> ParticleSet:
        """Predict the particles, or take over what an earlier job predicted."""
        request, (source, output) = self.request, self.plan.particles
        table = save_particles(source, output, self.folder / "particles.cs")
        predicted = self.folder / "predicted.cs"
        identity = prediction_identity(table, request.model_dir, request.options)
        name = f"{source.uid}.{output}"
        root: Path | None = self.folder
        if not record.finished("predict", identity, predicted):
            if request.again:
                raise HostError(
                    f"{name} was not predicted with this model and these options; predict it first"
                )
            particles, root = self._read(source, output, table)
            model = load_model(request.model_dir, choose_device(request.device))
            predict_table(
                record, model, identity, particles, predicted, request.options, request.device, name, request.precision
            )  # fmt: skip
        else:
            LOG.info("predicting: finished in an earlier job, kept")
            if request.fsc:
                root = self._read(source, output, table)[1]
        self.events.checkpoint("predicted")
        return outputs.with_half_sets(formats.read_particles(predicted, root))

    def _write(self, record: JobRecord, names: list[str], predicted: ParticleSet) -> dict[str, ParticleSet]:
        """Select, show and save; return the predicted sets by name."""
        selection = None if self.request.criteria is None else self._select(record, predicted)
        keep = None if selection is None else selection.keep
        sets = {"all": predicted}
        if keep is not None:
            sets |= {"selected": predicted[keep], "rejected": predicted[~keep]}
        sets = {name: particles for name, particles in sets.items() if len(particles)}
        if self.request.fsc:
            self._reconstruct(record, sets)
            check_alive(self.job)
        for name, rows in outputs.rows_of(names, len(predicted), keep).items():
            outputs.save(self.job, name, predicted, rows)
            LOG.info("%s: %d particles", name, int(rows.sum()))
            check_alive(self.job)
        self._show(sets)
        return {f"{name}.cs": particles for name, particles in sets.items()}

    def _select(self, record: JobRecord, predicted: ParticleSet) -> Selection:
        assert self.request.criteria is not None
        selection = select_particles(predicted, self.request.criteria)
        for line in selection.explanation:
            LOG.info("selecting: %s", line)
        for name, counts in selection.counts.items():
            LOG.info("selecting: %s: %d kept, %d rejected", name, counts["kept"], counts["rejected"])
        record.note("select", selection.figures())
        return selection

    def _reconstruct(self, record: JobRecord, sets: dict[str, ParticleSet]) -> None:
        """FSC of every set, on disk and as a plot."""
        symmetry = load_model(self.request.model_dir, choose_device("cpu")).settings.symmetry
        results = reconstruct_sets(sets, ReconstructionSettings(symmetry=symmetry), self.request.device)
        curves = {}
        for name, result in results.items():
            path = self.folder / "fsc" / name / "fsc.csv"
            with atomic_file(path, overwrite=True) as temporary:
                write_fsc(temporary, result.fsc, result.pixel_size_A)
            curves[name] = read_fsc(path)
        resolutions = {name: round(result.resolution_0143_A, 3) for name, result in results.items()}
        record.note("reconstruct", {"symmetry": symmetry, "resolution at FSC 0.143 (A)": resolutions})
        if curves:
            self.events.plot(figures.fsc_curves(curves), "FSC")

    def _show(self, sets: dict[str, ParticleSet]) -> None:
        """Plots in the event log, a picture for each output, and the job's own."""
        confidence, errors = dict[str, Any](), dict[str, Any]()
        for name, particles in sets.items():
            prediction = particles.prediction
            assert prediction is not None
            assert prediction.expected_error_deg is not None
            confidence[name], errors[name] = prediction.confidence, prediction.expected_error_deg
        chosen = confidence.get("selected")
        histogram = figures.confidence_histogram(confidence, None if chosen is None else float(chosen.min()))
        rotation = {name: particles.require_rotation() for name, particles in sets.items()}
        self.events.plot(figures.view_distributions(rotation), "views")
        self.events.plot(histogram, "confidence")
        self.events.plot(figures.expected_error_histogram(errors), "expected error")
        self.events.thumbnail(outputs.INPUT, histogram)
        pictures = {outputs.POSES: "all", outputs.SELECTED: "selected", outputs.REJECTED: "rejected"}
        for output, name in pictures.items():
            if name in rotation and (output == outputs.POSES or len(sets) > 1):
                self.events.thumbnail(output, figures.view_distributions({name: rotation[name]}))
        self.events.tile(histogram)


def queue_next(
    client: Any, job: Any, request: Request, kind: str, lane: str | None, volumes: dict[str, tuple[str, str]]
) -> None:
    """Queue a job on the selected particles of `job`, or on all. Raises HostError."""
    name = outputs.SELECTED if request.criteria is not None else outputs.INPUT
    symmetry = load_model(request.model_dir, choose_device("cpu")).settings.symmetry
    made = call(
        f"making a {kind} job",
        client.create_job,
        job.project_uid,
        full_uid("W", request.source.workspace),
        kind,
        connections={"particles": (job.uid, name), **volumes},
        params={"refine_symmetry": symmetry},
        title=f"{kind} of {job.uid} {name}",
    )
    call(f"queueing {made.uid}", made.queue, lane)
    LOG.info("queued %s: %s of %s", made.uid, kind, name)
