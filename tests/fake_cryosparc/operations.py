"""The operations of the v5 API that cryosparc-tools asks for, by their own names."""

from __future__ import annotations

import hashlib
import shutil
import urllib.parse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fake_cryosparc.faults import HTTPError
from fake_cryosparc.state import State
from fake_cryosparc.wire import Call

Operation = Callable[..., Any]
OPERATIONS: dict[str, Operation] = {}
OPEN = ("login", "health", "read_root")  # need no token


def operation(name: str) -> Callable[[Operation], Operation]:
    """Register `function(state, call, *path parameters)`; it returns JSON, bytes, a file or a Dataset."""

    def register(function: Operation) -> Operation:
        OPERATIONS[name] = function
        return function

    return register


@operation("health")
def health(state: State, call: Call) -> str:
    """Say that all is well."""
    return "OK"


@operation("login")
def login(state: State, call: Call) -> dict[str, str]:
    """Give a token for an email and the sha256 of a password."""
    form = {name: values[0] for name, values in urllib.parse.parse_qs(call.body.decode()).items()}
    expected = hashlib.sha256(state.password.encode()).hexdigest()
    if form.get("username") != state.email or form.get("password") != expected:
        raise HTTPError(401, "Incorrect username or password")
    return {"access_token": state.new_token(), "token_type": "bearer"}


@operation("job_register")
def job_register(state: State, call: Call) -> dict[str, Any]:
    """Return no job types."""
    return {"specs": [], "categories": {}}


@operation("users.me")
def me(state: State, call: Call) -> dict[str, Any]:
    """Return the one user."""
    names = {"name": "tester", "first_name": "T", "last_name": "Ester"}
    return {"_id": f"{1:024x}", **names, "emails": [{"address": state.email, "verified": True}]}


@operation("config.get_version")
def version(state: State, call: Call) -> str:
    """Return the version of cryoSPARC."""
    return state.version


@operation("resources.find_lanes")
def lanes(state: State, call: Call) -> list[dict[str, str]]:
    """Return the lanes."""
    return [{"name": name, "type": "node", "title": name} for name in state.lanes]


@operation("projects.find_one")
def find_project(state: State, call: Call, project: str) -> dict[str, Any]:
    """Return a project."""
    state.folder(project)
    return state.projects[project]


@operation("projects.find")
def find_projects(state: State, call: Call) -> list[dict[str, Any]]:
    """Return every project, on one page."""
    return [] if call.text("after") else list(state.projects.values())


@operation("projects.set_title")
def set_project_title(state: State, call: Call, project: str) -> dict[str, Any]:
    """Name a project."""
    state.projects[project]["title"] = call.text("title")
    return state.projects[project]


@operation("projects.get_directory")
def project_directory(state: State, call: Call, project: str) -> str:
    """Return the folder of a project."""
    return str(state.folder(project))


def inside(state: State, project: str, path: str) -> Path:
    """Return a path in a project's folder; HTTPError 422 outside of it."""
    folder = state.folder(project)
    found = folder / path
    if (folder != found and folder not in found.parents) or ".." in found.parts:
        raise HTTPError(422, f"Invalid path {path}")
    return found


@operation("projects.upload_file")
def upload_file(state: State, call: Call, project: str) -> str:
    """Write a file."""
    file = inside(state, project, call.text("path"))
    if file.exists() and not call.flag("overwrite"):
        raise HTTPError(409, f"{file} already exists")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(call.body)
    return str(file)


@operation("projects.download_file")
def download_file(state: State, call: Call, project: str) -> Path:
    """Return a file."""
    file = inside(state, project, call.text("path"))
    if not file.is_file():
        raise HTTPError(404, f"{file} not found")
    return file


@operation("projects.ls")
def list_files(state: State, call: Call, project: str) -> list[str]:
    """List a folder."""
    base = inside(state, project, call.text("path"))
    if not base.is_dir():
        raise HTTPError(404, f"{base} not found")
    files = base.rglob("*") if call.flag("recursive") else base.iterdir()
    return sorted(str(file.relative_to(state.folder(project))) for file in files)


@operation("projects.mkdir")
def mkdir(state: State, call: Call, project: str) -> str:
    """Make a folder."""
    folder = inside(state, project, call.text("path"))
    if folder.exists() and not call.flag("exist_ok"):
        raise HTTPError(409, f"{folder} already exists")
    folder.mkdir(parents=call.flag("parents"), exist_ok=True)
    return str(folder)


@operation("projects.cp")
def copy(state: State, call: Call, project: str) -> str:
    """Copy a file or folder into the project."""
    source = state.folder(project) / call.text("source")
    target = inside(state, project, call.text("path"))
    if source.is_dir():
        shutil.copytree(source, target)
    else:
        shutil.copyfile(source, target)
    return str(target)


@operation("projects.symlink")
def symlink(state: State, call: Call, project: str) -> str:
    """Link to a file or folder."""
    target = inside(state, project, call.text("path"))
    target.symlink_to(state.folder(project) / call.text("source"))
    return str(target)


@operation("workspaces.find")
def find_workspaces(state: State, call: Call) -> list[dict[str, Any]]:
    """Return the workspaces of a project, or all, on one page."""
    wanted = call.request.query.get("project_uid")
    found = [space for (project, _), space in state.workspaces.items() if wanted is None or project in wanted]
    return [] if call.text("after") else found[: int(call.text("limit", "100"))]


@operation("workspaces.find_one")
def find_workspace(state: State, call: Call, project: str, workspace: str) -> dict[str, Any]:
    """Return a workspace."""
    if (project, workspace) not in state.workspaces:
        raise HTTPError(404, f"Workspace {project}-{workspace} not found")
    return state.workspaces[project, workspace]


@operation("workspaces.create")
def create_workspace(state: State, call: Call, project: str) -> dict[str, Any]:
    """Add a workspace."""
    state.folder(project)
    return state.add_workspace(project, call.text("title"))


@operation("assets.upload")
def upload_asset(state: State, call: Call, project: str, uid: str) -> dict[str, str]:
    """Keep a picture or text."""
    asset = state.add_asset(
        project, uid, call.body, call.text("filename") or None, call.text("format") or None
    )
    return asset.reference


@operation("assets.find")
def find_assets(state: State, call: Call) -> list[dict[str, Any]]:
    """Return the assets of a project or job."""
    from cryosparc.spec import ASSET_CONTENT_TYPES

    project, uid = call.text("project_uid"), call.text("job_uid")
    found = []
    for asset in state.assets.values():
        if project in ("", asset.project) and uid in ("", asset.job):
            kind = {"contentType": ASSET_CONTENT_TYPES[asset.filetype], "chunkSize": 261120}
            owner = {"project_uid": asset.project, "job_uid": asset.job}
            found.append(
                {"_id": asset.fileid, "filename": asset.filename, "length": len(asset.data), **kind, **owner}
            )
    return found


@operation("assets.download")
def download_asset(state: State, call: Call, fileid: str) -> bytes:
    """Return a picture or text."""
    if fileid not in state.assets:
        raise HTTPError(404, f"Asset {fileid} not found")
    return state.assets[fileid].data
