"""benchmarks/tables_million.py with few particles: it still runs, and what it writes can be read."""

from __future__ import annotations

import importlib
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from cryoforum_plugin import formats

COUNT = 1500


def test_every_row_of_the_benchmark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    million = importlib.import_module("tables_million")
    million.make_tables(tmp_path, COUNT)
    for work in million.ROWS.values():
        seconds = million.do(work, tmp_path)
        assert len(seconds) == (work.table is not None) + (work.output is not None)
    expected = million.random_prediction(COUNT)
    for work in million.ROWS.values():
        if not work.predict:
            continue
        particles = formats.read_particles(tmp_path / work.output, tmp_path)
        assert len(particles.stacks) == million.STACKS
        for field in fields(expected):
            if "rotation" not in field.name:
                found, value = (getattr(p, field.name) for p in (particles.prediction, expected))
                np.testing.assert_allclose(found, value, rtol=1e-5, atol=1e-6, err_msg=field.name)
