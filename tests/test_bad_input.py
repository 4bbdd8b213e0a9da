"""Bad input: one clear line, exit code 1, nothing written."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from chain import TINY, cryoforum, simulate, succeed

from cryoforum_plugin import atomic
from cryoforum_plugin.network.model import FORMAT_VERSION


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bad")
    simulate(folder, 200)
    succeed("train", folder / "sim" / "train.star", "-o", folder / "model", "--quiet", *TINY, "--epochs", 1)
    return folder


@pytest.fixture
def case(data: Path, tmp_path: Path) -> Path:
    """Return a fresh copy of the particles: tmp/p.star and tmp/p.mrcs."""
    shutil.copy(data / "sim" / "particles.mrcs", tmp_path / "p.mrcs")
    text = (data / "sim" / "train.star").read_text()
    (tmp_path / "p.star").write_text(re.sub(r"@\S+", f"@{tmp_path / 'p.mrcs'}", text))
    return tmp_path


def edit(pattern: str, replacement: str, count: int = 0) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        star = folder / "p.star"
        text, changes = re.subn(pattern, replacement, star.read_text(), count=count, flags=re.M)
        assert changes, pattern
        star.write_text(text)

    return apply


def set_pixel(value: float, whole: bool = False) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        stack = np.memmap(folder / "p.mrcs", np.float32, "r+", offset=1024).reshape(-1, 32, 32)
        stack[4] = value if whole else stack[4]
        stack[4, 5, 5] = value
        stack.flush()

    return apply


def drop_column(label: str) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        lines, out, column = (folder / "p.star").read_text().splitlines(), [], None
        for line in lines:
            if line.startswith(f"_{label} "):
                column = int(line.split("#")[1]) - 1
                continue
            tokens = line.split()
            started = column is not None and tokens and not line.startswith(("_", "#", "data_", "loop_"))
            if started and len(tokens) > column:
                del tokens[column]
                line = " ".join(tokens)
            if line.startswith("data_"):
                column = None
            out.append(line)
        (folder / "p.star").write_text("\n".join(out) + "\n")

    return apply


def truncate(folder: Path) -> None:
    with open(folder / "p.mrcs", "r+b") as file:
        file.truncate(50_000)


def second_box(folder: Path) -> None:
    from cryoforum_plugin.images.stacks import write_stack

    write_stack(folder / "q.mrcs", np.zeros((3, 16, 16), np.float32) + np.arange(16, dtype=np.float32), 5.0)
    edit(r"000001@\S+", f"000001@{folder / 'q.mrcs'}", 1)(folder)


CASES: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing stack": (lambda f: (f / "p.mrcs").unlink(), r"p\.mrcs"),
    "short stack": (edit(r"000007@", "000999@", 1), r"999"),
    "truncated stack": (truncate, r"bytes"),
    "not an MRC file": (lambda f: (f / "p.mrcs").write_bytes(b"PK\x03\x04" * 1000), r"not an? MRC"),
    "NaN image": (set_pixel(np.nan), r"image 5 .*NaN"),
    "infinite image": (set_pixel(np.inf), r"image 5 .*infinite"),
    "constant image": (set_pixel(1.0, whole=True), r"image 5 .*constant"),
    "mixed box sizes": (second_box, r"box|size"),
    "no poses": (drop_column("rlnAngleRot"), r"rlnAngle"),
    "missing pixel size": (drop_column("rlnImagePixelSize"), r"[Pp]ixel"),
    "missing CTF columns": (drop_column("rlnDefocusV"), r"rlnDefocusV"),
    "missing optics group": (edit(r"^(\d+@\S+) 1 ", r"\1 7 "), r"group"),
    "duplicate columns": (edit(r"^_rlnDefocusV", "_rlnDefocusU"), r"rlnDefocusU"),
    "empty file": (lambda f: (f / "p.star").write_text(""), r"empty"),
    "text in a number": (edit(r"^(\d+@\S+ 1 \S+ \d) \S+", r"\1 twelve", 1), r"twelve"),
}


@pytest.mark.parametrize("name", CASES)
def test_bad_particles_are_refused_before_training(name: str, case: Path) -> None:
    spoil, message = CASES[name]
    spoil(case)
    assert_refused(cryoforum("train", case / "p.star", "-o", case / "model", *TINY), message)
    assert not (case / "model").exists()


@pytest.mark.parametrize(
    "name", [n for n in CASES if n not in ("no poses", "NaN image", "infinite image", "constant image")]
)
def test_bad_particles_are_refused_before_prediction(name: str, case: Path, data: Path) -> None:
    spoil, message = CASES[name]
    spoil(case)
    assert_refused(cryoforum("predict", data / "model", case / "p.star", "-o", case / "out.star"), message)
    assert not (case / "out.star").exists()


def assert_refused(result: object, message: str) -> None:
    assert result.exit_code == 1, result.output
    errors = [line for line in result.stderr.splitlines() if "error:" in line]
    assert len(errors) == 1, result.stderr
    assert re.search(message, errors[0]), errors[0]
    assert "Traceback" not in result.output
    assert "unexpected" not in errors[0], errors[0]


def test_unknown_symmetry(case: Path) -> None:
    assert_refused(
        cryoforum("train", case / "p.star", "-o", case / "m", "--symmetry", "Q7", *TINY),
        "unknown symmetry 'Q7'",
    )
    assert not (case / "m").exists()


def test_models_that_cannot_be_used(case: Path, data: Path) -> None:
    star, out = case / "p.star", case / "out.star"
    assert_refused(cryoforum("predict", case / "none", star, "-o", out), "no model directory")
    (case / "hollow").mkdir()
    assert_refused(cryoforum("predict", case / "hollow", star, "-o", out), r"holds no model\.pt")
    damaged = case / "damaged"
    shutil.copytree(data / "model", damaged)
    (damaged / "model.pt").write_bytes((damaged / "model.pt").read_bytes()[:5000])
    assert_refused(cryoforum("predict", damaged, star, "-o", out), "damaged")
    content = torch.load(data / "model" / "model.pt", weights_only=True)
    content["format_version"] = FORMAT_VERSION + 1
    torch.save(content, damaged / "model.pt")
    assert_refused(cryoforum("predict", damaged, star, "-o", out), "newer than this one")
    del content["weights"]
    content["format_version"] = FORMAT_VERSION
    torch.save(content, damaged / "model.pt")
    assert_refused(cryoforum("predict", damaged, star, "-o", out), "damaged")
    assert not out.exists()


def test_model_for_a_larger_particle(case: Path, data: Path) -> None:
    edit(r"^(opticsGroup1 1 \S+ \S+ \S+) \S+", r"\1 2.0")(case)
    assert_refused(
        cryoforum("predict", data / "model", case / "p.star", "-o", case / "out.star"), "trained on another"
    )


def test_outputs_are_not_overwritten(case: Path, data: Path) -> None:
    out = case / "out.star"
    out.write_text("mine")
    assert_refused(
        cryoforum("predict", data / "model", case / "p.star", "-o", out), "exists already.*--overwrite"
    )
    assert out.read_text() == "mine"
    assert_refused(cryoforum("train", case / "p.star", "-o", data / "model", *TINY), "exists already")
    assert (data / "model" / "model.pt").exists()


def test_unwritable_folder(case: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(atomic.os, "access", lambda path, mode: mode != os.W_OK)
    assert_refused(
        cryoforum("predict", data / "model", case / "p.star", "-o", case / "out.star"), "not writable"
    )
    assert_refused(cryoforum("train", case / "p.star", "-o", case / "m", *TINY), "not writable")


def test_full_disk_leaves_the_old_output(case: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = case / "out.star"
    out.write_text("old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(atomic.os, "fsync", full)
    refused = cryoforum("predict", data / "model", case / "p.star", "-o", out, "--overwrite", "--quiet")
    assert_refused(refused, "No space left on device")
    assert out.read_text() == "old"
    kept = [".out.star.journal", "out.star", "p.mrcs", "p.star"]  # the work is not lost
    assert sorted(path.name for path in case.iterdir()) == kept
