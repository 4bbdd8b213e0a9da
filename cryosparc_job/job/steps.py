"""A whole external job: made, connected, run and ended, and the jobs that follow it."""

from __future__ import annotations

import logging
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from cryoforum_plugin.errors import CryoForumError, HostError
from cryosparc_job.job import client as generation
from cryosparc_job.job import outputs
from cryosparc_job.job.calls import call
from cryosparc_job.job.connection import connected, full_uid
from cryosparc_job.job.event_log import shown
from cryosparc_job.job.life import ending, fail, start
from cryosparc_job.job.request import Next, Plan, Request, check
from cryosparc_job.job.work import Work, only_run, symmetry_of
from cryosparc_job.symmetry import to_cryosparc

LOG = logging.getLogger("cryoforum")
TRAINING = "training_particles"


def run(request: Request) -> str:
    """Do what is asked for as a new external job; return its uid.

    Raises CryoForumError; the job, where one could be made, is then marked failed with that line.
    """
    request = replace(request, model_dir=Path(os.path.abspath(request.model_dir)))
    with connected(request.source.url, request.source.email) as client:
        try:
            plan = check(client, request)
        except CryoForumError as error:
            _failed_job(client, request, error)
            raise
        slots = outputs.free_slots(generation.slot_names(*plan.particles))
        text = outputs.explanation(slots, plan.has_poses) if request.predict else ""
        job = _make_job(client, request, text)
        with ending(job):
            _connect(job, plan, request)
            names = []
            if request.predict:
                names = outputs.declare(job, slots, request.criteria is not None, plan.has_poses)
            start(job)
            with shown(job) as events, only_run(request.model_dir):
                Work(client, job, plan, request, events).do(names, slots)
                for following, volumes in zip(request.then, plan.volumes, strict=True):
                    queue_next(client, job, request, following, volumes)
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
        # more than one: an answer was lost, and it was asked again
        for _ in range(generation.count_connections(job, name) - 1):
            call("disconnecting a second input", job.disconnect, name, 1)


def queue_next(
    client: Any,
    job: Any,
    request: Request,
    following: Next,
    volumes: dict[str, tuple[str, str]],
) -> None:
    """Queue a job on the selected particles of `job`, or on all. Raises HostError.

    Not where cryoSPARC has no name for the model's symmetry: there is a warning instead.
    """
    symmetry = symmetry_of(request.model_dir)
    theirs = to_cryosparc(symmetry)
    if theirs is None:
        LOG.warning("%s was not queued: cryoSPARC has no symmetry with the axes of %s; align the volume to "
                    "cryoSPARC's axes first", following.kind, symmetry)  # fmt: skip
        return
    name = outputs.SELECTED if request.criteria is not None else outputs.INPUT
    made = call(
        f"making a {following.kind} job",
        client.create_job,
        job.project_uid,
        full_uid("W", request.source.workspace),
        following.kind,
        connections={"particles": (job.uid, name), **volumes},
        params={"refine_symmetry": theirs},
        title=f"{following.kind} of {job.uid} {name}",
    )
    try:
        call(f"queueing {made.uid}", made.queue, following.lane)
    except HostError:
        made.refresh()
        if str(made.status) == "building":  # else the answer to an earlier attempt was lost
            raise
    text = f"queued {made.uid}: {following.kind} of {name}"
    print(text, file=sys.stderr, flush=True)
    LOG.info("%s", text)
