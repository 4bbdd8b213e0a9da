"""The work of an external job: train, predict, select, show, write back."""

from __future__ import annotations

import fcntl
import logging
import shutil
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from cryoforum_plugin import __version__, formats
from cryoforum_plugin.atomic import atomic_file
from cryoforum_plugin.charts.figures import draw
from cryoforum_plugin.confidence.model_quantiles import read_model_quantile
from cryoforum_plugin.confidence.selection import Selection
from cryoforum_plugin.errors import HostError
from cryoforum_plugin.host_job.record import JobRecord
from cryoforum_plugin.host_job.selecting import select
from cryoforum_plugin.host_job.steps import (
    predict_table,
    reconstruct_sets,
    train_model,
)
from cryoforum_plugin.launch.devices import parent_device
from cryoforum_plugin.network.device import choose_device
from cryoforum_plugin.network.model import load_model
from cryoforum_plugin.particles import ParticleSet
from cryoforum_plugin.particles.half_sets import with_half_sets
from cryoforum_plugin.prediction.run import prediction_identity
from cryoforum_plugin.reconstruction.reconstruct import ReconstructionSettings
from cryoforum_plugin.reconstruction.write import write_fsc
from cryoforum_plugin.report import Report, prepare_report
from cryoforum_plugin.report.particle_charts import confidence_histogram, view_distributions
from cryoforum_plugin.report.pdf import panel_figure
from cryosparc_job.dataset import half_sets_of
from cryosparc_job.job import client as generation
from cryosparc_job.job import outputs
from cryosparc_job.job.calls import call
from cryosparc_job.job.connection import save_particles
from cryosparc_job.job.event_log import EventLog, attempt
from cryosparc_job.job.life import check_alive
from cryosparc_job.job.request import Plan, Request
from cryosparc_job.job.stacks import data_root
from cryosparc_job.posterior_file import posterior_path

LOG = logging.getLogger("cryoforum")


@contextmanager
def only_run(model_dir: Path) -> Iterator[None]:
    """Refuse a second run with the same model directory while one is at work. Raises HostError."""
    folder = work_folder(model_dir)
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise HostError(
                f"another run is at work with {model_dir}; wait for its end, or give another --model-dir"
            ) from error
        except OSError as error:  # a file system without locks
            LOG.warning("%s cannot be locked (%s); let only one run at a time use this model", folder, error)
        yield


def work_folder(model_dir: Path) -> Path:
    """Where tables and records lie, beside the model."""
    return model_dir.with_name(f"{model_dir.name}_cryosparc")


def symmetry_of(model_dir: Path) -> str:
    """Point group of a model."""
    return load_model(model_dir, choose_device("cpu")).settings.symmetry


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
        return work_folder(self.request.model_dir) / f"{source.project_uid}_{source.uid}_{output}"

    def do(self, names: list[str], slots: dict[str, int]) -> None:
        """Train, predict, select and write the outputs `names`, as far as asked for."""
        request = self.request
        LOG.info("cryoforum %s: %s, model %s", __version__, request.verbs, request.model_dir)
        if request.train is not None:
            with closing(self._record(*self.plan.training)) as record:
                self._train(record)
            check_alive(self.job)
        if not request.predict:
            return
        with closing(self._record(*self.plan.particles)) as record:
            predicted = self._predict(record)
            check_alive(self.job)
            tables = self._write(record, names, slots, predicted)
            record.note("outputs", {"external job": self.job.uid, "outputs": ", ".join(names)})
        self._report(self.folder, tables)
        attempt("showing the result", self._pictures, tables)

    def _report(self, folder: Path, tables: dict[str, ParticleSet] | None = None) -> None:
        """Write report.html into `folder`, and show its figures in the event log."""
        path = folder / "report.html"
        report: Report | None = attempt("preparing the report", prepare_report, folder, tables)
        if report is None:
            return
        attempt("writing the report", report.write, path)
        LOG.info("report: %s", path)
        for panel in report.panels:
            if panel.charts:
                self.events.plot(panel.title.lower(), panel_figure, panel)

    def _read(self, source: Any, output: str, table: Path) -> tuple[ParticleSet, Path]:
        """Particles in `table`, and the folder that their image paths start from."""
        project = call("finding the project", self.client.find_project, source.project_uid)
        folder = generation.project_folder(project)
        cache = table.with_name("stacks")
        root = data_root(self.client, source.project_uid, folder, table, cache)
        particles = formats.read_particles(table, root)
        if self.request.predict and np.bincount(particles.origin).max() > 1:
            LOG.warning("%s.%s: several rows show the same image (symmetry expansion?); they get the same predicted pose",
                        source.uid, output)  # fmt: skip
        return particles, root

    def _train(self, record: JobRecord) -> None:
        request, (source, output) = self.request, self.plan.training
        assert request.train is not None
        directory, folder = request.model_dir, self._folder(source, output)
        table = save_particles(source, output, folder / "particles.cs")
        train_model(
            record, directory, table, lambda: self._read(source, output, table)[0], request.train, request.shared_devices,
            precision=request.precision, name=f"{source.uid}.{output}", start_anew="give another --model-dir, or --overwrite",
            init_from=request.init_from, overwrite=request.overwrite, cache_dir=request.cache_dir,
        )  # fmt: skip
        self._report(directory)
        self.events.checkpoint("trained")

    def _predict(self, record: JobRecord) -> ParticleSet:
        """Predict the particles, or take over what an earlier job predicted."""
        request, (source, output) = self.request, self.plan.particles
        table = save_particles(source, output, self.folder / "particles.cs")
        predicted, name = self.folder / "predicted.cs", f"{source.uid}.{output}"
        if not posterior_path(predicted).exists():
            predicted.unlink(missing_ok=True)
        identity = prediction_identity(table, request.model_dir, request.options)
        if request.again:  # whatever the options of that prediction were
            known = record.values.get("predict", {}).get("identity", {})
            identity |= {
                key: known[key]
                for key in ("views", "contrast", "refine", "reference", "version")
                if key in known
            }
        kept = record.finished("predict", identity, predicted)
        if request.again and not kept:
            raise HostError(f"{name} was not predicted with this model; predict it first")
        root: Path | None = self.folder
        looks = request.criteria is not None and request.criteria.auto and request.criteria.images
        if not kept or request.fsc or looks:
            particles, root = self._read(source, output, table)
        if kept:
            LOG.info("predicting: finished in an earlier job, kept")
        else:
            model = load_model(request.model_dir, parent_device(request.shared_devices))
            predict_table(
                record, model, identity, particles, predicted, request.options, request.shared_devices, name,
                request.precision,
            )  # fmt: skip
            del particles, model  # large, and not needed beside what is read below
        self.events.checkpoint("predicted")
        found = formats.read_particles(predicted, root)
        whole = with_half_sets(found)  # cryoSPARC wants both: with one for all, the other would be empty
        if whole is not found and found.half_set.any():
            LOG.warning(
                "%s: all in one half set; the predicted poses get new ones, the others stay as they are", name
            )
        return replace(whole, source=Path(name))  # for messages

    def _write(
        self, record: JobRecord, names: list[str], slots: dict[str, int], predicted: ParticleSet
    ) -> dict[str, ParticleSet]:
        """Select, show and save; return the predicted sets by name."""
        keep = None if self.request.criteria is None else self._select(record, predicted).keep
        shown = replace(predicted, host=None)  # without the table, which is large
        sets = {"all": shown}
        if keep is not None:
            sets |= {"selected": shown[keep], "rejected": shown[~keep]}
        sets = {name: particles for name, particles in sets.items() if len(particles)}
        shutil.rmtree(self.folder / "fsc", ignore_errors=True)
        if keep is None:
            record.forget_selection()
        if self.request.fsc:
            self._reconstruct(record, sets)
            check_alive(self.job)
        for name, rows in outputs.rows_of(names, len(predicted), keep).items():
            outputs.save(self.job, name, predicted, slots, rows)
            LOG.info("%s: %d particles", name, int(rows.sum()))
            check_alive(self.job)
        # the page's command works on the file, which knows nothing of half sets that were dealt here
        on_disk = replace(
            shown, source=self.folder / "predicted.cs", half_set=half_sets_of(predicted.host.records)
        )
        return {f"{name}.cs": on_disk if name == "all" else part for name, part in sets.items()}

    def _select(self, record: JobRecord, predicted: ParticleSet) -> Selection:
        criteria = self.request.criteria
        assert criteria is not None
        if criteria.statistic is not None:
            views = int(record.values["predict"]["identity"]["views"])
            threshold = read_model_quantile(
                self.request.model_dir, criteria.statistic, criteria.quantile, views
            )
            criteria = replace(criteria, statistic_threshold=threshold)
        symmetry = symmetry_of(self.request.model_dir)
        selection = select(predicted, criteria, symmetry, self.request.device)
        for line in selection.lines():
            LOG.info("selecting: %s", line)
        for name, counts in selection.counts.items():
            LOG.info("selecting: %s: %d kept, %d rejected", name, counts["kept"], counts["rejected"])
        record.note_selection(selection.figures())
        return selection

    def _reconstruct(self, record: JobRecord, sets: dict[str, ParticleSet]) -> None:
        """FSC of every set, on disk."""
        symmetry = symmetry_of(self.request.model_dir)
        results = reconstruct_sets(sets, ReconstructionSettings(symmetry=symmetry), self.request.device)
        for name, result in results.items():
            path = self.folder / "fsc" / name / "fsc.csv"
            with atomic_file(path, overwrite=True) as temporary:
                write_fsc(temporary, result.fsc, result.pixel_size_A)
        resolutions = {name: round(result.resolution_0143_A, 3) for name, result in results.items()}
        worst = {name: round(result.cones.worst_A, 3) for name, result in results.items()}
        record.note(
            "reconstruct",
            {
                "symmetry": symmetry,
                "resolution at FSC 0.143 (A)": resolutions,
                "in the worst direction (A)": worst,
            },
        )

    def _pictures(self, tables: dict[str, ParticleSet]) -> None:
        """A picture for each output, and the job's own."""
        confidence = {
            name: particles.prediction.confidence
            for name, particles in tables.items()
            if particles.prediction
        }
        histogram = draw(confidence_histogram(confidence))
        self.events.thumbnail(outputs.INPUT, histogram)
        pictures = {outputs.POSES: "all.cs", outputs.SELECTED: "selected.cs", outputs.REJECTED: "rejected.cs"}
        for output, name in pictures.items():
            if name in tables and (output == outputs.POSES or len(tables) > 1):
                views = view_distributions({name: tables[name].require_rotation()})
                self.events.thumbnail(output, draw(*views))
        self.events.tile(histogram)
