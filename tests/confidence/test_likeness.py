"""Particles and sets that are unlike those of the calibration."""

from __future__ import annotations

import json

import numpy as np
import pytest

from cryoforum_plugin.confidence.likeness import FEWEST, Likeness, fit_likeness, unlikeness
from cryoforum_plugin.confidence.ranking import auroc

NAMES = ["width", "features", "contrast", "fine"]
CORRELATED = np.linalg.cholesky(
    np.array([[1, 0.6, 0, 0], [0.6, 1, 0, 0], [0, 0, 1, -0.5], [0, 0, -0.5, 1.0]])
)
SCALE, CENTRE = np.array([0.2, 3.0, 0.1, 1.0]), np.array([-3.0, 40.0, 0.0, 0.0])


def drawn(n: int, seed: int) -> np.ndarray:
    return CENTRE + SCALE * (np.random.default_rng(seed).standard_normal((n, 4)) @ CORRELATED.T)


@pytest.fixture(scope="module")
def likeness() -> Likeness:
    return fit_likeness(NAMES, drawn(800, 0))


def found(likeness: Likeness, figures: np.ndarray) -> dict:
    return unlikeness(NAMES, likeness.deviations(figures), likeness.score(figures), likeness.count)


def test_the_score_of_their_like_is_a_rank(likeness: Likeness) -> None:
    score = likeness.score(drawn(4000, 1))
    assert score.mean() == pytest.approx(0.5, abs=0.03)
    assert (score > 0.9).mean() == pytest.approx(0.1, abs=0.03)
    assert score.max() < 1


@pytest.mark.parametrize(("column", "offset"), [(0, 6.0), (1, -6.0), (1, 6.0), (2, -6.0), (3, 6.0)])
def test_what_speaks_against_a_particle_raises_its_score(
    likeness: Likeness, column: int, offset: float
) -> None:
    good, odd = drawn(1000, 2), drawn(1000, 3)
    odd[:, column] += offset * SCALE[column]
    both = np.concatenate([likeness.score(good), likeness.score(odd)])
    assert auroc(both, np.arange(2000) >= 1000) > 0.99
    assert np.unique(likeness.score(odd)).size > 990  # the worst are still told apart


@pytest.mark.parametrize(("column", "offset"), [(0, -6.0), (2, 6.0)])
def test_what_speaks_for_it_does_not(likeness: Likeness, column: int, offset: float) -> None:
    odd = drawn(1000, 3)
    odd[:, column] += offset * SCALE[column]
    assert likeness.score(odd).mean() < 0.6


def test_nan_stays_nan(likeness: Likeness) -> None:
    figures = drawn(3, 1)
    figures[1, 2] = np.nan
    assert np.isnan(likeness.score(figures)).tolist() == [False, True, False]


def test_sets_of_their_like_raise_no_alarm(likeness: Likeness) -> None:
    for seed in range(40):
        for n in (30, 300, 3000):
            assert found(likeness, drawn(n, 100 + seed))["alarms"] == []


@pytest.mark.parametrize(("column", "word"), [(0, "sure"), (2, "reference"), (3, "fine")])
def test_a_shifted_set_is_told_by_what_is_shifted(likeness: Likeness, column: int, word: str) -> None:
    figures = drawn(1000, 7)
    figures[:, column] += 0.8 * SCALE[column]
    told = found(likeness, figures)
    assert len(told["alarms"]) == 1
    assert word in told["alarms"][0]
    assert told["deviations"][NAMES[column]] == pytest.approx(0.8, abs=0.15)


def test_a_part_of_junk_is_told_as_outliers(likeness: Likeness) -> None:
    figures = drawn(1000, 8)
    figures[:150, 2] -= 8 * SCALE[2]
    told = found(likeness, figures)
    assert told["outliers"] == pytest.approx(0.16, abs=0.02)
    assert "16 %" in " ".join(told["alarms"]) or "15 %" in " ".join(told["alarms"])


def test_too_few_say_nothing(likeness: Likeness) -> None:
    assert found(likeness, drawn(FEWEST - 1, 1) + 10 * SCALE)["alarms"] == []


def test_it_survives_its_file(likeness: Likeness) -> None:
    again = Likeness(**json.loads(json.dumps(likeness.state())))
    np.testing.assert_array_equal(again.score(drawn(50, 4)), likeness.score(drawn(50, 4)))


def test_a_figure_that_never_changes_is_harmless() -> None:
    figures = drawn(200, 0)
    figures[:, 3] = 2.5
    constant = fit_likeness(NAMES, figures)
    assert np.isfinite(constant.score(figures)).all()
    assert constant.score(figures).mean() == pytest.approx(0.5, abs=0.05)
