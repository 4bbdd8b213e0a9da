"""What differs between cryosparc-tools 5 and 4.7. No other module knows which one is installed."""

from __future__ import annotations

import json
import os
import re
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any
from urllib.parse import urlsplit

from cryoforum_plugin.errors import HostError

SAVE = {"dpi": 120}  # of figures; the client's own choice cuts their rim off
CREDENTIALS = ("CRYOSPARC_LICENSE_ID", "CRYOSPARC_EMAIL", "CRYOSPARC_PASSWORD")  # of version 4.7
PROBE_SECONDS = 5.0
PIECE_BYTES = 1 << 20


def client_version() -> str:
    """Version of the installed cryosparc-tools. Raises HostError without it."""
    # version 4.7 would wait twice 30 s in every call, where `calls.call` waits already
    os.environ.setdefault("CRYOSPARC_COMMAND_RETRY_SECONDS", "0")
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


def make_client(address: str, email: str | None) -> Any:
    """Return the client, logged in; its own errors pass.

    Version 5 takes a stored token, or CRYOSPARC_EMAIL and CRYOSPARC_PASSWORD, which it reads when it is first
    imported; version 4.7 takes CREDENTIALS.
    """
    from cryosparc.tools import CryoSPARC

    if not is_v4():
        given = {} if email is None else {"email": email}
        return CryoSPARC(address, host=None, base_port=None, **given)
    license_id, default_email, password = (os.environ.get(name, "") for name in CREDENTIALS)
    parts = urlsplit(address)
    where = {"host": parts.hostname, "base_port": parts.port or 39000}
    return CryoSPARC(license_id, **where, email=email or default_email, password=password)


def other_generation() -> str:
    """Minor version of cryosparc-tools for servers of the generation that the installed one is not for."""
    return "5.0" if is_v4() else "4.7"


def is_other_generation(address: str) -> bool:
    """Tell whether the server at an address is of the generation that the client is not for."""
    if is_v4():
        return "openapi" in _ask(f"{address.rstrip('/')}/api/cmd/openapi.json")
    parts = urlsplit(address)
    if parts.port is None:
        return False
    question = {"jsonrpc": "2.0", "id": "1", "method": "system.describe", "params": []}
    return "result" in _ask(f"http://{parts.hostname}:{parts.port + 2}/api", question)


def _ask(url: str, question: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return the JSON that an address answers with, {} for anything else."""
    data = None if question is None else json.dumps(question).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=PROBE_SECONDS) as response:
            found = json.load(response)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def needs_login(error: BaseException) -> bool:
    """Tell whether an error of `make_client` is about a login that is missing, expired or refused."""
    if is_v4():
        words = "Could not complete CryoSPARC authentication"
    else:
        words = "CryoSPARC authentication not provided or expired"
    return isinstance(error, AssertionError) or words in str(error) or answer(error)[0] in (401, 403)


def login_advice(address: str = "http://HOST:39000") -> str:
    """What to do about a login that is missing, expired or refused."""
    if is_v4():
        return f"cryosparc-tools 4.7 takes {', '.join(CREDENTIALS)} from the environment"
    return f"run: python -m cryosparc.tools login --url {address}"


def is_away(error: BaseException | None) -> bool:
    """Tell whether the server could not be reached or went away (httpx in client 5, urllib in 4.7)."""
    away = {"TransportError", "URLError", "ConnectionError", "TimeoutError", "HTTPException"}
    for cause in _chain(error):
        if away & {kind.__name__ for kind in type(cause).__mro__}:
            return True
        if type(cause).__name__ == "CommandError" and re.search(r"(URL|Timeout) Error", str(cause)):
            return True
    return False


def answer(error: BaseException | None) -> tuple[int | None, str]:
    """Code and words of the server in an error of the client; None and "" where it did not answer."""
    if is_away(error):
        return None, ""
    for cause in _chain(error):
        response = getattr(cause, "response", None)  # of httpx.HTTPStatusError
        code = getattr(cause, "code", getattr(response, "status_code", None))
        if isinstance(code, int):
            return _failed_function(cause, code) or (code, _words(getattr(cause, "data", None)))
    return None, ""


def _failed_function(error: BaseException, code: int) -> tuple[int | None, str] | None:
    """The same for a function of cryoSPARC 4.7 that failed, where 500 is any failure and no sign of a busy server."""
    head, found, said = str(error).partition(":\n")
    if not found or "from JSONRPC function" not in head:
        return None
    return None if code == 500 else code, _words(said.partition("Traceback (most recent call last)")[0])


def _words(data: Any) -> str:
    """The server's words in one line: of the data of an error, a text, or a page."""
    if isinstance(data, bytes):
        data = data.decode(errors="replace")
    if isinstance(data, dict):
        data = data.get("detail", data)
    return " ".join(re.sub("<[^>]*>", " ", str(data)).split())[:500] if data else ""


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def close(client: Any) -> None:
    """Close the client's connections, which otherwise stay open until it is garbage."""
    http = http_of(client)
    if http is not None:
        http.close()


def http_of(client: Any) -> Any:
    """The HTTP client below version 5; None in 4.7, which needs none: it streams files by itself."""
    return getattr(getattr(client, "api", None), "_client", None)


def project_folder(project: Any) -> Path:
    """Folder of a project, as the server knows it."""
    return Path(str(project.dir() if is_v4() else project.dir))


def output_types(job: Any) -> dict[str, str]:
    """Type of each output: "particle", "volume", ..."""
    if is_v4():
        return {group["name"]: group["type"] for group in job.doc["output_result_groups"]}
    return {name: output.type for name, output in job.outputs.items()}


def slot_names(job: Any, output: str) -> list[str]:
    """Slots of an output that hold something, passed through or not, in order."""
    if is_v4():
        results = [result for result in job.doc["output_results"] if result["group_name"] == output]
        return [result["name"] for result in results if result["metafiles"]]
    return [result.name for result in job.outputs[output].results if result.metafiles]


def load_output(job: Any, output: str, slots: list[str]) -> Any:
    """Return an output with these slots, taken apart when it is whole.

    Left to themselves the clients crash (a segmentation fault, in 5.0.3) on a transfer that breaks off among text.
    Version 4.7 fetches whole files, with other slots in them.
    """
    if is_v4():
        job.cs.download_dataset = partial(_download_dataset, job.cs)
        return job.load_output(output, slots=slots).filter_prefixes(slots)
    with _whole_datasets():
        return job.load_output(output, slots=slots)


def _download_dataset(client: Any, project_uid: str, path: str) -> Any:
    with client.download(project_uid, path) as response:
        return _load(iter(partial(response.read, PIECE_BYTES), b""), lambda: not response.length)


@contextmanager
def _whole_datasets() -> Iterator[None]:
    from cryosparc.dataset import Dataset

    inherited = Dataset.from_iterator
    Dataset.from_iterator = lambda pieces, media_type=None: _load(pieces)
    try:
        yield
    finally:
        Dataset.from_iterator = inherited


def _load(pieces: Iterable[bytes], is_whole: Callable[[], bool] = lambda: True) -> Any:
    """Return the dataset that came in pieces. Raises DatasetLoadError where they are not all."""
    from cryosparc.dataset import Dataset
    from cryosparc.errors import DatasetLoadError

    with TemporaryFile() as file:
        try:
            file.writelines(pieces)
        except Exception as error:
            raise DatasetLoadError("the transfer broke off") from error
        if not is_whole():
            raise DatasetLoadError("the transfer broke off")
        file.seek(0)
        return Dataset.load(file)


def slot(name: str, dtype: str) -> dict[str, Any]:
    """Description of an output's slot."""
    return {"prefix": name, "dtype": dtype, "required": True} if is_v4() else {"name": name, "dtype": dtype}


def stop(job: Any, error: str = "") -> None:
    """End an external job: completed, or failed with a line of text."""
    if not is_v4():
        job.stop(error=error)
        return
    with suppress(Exception):  # it keeps no text with a failure, and must fail without its text all the same
        if error:
            job.log(error, level="error")
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


def lane_names(lanes: Any) -> list[str]:
    """Names of what `get_lanes` gives."""
    return [lane["name"] if isinstance(lane, dict) else lane.name for lane in lanes]


def connected_to(job: Any, name: str) -> tuple[str, str] | None:
    """Job and output that an input is connected to first, None without one."""
    found = _connections(job, name)
    return found[0] if found else None


def count_connections(job: Any, name: str) -> int:
    """How many outputs an input is connected to."""
    return len(_connections(job, name))


def _connections(job: Any, name: str) -> list[tuple[str, str]]:
    if is_v4():
        inputs = {one["name"]: one["connections"] for one in job.doc["input_slot_groups"]}
        found = [(one["job_uid"], one["group_name"]) for one in inputs.get(name, [])]
    else:
        described = job.inputs.get(name)
        found = [] if described is None else [(one.job_uid, one.output) for one in described.connections]
    return found
