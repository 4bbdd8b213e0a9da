"""To a cryoSPARC instance, and what is read there: a job's particles as a local .cs file."""

from __future__ import annotations

import inspect
import logging
import os
from pathlib import Path
from typing import Any

from cryoforum_plugin.atomic import atomic_file
from cryoforum_plugin.errors import HostError
from cryosparc_job.job.calls import call

LOG = logging.getLogger("cryoforum")
NEEDED = ("blob", "alignments3D")
WANTED = ("blob", "ctf", "alignments3D", "location", "sym_expand")


def connect(url: str | None = None, email: str | None = None) -> Any:
    """Return the client of the instance at `url`, logged in with a stored token or the client's environment.

    url : default CRYOSPARC_BASE_URL, or CRYOSPARC_MASTER_HOSTNAME and CRYOSPARC_BASE_PORT. There is no
    password here: `python -m cryosparc.tools login` asks for it and stores a token.
    Raises HostError without cryosparc-tools, an address, a login, or a server of the client's generation.
    """
    try:
        from cryosparc import __version__
        from cryosparc.tools import CryoSPARC
    except ImportError as error:
        raise HostError(
            "cryosparc-tools is not installed; run: pip install 'cryoforum[cryosparc]'"
        ) from error
    where: dict[str, Any] = {} if url is None else {"base_url": url, "host": None, "base_port": None}
    where |= {} if email is None else {"email": email}
    address = url or os.environ.get("CRYOSPARC_BASE_URL") or "cryoSPARC"
    try:
        return call(f"connecting to {address}", CryoSPARC, **where)
    except HostError as error:
        cause = str(error.__cause__)
        if isinstance(error.__cause__, TypeError):
            raise HostError(
                "no address of cryoSPARC; give --url http://HOST:39000, or set CRYOSPARC_BASE_URL"
            ) from error
        if "authentication not provided" in cause:
            raise HostError(
                f"no login for {address}, or it has expired; run: python -m cryosparc.tools login --url {address}"
            ) from error
        if "does not answer" not in str(error) and (
            isinstance(error.__cause__, RuntimeError) or "404" in cause
        ):
            raise HostError(
                f"{address} does not speak the language of cryosparc-tools {__version__}; install the version that "
                "cryoSPARC shows, for example: pip install 'cryosparc-tools~=4.7.0'"
            ) from error
        raise


def find_particles(client: Any, project: str, job: str, output: str) -> Any:
    """Return the job, whose `output` holds particles with images and orientations.

    project, job : "P3" or "3", "J42" or "42". Raises HostError naming what is missing.
    """
    project, job = full_uid("P", project), full_uid("J", job)
    found = call(f"finding {project} {job}", client.find_job, project, job)
    if output not in found.outputs:
        raise HostError(f"{job} has no output {output!r}; it has {', '.join(found.outputs) or 'none'}")
    described = found.outputs[output]
    if described.type != "particle":
        raise HostError(
            f"{job}.{output} holds {described.type}, not particles; choose an output with particles"
        )
    slots = slot_names(found, output)
    missing = [slot for slot in NEEDED if slot not in slots]
    if missing:
        raise HostError(
            f"{job}.{output} has no {' and no '.join(missing)}; take the particles of a finished 3D refinement"
        )
    return found


def slot_names(job: Any, output: str) -> list[str]:
    """Names of the slots of an output, passed through or not, in order."""
    return [result.name for result in job.outputs[output].results]


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
    with atomic_file(path, overwrite=True) as temporary:
        dataset.save(str(temporary))
    return path


def project_folder(client: Any, project: str) -> Path:
    """Folder of a project on this machine. Raises HostError where it cannot be reached."""
    found = call(f"finding {project}", client.find_project, full_uid("P", project))
    folder = Path(str(found.dir() if inspect.ismethod(found.dir) else found.dir))  # a method in client 4
    if not folder.is_dir():
        raise HostError(
            f"the folder of {project}, {folder}, is not on this machine; run cryoforum where cryoSPARC's project "
            "folders are mounted"
        )
    return folder


def full_uid(letter: str, text: str) -> str:
    """ "P3" from "P3", "p3" or "3"."""
    return f"{letter}{text.upper().removeprefix(letter)}"
