"""To a cryoSPARC instance, and what is read there: a job's particles as a local .cs file."""

from __future__ import annotations

import logging
import os
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from cryoforum_plugin.atomic import atomic_file
from cryoforum_plugin.errors import HostError
from cryosparc_job.cs_file import records_of, write_records
from cryosparc_job.job.calls import call
from cryosparc_job.job.client import (
    answer,
    client_version,
    close,
    is_away,
    is_other_generation,
    load_output,
    login_advice,
    make_client,
    needs_login,
    other_generation,
    output_types,
    slot_names,
)

LOG = logging.getLogger("cryoforum")
WANTED = ("blob", "ctf", "alignments3D", "location", "sym_expand")


@contextmanager
def connected(url: str | None = None, email: str | None = None) -> Iterator[Any]:
    """Connect as `connect` does, and close the connections at the end."""
    client = connect(url, email)
    try:
        yield client
    finally:
        close(client)


def connect(url: str | None = None, email: str | None = None) -> Any:
    """Return the client of the instance at `url`, logged in as `client.make_client` says.

    url : default CRYOSPARC_BASE_URL, or CRYOSPARC_MASTER_HOSTNAME and CRYOSPARC_BASE_PORT. There is no
    password here. Raises HostError without cryosparc-tools, an address, a login, or a server of the client's
    generation; another minor version is warned of.
    """
    client_version()
    url = url or os.environ.get("CRYOSPARC_BASE_URL")
    host, port = (os.environ.get(f"CRYOSPARC_{name}") for name in ("MASTER_HOSTNAME", "BASE_PORT"))
    if url is None and host is None:
        raise HostError("no address of cryoSPARC; give --url http://HOST:39000, or set CRYOSPARC_BASE_URL")
    address = url or f"http://{host}:{port or 39000}"
    return call(f"connecting to {address}", _log_in, address, email)


def _log_in(address: str, email: str | None) -> Any:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            client = make_client(address, email)
        except Exception as error:
            problem = _problem(error, address)
            if problem is None:
                raise
            raise HostError(problem) from error
    for text in (str(warning.message) for warning in said):
        if needed := re.search(r"may not be compatible .*(cryosparc-tools~=[\d.]+)", text, re.DOTALL):
            LOG.warning(
                "%s is of another version than cryosparc-tools %s; run: pip install '%s'",
                address, client_version(), needed[1],
            )  # fmt: skip
    return client


def _problem(error: Exception, address: str) -> str | None:
    """What a person can do about a connection that failed, None where it is worth another try."""
    version, other = client_version(), other_generation()
    if is_other_generation(address):
        return (
            f"{address} is cryoSPARC {other[0]}, which cryosparc-tools {version} does not understand; run: "
            f"pip install 'cryosparc-tools~={other}.0'"
        )
    if is_away(error) or (answer(error)[0] or 0) >= 500:
        return None
    if needs_login(error):
        return f"no login for {address}, or it has expired or is wrong; {login_advice(address)}"
    return (
        f"{address} does not answer as cryosparc-tools {version} expects; check the address, and install the minor "
        f"version that cryoSPARC shows, for example: pip install 'cryosparc-tools~={other}.0'"
    )


def find_particles(
    client: Any, project: str, job: str, output: str, needed: Sequence[str] = ("blob", "alignments3D")
) -> Any:
    """Return the job, whose `output` holds particles with the slots `needed`.

    project, job : "P3" or "3", "J42" or "42". Raises HostError naming what is missing.
    """
    project, job = full_uid("P", project), full_uid("J", job)
    found = call(f"finding {project} {job}", client.find_job, project, job)
    check_output(found, output, "particle")
    missing = [slot for slot in needed if slot not in slot_names(found, output)]
    if missing:
        remedy = "finished 3D refinement" if "alignments3D" in missing else "job that has their images"
        raise HostError(f"{job}.{output} has no {' and no '.join(missing)}; take the particles of a {remedy}")
    return found


def check_output(job: Any, output: str, kind: str) -> None:
    """Raise HostError unless the job has an output of that name and type."""
    types = output_types(job)
    if output not in types:
        raise HostError(f"{job.uid} has no output {output!r}; it has {', '.join(types) or 'none'}")
    if types[output] != kind:
        raise HostError(
            f"{job.uid}.{output} holds {types[output]}, not {kind}s; choose an output with {kind}s"
        )


def save_particles(job: Any, output: str, path: Path) -> Path:
    """Write the slots that are needed of an output to `path` (.cs); return it. Raises HostError.

    The components_mode_k come too: which of them are taken decides where ours go.
    """
    slots = [
        name for name in slot_names(job, output) if name in WANTED or name.startswith("components_mode_")
    ]
    what = f"reading {job.uid}.{output}"
    LOG.info("%s: %s", what, ", ".join(slots))
    dataset = call(what, load_output, job, output, slots)
    if not len(dataset):
        raise HostError(f"{job.uid}.{output} holds no particles; choose an output that does")
    if len(np.unique(dataset["uid"])) < len(dataset):
        raise HostError(f"{job.uid}.{output} holds particles twice (same uid); remove the duplicates first")
    with atomic_file(path, overwrite=True) as temporary:
        write_records(temporary, records_of(dataset), compressed=False)
    return path


def full_uid(letter: str, text: str) -> str:
    """ "P3" from "P3", "p3" or "3"."""
    return f"{letter}{text.strip().upper().removeprefix(letter)}"
