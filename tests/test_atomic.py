"""Outputs appear whole or not at all, and an old output outlives every failure."""

from __future__ import annotations

import errno
import os
from functools import partial
from pathlib import Path

import pytest

from cryoforum_plugin.atomic import atomic_directory, atomic_file, check_output
from cryoforum_plugin.errors import OutputError

OWNED = ("stale", "fresh")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def disk_full() -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def replace_file(output: Path, error: BaseException | None = None) -> None:
    """Replace a file; fail half way with `error`."""
    with atomic_file(output, overwrite=True) as temporary:
        temporary.write_text("half")
        if error is not None:
            raise error


def replace_folder(output: Path, error: BaseException) -> None:
    """Replace a folder; fail half way with `error`."""
    with atomic_directory(output, OWNED, overwrite=True) as temporary:
        (temporary / "fresh").write_text("half")
        raise error


def test_a_file_appears_when_the_block_ends(tmp_path: Path) -> None:
    output = tmp_path / "new" / "out.star"
    with atomic_file(output) as temporary:
        temporary.write_text("whole")
        assert not output.exists()
        assert temporary.suffix == ".star"
    assert output.read_text() == "whole"
    assert names(output.parent) == ["out.star"]


def test_a_file_gets_the_usual_permissions(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")
    with atomic_file(tmp_path / "out") as temporary:
        temporary.write_text("")
    assert (tmp_path / "out").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("error", [RuntimeError("bug"), KeyboardInterrupt()])
def test_a_failing_block_leaves_the_old_file(tmp_path: Path, error: BaseException) -> None:
    output = tmp_path / "out.star"
    output.write_text("old")
    with pytest.raises(type(error)):
        replace_file(output, error)
    assert output.read_text() == "old"
    assert names(tmp_path) == ["out.star"]


def test_a_full_disk_in_mid_write_leaves_the_old_file(tmp_path: Path) -> None:
    output = tmp_path / "out.star"
    output.write_text("old")
    with pytest.raises(OutputError, match=r"cannot write .*out.star: No space left on device"):
        replace_file(output, disk_full())
    assert output.read_text() == "old"
    assert names(tmp_path) == ["out.star"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_at_the_end_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def full(*_: object) -> None:
        raise disk_full()

    monkeypatch.setattr(*((os, "fsync") if call == "fsync" else (Path, "replace")), full)
    output = tmp_path / "out.star"
    output.write_text("old")
    with pytest.raises(OutputError, match="No space left"):
        replace_file(output)
    assert output.read_text() == "old"
    assert names(tmp_path) == ["out.star"]


def test_a_real_full_device_is_one_clear_error(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full on this system")

    def write() -> None:
        with atomic_file(tmp_path / "out") as temporary, open("/dev/full", "w") as full:
            temporary.write_text("half")
            full.write("x" * 100000)
            full.flush()

    with pytest.raises(OutputError, match="No space left"):
        write()
    assert names(tmp_path) == []


def test_a_folder_with_other_files_is_never_replaced(tmp_path: Path) -> None:
    output = tmp_path / "project"
    output.mkdir()
    (output / "thesis.tex").write_text("years of work")
    with (
        pytest.raises(OutputError, match=r"thesis\.tex, which --overwrite would delete"),
        atomic_directory(output, OWNED, overwrite=True),
    ):
        pytest.fail("the block must not run")
    assert (output / "thesis.tex").read_text() == "years of work"
    with (
        pytest.raises(OutputError, match="not a folder"),
        atomic_directory(output / "thesis.tex", OWNED, overwrite=True),
    ):
        pytest.fail("the block must not run")


@pytest.mark.parametrize("atomic", [atomic_file, partial(atomic_directory, owned=OWNED)])
def test_nothing_is_overwritten_unasked(tmp_path: Path, atomic) -> None:
    output = tmp_path / "out"
    output.write_text("old")
    with pytest.raises(OutputError, match=r"exists already.*--overwrite"), atomic(output):
        pytest.fail("the block must not run")
    assert output.read_text() == "old"


def test_a_folder_replaces_the_old_one_whole(tmp_path: Path) -> None:
    output = tmp_path / "model"
    output.mkdir()
    (output / "stale").write_text("old")
    with atomic_directory(output, OWNED, overwrite=True) as temporary:
        (temporary / "fresh").write_text("new")
        assert names(output) == ["stale"]
    assert names(output) == ["fresh"]
    assert names(tmp_path) == ["model"]


def test_a_failing_block_leaves_the_old_folder(tmp_path: Path) -> None:
    output = tmp_path / "model"
    output.mkdir()
    (output / "stale").write_text("old")
    with pytest.raises(OutputError, match="No space"):
        replace_folder(output, disk_full())
    assert names(output) == ["stale"]
    assert names(tmp_path) == ["model"]


def test_a_folder_that_is_not_writable_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(OutputError, match="is not writable"):
        check_output(tmp_path / "deep" / "out.star", overwrite=False)


def test_a_file_in_place_of_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="is not writable"):
        check_output(tmp_path / "file" / "out.star", overwrite=False)
