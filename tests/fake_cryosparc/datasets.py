"""Outputs and inputs of jobs: slots, passthrough by uid, results on disk."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from cryosparc.dataset import Dataset

from fake_cryosparc.faults import HTTPError
from fake_cryosparc.slots import check_fields

if TYPE_CHECKING:
    from fake_cryosparc.records import Job
    from fake_cryosparc.state import State

MAGIC = (b"\x93NUMPY", b"\x95CSDAT")


def read_dataset(body: bytes) -> Dataset:
    """Return an uploaded dataset; HTTPError 422 for an empty or foreign body."""
    if not body.startswith(MAGIC):
        raise HTTPError(422, f"Invalid dataset: {len(body)} bytes that are no dataset")
    return Dataset.load(io.BytesIO(body))


def save_output(state: State, project: str, uid: str, name: str, dataset: Dataset, version: int = 0) -> Job:
    """Keep an external job's output; HTTPError 404, 422 (status, missing fields)."""
    job = state.external(project, uid, "running", "waiting")
    output = job["spec"]["outputs"].get(name)
    if output is None:
        raise HTTPError(404, f"Job {project}-{uid} has no output {name}")
    check_fields(output, dataset)
    write_output(state, job, name, dataset, version)
    return job


def write_output(state: State, job: Job, name: str, dataset: Dataset, version: int = 0) -> None:
    """Keep the output's own slots, write them to the job's folder and list them as results."""
    output = job["spec"]["outputs"][name]
    own = dataset.filter_prefixes([slot["name"] for slot in output["slots"]], copy=True)
    file = f"{job['uid']}/{job['uid']}_{name}.cs"
    own.save(state.folder(job["project_uid"]) / file)
    state.datasets[job["project_uid"], job["uid"], name] = own
    output["results"] = [result for result in output["results"] if result["passthrough"]]
    for slot in output["slots"]:
        output["results"].append(_result(slot["name"], slot["dtype"], file, len(own), version))
    output["num_items"] = len(own)


def write_passthrough(state: State, job: Job) -> None:
    """Write the inherited slots of every saved output, as a job does when it completes."""
    project, uid = job["project_uid"], job["uid"]
    for name, output in job["spec"]["outputs"].items():
        if not output.get("passthrough") or (project, uid, name) not in state.datasets:
            continue
        inherited = output_dataset(state, job, name, ["passthrough"])
        file = f"{uid}/{uid}_passthrough_{name}.cs"
        inherited.save(state.folder(project) / file)
        output["results"] = [result for result in output["results"] if not result["passthrough"]]
        for prefix in sorted(set(inherited.prefixes())):
            output["results"].append(_result(prefix, prefix, file, len(inherited), 0, passthrough=True))


def output_dataset(state: State, job: Job, name: str, slots: list[str]) -> Dataset:
    """Return an output joined by uid with what it inherits; HTTPError 422 if it is empty."""
    output = job["spec"]["outputs"].get(name)
    key = (job["project_uid"], job["uid"], name)
    if output is None or key not in state.datasets:
        raise HTTPError(422, f"Output {name} of {job['uid']} is empty or does not exist")
    own = [slot["name"] for slot in output["slots"]]
    dataset = state.datasets[key]
    if output.get("passthrough"):
        inherited = _without(input_dataset(state, job, output["passthrough"], ["all"]), own)
        dataset = Dataset.innerjoin_many(dataset, inherited)
    return _select(dataset, slots, own)


def input_dataset(state: State, job: Job, name: str, slots: list[str]) -> Dataset:
    """Return what is connected to an input; HTTPError 404, 422 without connections."""
    described = job["spec"]["inputs"].get(name)
    if described is None:
        raise HTTPError(404, f"Input {name} does not exist")
    if not described["connections"]:
        raise HTTPError(422, f"No connections for input {name}")
    parts = [_connected(state, job["project_uid"], connection) for connection in described["connections"]]
    return _select(Dataset.append_many(*parts), slots, [slot["name"] for slot in described["slots"]])


def _connected(state: State, project: str, connection: dict[str, Any]) -> Dataset:
    dataset = output_dataset(state, state.job(project, connection["job_uid"]), connection["output"], ["all"])
    for result in connection["results"]:  # slots replaced by connect_result
        origin = state.job(project, result["job_uid"])
        source = output_dataset(state, origin, result["output"], [result["result"]])
        dataset = Dataset.innerjoin_many(_without(dataset, [result["result"]]), source)
    return dataset


def _result(
    name: str, dtype: str, file: str, rows: int, version: int, passthrough: bool = False
) -> dict[str, Any]:
    kept = {"versions": [version], "metafiles": [file], "num_items": [rows]}
    return {"name": name, "dtype": dtype, **kept, "passthrough": passthrough}


def _without(dataset: Dataset, prefixes: list[str]) -> Dataset:
    return dataset.filter_fields(lambda field: field.split("/")[0] not in prefixes, copy=True)


def _select(dataset: Dataset, slots: list[str], own: list[str]) -> Dataset:
    match slots:
        case ["all"]:
            return dataset
        case ["default"]:
            return dataset.filter_prefixes(own, copy=True)
        case ["passthrough"]:
            return _without(dataset, own)
    return dataset.filter_prefixes(slots, copy=True)
