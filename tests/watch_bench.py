"""A tiny model, sixty particles it has not seen, and tables of them that grow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from chain import cryoforum, succeed
from click.testing import Result

from cryoforum_plugin import formats
from cryoforum_plugin.images.stacks import StackReader, write_stack
from cryoforum_plugin.particles import ParticleSet

COUNT = 60


QUIET = ("--quiet", "--precision", 32)  # in bfloat16 an answer depends a little on what else is in the batch


@dataclass(frozen=True)
class Bench:
    """model/ and sim/test.star in `folder`; tables and outputs in `here`."""

    folder: Path
    here: Path

    @property
    def particles(self) -> ParticleSet:
        """All particles there are."""
        return formats.read_particles(self.folder / "sim" / "test.star")

    def table(self, rows: Sequence[int], name: str = "particles.star") -> Path:
        """Write, or rewrite, a table of these rows."""
        path = self.here / name
        path.parent.mkdir(parents=True, exist_ok=True)
        formats.write_particles(self.particles[np.asarray(rows)], path, overwrite=True)
        return path

    def stack(self, count: int, name: str = "own.mrcs", gain: float = 1.0) -> Path:
        """Write the images of the first `count` particles into a stack."""
        particles = self.particles
        rows = np.arange(count)
        images = StackReader(particles.stacks).read(particles.stack_index[rows], particles.slice_index[rows])
        path = self.here / name
        write_stack(path, gain * images, 5.0, overwrite=True)
        return path

    def table_of_stack(self, rows: Sequence[int], stack: Path, name: str = "particles.star") -> Path:
        """Write a table of these rows whose images are those of the same number in `stack`."""
        host = self.particles[np.asarray(rows)].host
        names = [f"{row + 1:06d}@{stack}" for row in rows]
        document = host.with_particles(host.particles.with_columns({"rlnImageName": names})).document
        path = self.here / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(document.text())
        return path

    def arguments(self, source: Path, out: str = "out.star", *more: object) -> list[str]:
        """Arguments of a watch with short times."""
        fixed = [
            "watch",
            source,
            "--model",
            self.folder / "model",
            "-o",
            self.here / out,
            "--interval",
            0.1,
            *QUIET,
        ]
        return [str(argument) for argument in (*fixed, *more)]

    def watch(self, source: Path, out: str = "out.star", *more: object) -> Result:
        """Run the command, which must succeed."""
        return succeed(*self.arguments(source, out, *more))

    def refused(self, source: Path, out: str = "out.star", *more: object) -> str:
        """Run the command, which must fail with a line on stderr; return that."""
        result = cryoforum(*self.arguments(source, out, *more))
        assert result.exit_code == 1, result.output
        return next(line for line in result.stderr.splitlines() if "error:" in line)

    def predicted(self, table: Path, name: str = "whole.star") -> Path:
        """Predict a table in one go."""
        succeed("predict", self.folder / "model", table, "-o", self.here / name, *QUIET, "--overwrite")
        return self.here / name


def assert_same_predictions(grown: Path, whole: Path, order: Sequence[int] | None = None) -> None:
    """Assert that two tables hold the same columns and rows, `order` being rows of the second."""
    first, second = formats.read_particles(grown), formats.read_particles(whole)
    second = second if order is None else second[np.asarray(order)]
    assert len(first) == len(second)
    for table in (first, second):
        assert table.prediction is not None
    stacks = [[table.stacks[i] for i in table.stack_index] for table in (first, second)]
    assert stacks[0] == stacks[1]
    np.testing.assert_array_equal(first.slice_index, second.slice_index)
    np.testing.assert_allclose(first.rotation, second.rotation, atol=2e-3)
    np.testing.assert_allclose(first.shift_A, second.shift_A, atol=2e-2)
    for name in ("confidence", "expected_error_deg", "bingham", "outlier_score", "in_training"):
        np.testing.assert_allclose(
            getattr(first.prediction, name),
            getattr(second.prediction, name),
            rtol=2e-2,
            atol=1e-2,
            err_msg=name,
        )
    if grown.suffix == ".star":
        tables = [t.host.particles for t in (first, second)]
        assert tables[0].labels == tables[1].labels
        kept = [label for label in tables[0].labels if not label.startswith(("rlnA", "rlnO", "rlnP", "cryo"))]
        for label in kept:
            assert list(tables[0].tokens(label)) == list(tables[1].tokens(label))
