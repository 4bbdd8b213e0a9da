"""Image stacks where the project folder is not mounted: downloaded once, whole, with little memory."""

from __future__ import annotations

import logging
import os
import shutil
import tracemalloc
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fake_cryosparc import FakeCryoSPARC, fixtures
from fake_cryosparc.faults import Cut, HTTPError, On, expired_token
from fake_cryosparc.synthetic import synthetic_particles

from cryoforum_plugin import formats
from cryoforum_plugin.errors import HostError
from cryoforum_plugin.images.mrc_header import pack_header
from cryoforum_plugin.images.stacks import StackReader
from cryosparc_job.job import calls, stacks
from cryosparc_job.job.connection import connect
from cryosparc_job.job.stacks import data_root, named_stacks

cryosparc_server = fixtures.cryosparc_server
DOWNLOAD = "projects.download_file"


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "WAITS_S", (0.02, 0.05))


@pytest.fixture
def table(cryosparc_server: fixtures.Server, tmp_path: Path) -> Path:
    """Return particles.cs of 100 particles in four stacks of the extraction job J1."""
    path = tmp_path / "table" / "particles.cs"
    path.parent.mkdir()
    synthetic_particles(100, folder(cryosparc_server), path_prefix=">").save(str(path))
    return path


def folder(server: fixtures.Server) -> Path:
    """Return P1's folder on the server."""
    return Path(server.state.projects["P1"]["project_dir"])


def all_images(table: Path, root: Path) -> np.ndarray:
    """Return every image of a table, read as training reads them."""
    particles = formats.read_particles(table, root)
    reader = StackReader(particles.stacks)
    reader.check(particles)
    return reader.read(particles.stack_index, particles.slice_index)


def downloads(server: fixtures.Server) -> list[str]:
    """Return the paths that were asked for."""
    return [request.query["path"][0] for request in server.requests.of(DOWNLOAD)]


def test_a_mounted_project_folder_is_used_as_it_is(cryosparc_server: fixtures.Server, table: Path) -> None:
    server, cache = cryosparc_server, table.parent / "cache"
    assert data_root(connect(server.url), "P1", folder(server), table, cache) == folder(server)
    assert not cache.exists()
    assert not downloads(server)


@pytest.mark.parametrize("mount_point", [False, True])
def test_stacks_of_a_folder_that_is_elsewhere_are_downloaded_once(
    cryosparc_server: fixtures.Server, table: Path, mount_point: bool, caplog: pytest.LogCaptureFixture
) -> None:
    server, client = cryosparc_server, connect(cryosparc_server.url)
    cache, elsewhere = table.parent / "cache", table.parent / "CS-p1"
    if mount_point:
        elsewhere.mkdir()
    expected = all_images(table, folder(server))
    assert data_root(client, "P1", elsewhere, table, cache) == cache
    assert f"4 of 4 image stacks are not in the folder of P1, {elsewhere}, on this machine" in caplog.text
    assert downloads(server) == [stack.name for stack in named_stacks(table)]
    np.testing.assert_array_equal(all_images(table, cache), expected)
    assert not [file for file in cache.rglob("*") if file.name.startswith(".")]
    data_root(client, "P1", elsewhere, table, cache)
    assert len(downloads(server)) == 4


@pytest.mark.skipif(fixtures.V4, reason="cryoSPARC 4.7 describes no status codes")
def test_the_files_of_a_project_answered_with_201(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cryosparc_server: fixtures.Server, table: Path
) -> None:
    """The client itself cannot read these."""
    import httpx

    with FakeCryoSPARC(tmp_path / "other", file_status=201) as server:
        fixtures.add_refinement(server.state, 100)
        fixtures.login(server, tmp_path / "config")
        client = connect(server.url)
        name = named_stacks(table)[0].name
        with pytest.raises(httpx.StreamClosed):
            client.download_file("P1", name, tmp_path / "x.mrc")
        cache = data_root(client, "P1", tmp_path / "absent", table, tmp_path / "cache")
        assert (cache / name).read_bytes() == (folder(server) / name).read_bytes()


def test_only_what_cannot_be_read_here_is_downloaded(
    cryosparc_server: fixtures.Server, table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A project with a link to a disk that this machine does not have, and a stack of someone else."""
    server, here = cryosparc_server, table.parent / "mounted"
    shutil.copytree(folder(server), here)
    names = [stack.name for stack in named_stacks(table)]
    (here / names[1]).unlink()
    (here / names[1]).symlink_to("/raw/not/mounted.mrc")
    secret, access = here / names[2], os.access
    monkeypatch.setattr(os, "access", lambda path, mode: path != secret and access(path, mode))
    cache = data_root(connect(server.url), "P1", here, table, table.parent / "cache")
    assert cache == table.parent / "cache"
    assert downloads(server) == names[1:3]
    assert [(cache / name).is_symlink() for name in names] == [True, False, False, True]
    np.testing.assert_array_equal(all_images(table, cache), all_images(table, folder(server)))
    here.rename(table.parent / "unmounted")
    data_root(connect(server.url), "P1", here, table, cache)
    assert downloads(server) == [*names[1:3], names[0], names[3]]
    np.testing.assert_array_equal(all_images(table, cache), all_images(table, folder(server)))
    (table.parent / "unmounted").rename(here)
    data_root(connect(server.url), "P1", here, table, cache)
    assert len(downloads(server)) == 4
    assert (cache / names[0]).readlink() == here / names[0]


def test_a_stack_extracted_again_is_downloaded_again(cryosparc_server: fixtures.Server, table: Path) -> None:
    server, client, cache = cryosparc_server, connect(cryosparc_server.url), table.parent / "cache"
    data_root(client, "P1", table / "absent", table, cache)
    synthetic_particles(100, folder(server), box=16).save(str(table))
    data_root(client, "P1", table / "absent", table, cache)
    assert len(downloads(server)) == 8
    assert all_images(table, cache).shape == (100, 16, 16)


@pytest.mark.parametrize("effect", [Cut(40_000), Cut(0), HTTPError(503, "Service Unavailable")])
def test_a_download_that_breaks_off_is_taken_again(
    cryosparc_server: fixtures.Server, table: Path, effect: Cut | HTTPError
) -> None:
    fault = On(DOWNLOAD, effect, skip=1)
    cryosparc_server.faults.append(fault)
    cache = data_root(connect(cryosparc_server.url), "P1", table / "absent", table, table.parent / "cache")
    assert fault.hits == 1
    np.testing.assert_array_equal(all_images(table, cache), all_images(table, folder(cryosparc_server)))


def test_a_server_that_stays_away_leaves_what_came(cryosparc_server: fixtures.Server, table: Path) -> None:
    server, client, cache = cryosparc_server, connect(cryosparc_server.url), table.parent / "cache"
    names = [stack.name for stack in named_stacks(table)]
    server.faults.append(On(DOWNLOAD, Cut(3000), times=None, skip=2))
    # the urllib of client 4.7 takes a closed connection for the end of the file
    said = (
        rf"downloaded {names[2]}: truncated"
        if fixtures.V4
        else rf"downloading {names[2]}: cryoSPARC does not answer"
    )
    with pytest.raises(HostError, match=said):
        data_root(client, "P1", table / "absent", table, cache)
    assert [file.name for file in sorted(cache.rglob("*.mrc"))] == [Path(name).name for name in names[:2]]
    server.faults.clear()
    asked = len(downloads(server))
    data_root(client, "P1", table / "absent", table, cache)
    assert downloads(server)[asked:] == names[2:]


def test_what_cannot_be_downloaded_is_said_in_one_line(
    cryosparc_server: fixtures.Server, table: Path
) -> None:
    server, client, cache = cryosparc_server, connect(cryosparc_server.url), table.parent / "cache"
    first = named_stacks(table)[0].name
    stack = folder(server) / first
    whole = stack.read_bytes()

    def message() -> str:
        with pytest.raises(HostError) as error:
            data_root(client, "P1", table / "absent", table, cache)
        assert "\n" not in str(error.value)
        assert not list(cache.rglob("*.mrc"))
        return str(error.value)

    server.faults.append(expired_token(DOWNLOAD))
    assert f"downloading {first}: cryoSPARC does not know this login" in message()
    server.faults.append(On(DOWNLOAD, HTTPError(403, "not your project")))
    assert message() == f"downloading {first}: not your project"
    stack.unlink()
    assert message() == f"cryoSPARC has no image stack {first}; restore it, or remove its particles"
    stack.write_bytes(whole[:-1])
    assert f"downloaded {first}: truncated: the header says 25 images of 32 x 32 px" in message()
    stack.write_bytes(b"no stack" * 1000)
    assert f"downloaded {first}: not an MRC file" in message()


@pytest.mark.parametrize("name", ["../../other/x.mrc", "/raw/x.mrc", ""])
def test_a_path_out_of_the_project_is_refused(
    cryosparc_server: fixtures.Server, table: Path, name: str
) -> None:
    from cryosparc.dataset import Dataset

    particles = Dataset.load(str(table))
    particles["blob/path"] = np.full(100, name, dtype=object)
    particles.save(str(table))
    cache = table.parent / "cache"
    with pytest.raises(HostError, match=f"image stack '{name}' is not in the project folder"):
        data_root(connect(cryosparc_server.url), "P1", table / "absent", table, cache)
    assert not cache.exists()


def test_a_disk_too_small_is_seen_after_the_first_stack(
    cryosparc_server: fixtures.Server, table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    needed = 75 * 32 * 32 * 4
    monkeypatch.setattr(stacks.shutil, "disk_usage", lambda path: usage(0, 0, needed - 1))
    cache, client = table.parent / "cache", connect(cryosparc_server.url)
    with pytest.raises(HostError, match=r"cache: the image stacks still to come need at least 0\.0 GB"):
        data_root(client, "P1", table / "absent", table, cache)
    assert len(downloads(cryosparc_server)) == 1
    monkeypatch.setattr(stacks.shutil, "disk_usage", lambda path: usage(0, 0, needed))
    data_root(client, "P1", table / "absent", table, table.parent / "again")
    assert len(downloads(cryosparc_server)) == 5


def test_a_large_stack_takes_little_memory(cryosparc_server: fixtures.Server, table: Path) -> None:
    count, box = 800, 256
    big = folder(cryosparc_server) / "big.mrc"
    big.write_bytes(pack_header(count, box, box, 1.0, "f4", (0.0, 0.0, 0.0, 0.0)))
    os.truncate(big, big.stat().st_size + count * box * box * 4)
    from cryosparc.dataset import Dataset

    particles = Dataset.load(str(table)).take([0])
    particles["blob/path"], particles["blob/shape"] = np.array(["big.mrc"], dtype=object), [[box, box]]
    particles.save(str(table))
    client = connect(cryosparc_server.url)
    tracemalloc.start()
    try:
        cache = data_root(client, "P1", table / "absent", table, table.parent / "cache")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (cache / "big.mrc").stat().st_size == big.stat().st_size > 200 << 20
    assert peak < 32 << 20


def test_a_client_of_another_make_downloads_by_itself(cryosparc_server: fixtures.Server, table: Path) -> None:
    """As cryosparc-tools 4 does, and perhaps 6."""
    origin, asked = folder(cryosparc_server), list[tuple[str, str]]()

    def download_file(project: str, path: str, target: Any) -> None:
        asked.append((project, path))
        shutil.copyfile(origin / path, target)

    client = SimpleNamespace(download_file=download_file)
    cache = data_root(client, "P1", table / "absent", table, table.parent / "cache")
    assert asked == [("P1", stack.name) for stack in named_stacks(table)]
    np.testing.assert_array_equal(all_images(table, cache), all_images(table, origin))


def test_a_download_that_ends_early_without_an_error_is_noticed(
    cryosparc_server: fixtures.Server, table: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As with cryosparc-tools 4, whose urllib takes a closed connection for the end of the file."""
    origin, asked = folder(cryosparc_server), list[str]()

    def download_file(project: str, path: str, target: Path) -> None:
        asked.append(path)
        content = (origin / path).read_bytes()
        target.write_bytes(content[:5000] if len(asked) == 2 else content)

    client = SimpleNamespace(download_file=download_file)
    with caplog.at_level(logging.WARNING):
        cache = data_root(client, "P1", table / "absent", table, table.parent / "cache")
    assert asked[1] == asked[2]
    assert f"downloaded {asked[1]}: truncated" in caplog.text
    np.testing.assert_array_equal(all_images(table, cache), all_images(table, origin))
