"""The life of a job: what may happen to it when, and what it leaves."""

from __future__ import annotations

import shutil
from typing import Any

from cryosparc.dataset import Dataset
from numpy.typing import NDArray

from fake_cryosparc import datasets
from fake_cryosparc.faults import HTTPError
from fake_cryosparc.records import EXTERNAL, Job, Records, now
from fake_cryosparc.slots import output_type, slot_dtype

ACTIVE = ("queued", "launched", "started", "running", "waiting")
STATUSES = ("building", *ACTIVE, "completed", "killed", "failed")


class State(Records):
    """Everything behind the API; the tests may look at and change all of it."""

    def add_finished_job(
        self, project: str, workspace: str, kind: str, outputs: dict[str, Dataset | NDArray[Any]]
    ) -> Job:
        """Add a completed job with these outputs."""
        job = self.add_job(project, workspace, kind)
        self.finish(project, job["uid"], outputs)
        return job

    def set_status(self, job: Job, status: str) -> None:
        """Set the status, its number and its time."""
        job["status"], job["status_num"], job["updated_at"] = status, STATUSES.index(status), now()
        if status != "building":
            job[f"{status}_at"] = now()

    def start(self, project: str, uid: str, status: str) -> Job:
        """Set an external job running or waiting, if its inputs are connected."""
        job = self.external(project, uid, "building", "running", "waiting")
        self.check_build(job)
        self.set_status(job, status)
        return job

    def check_build(self, job: Job) -> None:
        """Raise HTTPError 422 for build errors and missing connections."""
        for name, description in job["spec"]["inputs"].items():
            least = description.get("count_min", 0)
            if len(description["connections"]) < least:
                raise HTTPError(422, f"Input {name} needs at least {least} connection(s)")
        if job["build_errors"]:
            raise HTTPError(422, f"Job has build errors: {job['build_errors']}")

    def enqueue(self, project: str, uid: str, lane: str | None) -> Job:
        """Put a job of cryoSPARC's own into a lane."""
        job = self.job(project, uid)
        if job["spec"]["type"] == EXTERNAL:
            raise HTTPError(422, "External jobs cannot be queued")
        self.require(job, "building")
        if lane is not None and lane not in self.lanes:
            raise HTTPError(422, f"Lane {lane} does not exist")
        self.check_build(job)
        self.set_status(job, "queued")
        job["queued_to_lane"] = lane or self.lanes[0]
        return job

    def advance(self, project: str, uid: str, status: str = "running") -> Job:
        """Do as the scheduler does: take a queued job through launched and started to running."""
        job = self.job(project, uid)
        order = ("queued", "launched", "started", "running")
        for step in order[order.index(job["status"]) + 1 : order.index(status) + 1]:
            self.set_status(job, step)
        return job

    def finish(self, project: str, uid: str, outputs: dict[str, Dataset | NDArray[Any]]) -> Job:
        """Complete a job of cryoSPARC's own with these outputs."""
        job = self.job(project, uid)
        for name, data in outputs.items():
            dataset = data if isinstance(data, Dataset) else Dataset(data)
            prefixes = sorted(set(dataset.prefixes()))
            slots = [{"name": prefix, "dtype": slot_dtype(prefix)} for prefix in prefixes]
            described = {"type": output_type(prefixes), "title": name, "slots": slots}
            job["spec"]["outputs"][name] = {**described, "results": [], "num_items": 0}
            datasets.write_output(self, job, name, dataset)
        self.set_status(job, "completed")
        return job

    def complete(self, project: str, uid: str) -> Job:
        """Mark a killed, failed or active job completed and write its passthrough results."""
        job = self.job(project, uid)
        self.require(job, *ACTIVE, "killed", "failed")
        datasets.write_passthrough(self, job)
        self.set_status(job, "completed")
        return job

    def fail(self, project: str, uid: str, error: str) -> Job:
        """Mark a job failed and log why."""
        job = self.job(project, uid)
        self.require(job, *ACTIVE, "killed", "failed")
        if error:
            self.add_event(project, uid, type="error", text=error)
        job["errors_run"], job["has_error"] = [{"message": error[:200]}], True
        self.set_status(job, "failed")
        return job

    def kill(self, project: str, uid: str) -> Job:
        """Kill a job, as the interface does: the status changes, an external process goes on."""
        job = self.job(project, uid)
        self.require(job, *ACTIVE)
        self.set_status(job, "killed")
        return job

    def clear(self, project: str, uid: str) -> Job:
        """Take a job back to building: inputs and parameters stay; results, log, assets and files go."""
        job = self.job(project, uid)
        for name, output in job["spec"]["outputs"].items():
            output["results"], output["num_items"] = [], 0
            output.pop("image", None)
            self.datasets.pop((project, uid, name), None)
        gone = self.events_of(project, uid)
        self.events[:] = [event for event in self.events if event not in gone]
        for fileid, asset in list(self.assets.items()):
            if (asset.project, asset.job) == (project, uid):
                del self.assets[fileid]
        shutil.rmtree(self.folder(project) / uid, ignore_errors=True)
        (self.folder(project) / uid).mkdir()
        job["errors_run"], job["has_error"], job["ui_tile_images"] = [], False, []
        self.set_status(job, "building")
        return job
