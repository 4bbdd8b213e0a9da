"""What differs between cryosparc-tools 5 and 4.7. No other module knows which one is installed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cryoforum_plugin.errors import HostError

SAVE = {"dpi": 120}  # of figures; the client's own choice cuts their rim off


def client_version() -> str:
    """Version of the installed cryosparc-tools. Raises HostError without it."""
    try:
        from cryosparc import __version__
        from cryosparc.tools import CryoSPARC  # noqa: F401
    except ImportError as error:
        raise HostError(
            "cryosparc-tools is not installed; run: pip install 'cryoforum[cryosparc]'"
        ) from error
    return str(__version__)


def is_v4() -> bool:
    """Tell whether the client is of the generation before the single REST service."""
    return client_version().startswith("4.")


def make_client(url: str | None, email: str | None) -> Any:
    """Return the client, logged in; its own errors pass. None: what the environment says.

    Version 5 takes a stored token, or CRYOSPARC_EMAIL and CRYOSPARC_PASSWORD; version 4.7 those two and
    CRYOSPARC_LICENSE_ID. They are read when the client is first imported.
    """
    from cryosparc.tools import CryoSPARC

    given: dict[str, Any] = {} if email is None else {"email": email}
    if not is_v4():
        where: dict[str, Any] = {} if url is None else {"base_url": url, "host": None, "base_port": None}
        return CryoSPARC(**where, **given)
    url = url or os.environ.get("CRYOSPARC_BASE_URL")
    if url is not None:
        parts = urlsplit(url)
        given |= {"host": parts.hostname, "base_port": parts.port or 39000}
    return CryoSPARC(**given)


def close(client: Any) -> None:
    """Close the client's connections, which otherwise stay open until it is garbage."""
    http = getattr(getattr(client, "api", None), "_client", None)
    if http is not None:
        http.close()


def project_folder(project: Any) -> Path:
    """Folder of a project, as the server knows it."""
    return Path(str(project.dir() if is_v4() else project.dir))


def output_types(job: Any) -> dict[str, str]:
    """Type of each output: "particle", "volume", ..."""
    if is_v4():
        return {group["name"]: group["type"] for group in job.doc["output_result_groups"]}
    return {name: output.type for name, output in job.outputs.items()}


def slot_names(job: Any, output: str) -> list[str]:
    """Slots of an output, passed through or not, in order."""
    if is_v4():
        return [result["name"] for result in job.doc["output_results"] if result["group_name"] == output]
    return [result.name for result in job.outputs[output].results]


def slot(name: str, dtype: str) -> dict[str, Any]:
    """Description of an output's slot."""
    return {"prefix": name, "dtype": dtype, "required": True} if is_v4() else {"name": name, "dtype": dtype}


def make_external_job(client: Any, project: str, workspace: str, title: str, text: str) -> Any:
    """Return a new external job that is being built."""
    return client.create_external_job(project, workspace, title=title, desc=text)


def stop(job: Any, error: str = "") -> None:
    """End an external job: completed, or failed with a line of text."""
    if not is_v4():
        job.stop(error=error)
        return
    if error:
        job.log(error, level="error")  # this generation keeps no text with a failure
    job.stop(error=bool(error))


def log_progress(job: Any, text: str, name: str) -> None:
    """Show progress in one line of the event log that renews itself; version 4.7 has no such lines."""
    if not is_v4():
        job.log(text, name=name)


def set_images(job: Any, output: str, figure: Any) -> None:
    """Show a figure as an output's thumbnail; version 4.7 has none."""
    if not is_v4():
        job.set_output_image(output, figure, savefig_kw=SAVE)


def set_tile(job: Any, figure: Any) -> None:
    """Show a figure on the job's card; version 4.7 cannot."""
    if not is_v4():
        job.set_tile_image(figure, savefig_kw=SAVE)


def connected_to(job: Any, name: str) -> tuple[str, str] | None:
    """Job and output that an input is connected to, None without one."""
    if is_v4():
        inputs = {one["name"]: one["connections"] for one in job.doc["input_slot_groups"]}
        found = [(one["job_uid"], one["group_name"]) for one in inputs.get(name, [])]
    else:
        described = job.inputs.get(name)
        found = [] if described is None else [(one.job_uid, one.output) for one in described.connections]
    return found[0] if found else None
