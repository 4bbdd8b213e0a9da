"""To a cryoSPARC instance, and what is read there: a job's particles as a local .cs file."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cryoforum_plugin.atomic import atomic_file
from cryoforum_plugin.errors import HostError
from cryosparc_job.job.calls import call
from cryosparc_job.job.client import (
    client_version,
    close,
    is_v4,
    make_client,
    output_types,
    slot_names,
)

LOG = logging.getLogger("cryoforum")
WANTED = ("blob", "ctf", "alignments3D", "location", "sym_expand")
LOGIN = "python -m cryosparc.tools login"


@contextmanager
def connected(url: str | None = None, email: str | None = None) -> Iterator[Any]:
    """Connect as `connect` does, and close the connections at the end."""
    client = connect(url, email)
    try:
        yield client
    finally:
        close(client)


def connect(url: str | None = None, email: str | None = None) -> Any:
    """Return the client of the instance at `url`, logged in with a stored token or the client's environment.

    url : default CRYOSPARC_BASE_URL, or CRYOSPARC_MASTER_HOSTNAME and CRYOSPARC_BASE_PORT. There is no
    password here: `python -m cryosparc.tools login` asks for it and stores a token.
    Raises HostError without cryosparc-tools, an address, a login, or a server of the client's generation.
    """
    version = client_version()
    address = url or os.environ.get("CRYOSPARC_BASE_URL") or "cryoSPARC"
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            client = call(f"connecting to {address}", make_client, url, email)
        except HostError as error:
            raise _explained(error, address, version) from error
    for warning in said:
        text = " ".join(str(warning.message).split())
        if "may not be compatible" in text:  # the client's way to say that the minor versions differ
            LOG.warning("%s", text.partition(" Or, if running")[0].replace("--force ", ""))
    return client


def _explained(error: HostError, address: str, version: str) -> HostError:
    """What a person can do about a connection that failed."""
    cause = error.__cause__
    text = f"{cause} {cause.__cause__}" if cause is not None else ""
    if isinstance(cause, TypeError):
        return HostError("no address of cryoSPARC; give --url http://HOST:39000, or set CRYOSPARC_BASE_URL")
    if isinstance(cause, AssertionError):
        return HostError(
            f"no login for {address}: cryosparc-tools {version} needs CRYOSPARC_LICENSE_ID, CRYOSPARC_EMAIL and "
            f"CRYOSPARC_PASSWORD in the environment ({text.partition(' license ID')[0].split(' None')[0].strip()})"
        )
    refused = "401" in text or "authentication not provided" in text or "Could not complete" in text
    if "does not answer" in str(error):
        return error
    if is_v4():
        if "404" in text:
            return _other_generation(address, version, "5.0")
        return HostError(
            f"{address} refused the login; check CRYOSPARC_LICENSE_ID, CRYOSPARC_EMAIL and CRYOSPARC_PASSWORD"
        ) if refused else error  # fmt: skip
    if refused:
        return HostError(f"no login for {address}, or it has expired; run: {LOGIN} --url {address}")
    if isinstance(cause, RuntimeError) or "404" in text:
        return _other_generation(address, version, "4.7")
    return error


def _other_generation(address: str, version: str, install: str) -> HostError:
    return HostError(
        f"{address} does not speak the language of cryosparc-tools {version}; install the version that cryoSPARC "
        f"shows, for example: pip install 'cryosparc-tools~={install}.0'"
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
    dataset = call(what, job.load_output, output, slots=slots)
    if not len(dataset):
        raise HostError(f"{job.uid}.{output} holds no particles; choose an output that does")
    with atomic_file(path, overwrite=True) as temporary:
        dataset.save(str(temporary))
    return path


def full_uid(letter: str, text: str) -> str:
    """ "P3" from "P3", "p3" or "3"."""
    return f"{letter}{text.strip().upper().removeprefix(letter)}"
