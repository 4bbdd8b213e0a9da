"""Criteria, their combination, the automatic rule and the half sets."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from scipy.stats import chi

from cryoforum_plugin.confidence.auto import by_confidence
from cryoforum_plugin.confidence.balance import balanced, count_half_sets
from cryoforum_plugin.confidence.criteria import best_fraction
from cryoforum_plugin.confidence.model_quantiles import read_model_quantile
from cryoforum_plugin.confidence.selection import Criteria, select_particles
from cryoforum_plugin.confidence.target import parse_target
from cryoforum_plugin.confidence.view_coverage import view_coverage
from cryoforum_plugin.errors import ModelError, ParticleFileError, SettingsError
from cryoforum_plugin.particles import Prediction

N = 40


def spread_prediction() -> Prediction:
    """Confidence falls from 1 to 0 with the row; the errors rise, the statistics weaken."""
    rows = np.arange(N)
    return Prediction(
        confidence=1 - rows / (N - 1),
        expected_error_deg=1.0 + rows,
        lambda_max=-1000.0 + rows,
        trace=-5000.0 + 2 * rows,
    )


@pytest.mark.parametrize(
    ("criteria", "kept"),
    [
        (Criteria(min_confidence=0.5), 20),
        (Criteria(min_confidence=0.0), 40),
        (Criteria(max_error_deg=10), 10),
        (Criteria(keep_fraction=0.25), 10),
        (Criteria(keep_fraction=1.0), 40),
        (Criteria(statistic="lambda_max", quantile=0.5), 20),
        (Criteria(statistic="trace"), 30),
        (Criteria(statistic="lambda_max", statistic_threshold=-994.0), 7),
        (Criteria(min_confidence=0.5, max_error_deg=10), 10),
        (Criteria(min_confidence=0.5, max_error_deg=30, keep_fraction=0.2, statistic="trace"), 8),
    ],
)
def test_each_criterion_and_their_combination(make_particles, criteria: Criteria, kept: int) -> None:
    selection = select_particles(make_particles(N, spread_prediction()), criteria)
    np.testing.assert_array_equal(np.flatnonzero(selection.keep), np.arange(kept))
    assert selection.counts["all"] == {"kept": kept, "rejected": N - kept}
    assert sum(selection.counts[f"half set {h}"]["kept"] for h in (1, 2)) == kept


def test_half_sets_are_balanced_by_dropping_the_least_confident(make_particles) -> None:
    half = np.where(np.arange(N) < 30, 1, 2)  # the confident ones are all in the first
    particles = make_particles(N, spread_prediction(), half_set=half)
    selection = select_particles(particles, Criteria(keep_fraction=1.0, balance_halves=True))
    np.testing.assert_array_equal(np.flatnonzero(selection.keep), [*range(10), *range(30, 40)])
    assert "dropped to balance the half sets: 20" in selection.explanation
    one_more = select_particles(particles, Criteria(keep_fraction=1.0, balance_halves=True, least_apart=1))
    np.testing.assert_array_equal(np.flatnonzero(one_more.keep), [*range(11), *range(30, 40)])
    alone = select_particles(
        make_particles(N, spread_prediction(), half_set=np.ones(N, dtype=np.int64)),
        Criteria(keep_fraction=1.0, balance_halves=True),
    )
    assert alone.keep.all()


def test_figures_go_into_json(make_particles) -> None:
    selection = select_particles(make_particles(N, spread_prediction()), Criteria(auto=True))
    assert json.loads(json.dumps(selection.figures()))["counts"]["all"]["kept"] == selection.keep.sum()


def test_ties_are_broken_by_error_then_row() -> None:
    prediction = Prediction(
        confidence=np.array([0.5, 0.9, 0.5, 0.5]), expected_error_deg=np.array([3.0, 9, 1, 3])
    )
    assert best_fraction(prediction, 0.5).tolist() == [False, True, True, False]
    assert best_fraction(prediction, 0.75).tolist() == [True, True, True, False]
    assert best_fraction(prediction, 1e-6).sum() == 1


def test_automatic_keeps_everything_that_is_equally_good() -> None:
    keep, line = by_confidence(np.full(N, 0.2), np.zeros(N, dtype=np.int64))
    assert keep.all()
    assert "0.2" in line


def test_automatic_leaves_out_junk() -> None:
    confidence = np.array([0.9] * 30 + [0.0] * 10)
    keep, _ = by_confidence(confidence, np.tile([1, 2], N // 2))
    np.testing.assert_array_equal(keep, confidence > 0)


def test_automatic_maximises_its_target(make_particles) -> None:
    confidence = np.random.default_rng(3).beta(0.4, 0.6, 500)
    keep, _ = by_confidence(confidence, np.zeros(500, dtype=np.int64))

    def clarity(mask: np.ndarray) -> float:
        return float(confidence[mask].sum() / np.sqrt(mask.sum()))

    assert (
        clarity(keep) >= max(clarity(confidence >= t) for t in np.linspace(0, confidence.max(), 50)) - 1e-12
    )


def test_automatic_keeps_a_tenth_of_each_half_set() -> None:
    half_set = np.repeat([1, 2], 20)
    keep, line = by_confidence(np.where(half_set == 1, 0.9, 0.01), half_set)
    assert keep[half_set == 1].all()
    assert keep[half_set == 2].sum() == 2
    assert "topped up" in line


def test_automatic_refuses_a_set_without_any_confidence() -> None:
    with pytest.raises(SettingsError, match="no particle has a confidence above 0"):
        by_confidence(np.zeros(5), np.zeros(5, dtype=np.int64))


def test_a_half_set_is_never_emptied(make_particles) -> None:
    particles = make_particles(N, spread_prediction(), half_set=np.repeat([1, 2], 20))
    with pytest.raises(SettingsError, match=r"nothing of half set 2 .* is left"):
        select_particles(particles, Criteria(min_confidence=0.6))


def test_an_empty_selection_is_refused(make_particles) -> None:
    with pytest.raises(SettingsError, match=r"no particle of particles.star is left"):
        select_particles(make_particles(N, spread_prediction()), Criteria(max_error_deg=0.5))


def test_half_sets_that_are_not_there_are_not_demanded(make_particles) -> None:
    zeros = np.zeros(N, dtype=np.int64)
    selection = select_particles(
        make_particles(N, spread_prediction(), half_set=zeros), Criteria(keep_fraction=0.1)
    )
    assert list(selection.counts) == ["all"]


def test_missing_columns_are_named(make_particles) -> None:
    with pytest.raises(ParticleFileError, match="no prediction columns"):
        select_particles(make_particles(N), Criteria(min_confidence=0.5))
    bare = make_particles(N, Prediction(confidence=np.linspace(0, 1, N)))
    with pytest.raises(ParticleFileError, match="no column rlnAccuracyRotations"):
        select_particles(bare, Criteria(max_error_deg=5))
    with pytest.raises(ParticleFileError, match="no column cryoforumTrace"):
        select_particles(bare, Criteria(statistic="trace"))


def test_an_unknown_statistic_is_refused(make_particles) -> None:
    with pytest.raises(SettingsError, match="unknown statistic 'mean'"):
        select_particles(make_particles(N, spread_prediction()), Criteria(statistic="mean"))


def test_counts_add_up() -> None:
    counts = count_half_sets(np.array([1, 1, 2, 0]), np.array([True, False, True, True]))
    assert counts == {
        "all": {"kept": 3, "rejected": 1},
        "half set 1": {"kept": 1, "rejected": 1},
        "half set 2": {"kept": 1, "rejected": 0},
    }


def test_no_criterion_is_told() -> None:
    assert not Criteria().any()
    assert Criteria(min_confidence=0.0).any()
    assert Criteria(auto=True).any()


def test_quantiles_of_a_model(tmp_path: Path) -> None:
    percentiles = {"4": {"trace": list(np.linspace(-100, 0, 101))}}
    (tmp_path / "calibration.json").write_text(json.dumps({"percentiles": percentiles}))
    assert read_model_quantile(tmp_path, "trace", 0.75, 4) == pytest.approx(-25)
    assert read_model_quantile(tmp_path, "trace", 0.005, 4) == pytest.approx(-99.5)
    for folder, statistic, views in (
        (tmp_path, "lambda_max", 4),
        (tmp_path, "trace", 8),
        (tmp_path / "no", "trace", 4),
    ):
        with pytest.raises(ModelError, match="no percentiles of"):
            read_model_quantile(folder, statistic, 0.5, views)


def test_a_statistic_that_is_the_same_everywhere_is_refused(make_particles) -> None:
    rounding = 1e-5 * np.random.default_rng(0).standard_normal(N)
    constant = replace(spread_prediction(), trace=-700.0 + rounding)
    with pytest.raises(SettingsError, match="one uncertainty for all images"):
        select_particles(make_particles(N, constant), Criteria(statistic="trace"))


@pytest.mark.parametrize(
    ("text", "value"), [("5%:10", (0.05, 10.0)), ("0.05:10", (0.05, 10.0)), (" 2.5 % : 3.5 ", (0.025, 3.5))]
)
def test_target_is_read(text: str, value: tuple[float, float]) -> None:
    assert parse_target(text) == pytest.approx(value)


@pytest.mark.parametrize("text", ["5:10", "5%", "0%:10", "5%:0", "5%:200", "a%:b", "100%:5", "1.2.3%:5"])
def test_a_target_that_means_nothing_is_refused(text: str) -> None:
    with pytest.raises(SettingsError, match="is no target"):
        parse_target(text)


def uncertain(sd_deg: np.ndarray) -> Prediction:
    """Isotropic normal errors of these s.d. about each axis."""
    return Prediction(chi.cdf(5 / sd_deg, 3), credible_radius_90_deg=chi.ppf(0.9, 3) * sd_deg)


def test_target_keeps_as_many_as_the_expected_errors_allow(make_particles) -> None:
    sd_deg = np.linspace(1, 12, N)
    particles = make_particles(N, uncertain(sd_deg))
    selection = select_particles(particles, Criteria(target=(0.05, 10.0)))
    kept = int(selection.keep.sum())
    np.testing.assert_array_equal(np.flatnonzero(selection.keep), np.arange(kept))
    rng = np.random.default_rng(1)
    wrong = (np.linalg.norm(sd_deg[:, None, None] * rng.standard_normal((N, 20000, 3)), axis=2) > 10).mean(
        axis=1
    )
    assert wrong[:kept].mean() < 0.053
    assert wrong[: kept + 2].mean() > 0.05
    with pytest.raises(SettingsError, match="even the surest particle"):
        select_particles(make_particles(N, uncertain(sd_deg + 20)), Criteria(target=(0.05, 10.0)))
    with pytest.raises(ParticleFileError, match="cryoforumCredibleRadius90"):
        select_particles(make_particles(N, spread_prediction()), Criteria(target=(0.05, 10.0)))


def test_what_is_expected_is_told_of_all_that_is_kept_in_the_end(make_particles) -> None:
    """Rare views are unsure: filled up for them, a set no longer keeps the target, and says so."""
    rng = np.random.default_rng(1)
    tilt = np.concatenate([np.degrees(np.arccos(rng.uniform(0.8, 1, 1500))), rng.uniform(75, 105, 500)])
    turns = rng.uniform(0, 360, (2, 2000))
    rotation = Rotation.from_euler("ZYZ", np.stack([turns[0], tilt, turns[1]], 1), degrees=True).as_quat()
    sd_deg = np.concatenate([rng.uniform(0.5, 1.5, 1500), rng.uniform(4, 5, 500)])
    prediction = replace(uncertain(sd_deg), confidence=np.clip(chi.cdf(5 / sd_deg, 3), 0.3, 1))
    particles = make_particles(2000, prediction, rotation=rotation)
    selection = select_particles(particles, Criteria(target=(0.02, 5.0), balance_views=True))
    told = float(selection.explanation[-1].split(": ")[1].removesuffix(" %"))
    wrong = 1 - chi.cdf(5 / sd_deg, 3)
    assert told == pytest.approx(100 * wrong[selection.keep].mean(), rel=0.25)
    assert told > 2


def test_half_sets_do_not_take_back_what_was_added_for_its_view() -> None:
    confidence = np.array([0.9, 0.8, 0.7, 0.1, 0.9])
    half_set = np.array([1, 1, 1, 1, 2])
    added = np.array([False, False, False, True, False])
    keep, dropped = balanced(np.ones(5, dtype=bool), half_set, confidence + added)
    assert dropped == 3
    assert keep.tolist() == [False, False, False, True, True]


def test_target_looks_only_at_what_the_others_leave(make_particles) -> None:
    """The surest are outliers: without them, fewer uncertain ones can be carried."""
    sd_deg = np.linspace(1, 12, N)
    prediction = replace(uncertain(sd_deg), outlier_score=np.where(np.arange(N) < 5, 0.99, 0.1))
    particles = make_particles(N, prediction)
    alone = select_particles(particles, Criteria(target=(0.05, 10.0))).keep
    both = select_particles(particles, Criteria(target=(0.05, 10.0), max_outlier=0.9)).keep
    assert not both[:5].any()
    assert both.sum() < alone[5:].sum()


def test_outliers_are_left_out(make_particles) -> None:
    particles = make_particles(N, replace(spread_prediction(), outlier_score=np.linspace(0, 1, N)))
    keep = select_particles(particles, Criteria(max_outlier=0.5)).keep
    np.testing.assert_array_equal(np.flatnonzero(keep), np.arange(20))
    with pytest.raises(ParticleFileError, match="no column cryoforumOutlierScore"):
        select_particles(make_particles(N, spread_prediction()), Criteria(max_outlier=0.5))


def test_numbers_that_are_none_are_refused(make_particles) -> None:
    prediction = spread_prediction()
    prediction.confidence[4] = np.nan
    with pytest.raises(
        ParticleFileError, match="rlnParticleFigureOfMerit is not a number in 1 of 40 rows, row 5 first"
    ):
        select_particles(make_particles(N, prediction), Criteria(keep_fraction=0.5))


def test_rare_views_are_filled_with_their_best_and_junk_is_not(make_particles) -> None:
    """3000 sure top views, 1000 unsure side views and 1000 side views of junk."""
    rng = np.random.default_rng(1)
    n = 5000
    tilt = np.concatenate([np.degrees(np.arccos(rng.uniform(0.8, 1, 3000))), rng.uniform(75, 105, 2000)])
    turns = rng.uniform(0, 360, (2, n))
    rotation = Rotation.from_euler("ZYZ", np.stack([turns[0], tilt, turns[1]], 1), degrees=True).as_quat()
    confidence = np.concatenate(
        [rng.uniform(0.7, 1, 3000), rng.uniform(0.4, 0.6, 1000), rng.uniform(0, 0.05, 1000)]
    )
    particles = make_particles(n, Prediction(confidence), rotation=rotation)
    plain = select_particles(particles, Criteria(min_confidence=0.8))
    filled = select_particles(particles, Criteria(min_confidence=0.8, balance_views=True))
    assert not plain.keep[3000:].any()
    assert plain.views == {}
    assert (filled.keep >= plain.keep).all()
    assert not filled.keep[4000:].any()
    share = plain.keep.sum() / 4000
    assert filled.keep[3000:4000].mean() == pytest.approx(share, abs=0.06)
    # of each view the best: those left out are no surer than most of those taken
    side = confidence[3000:4000]
    assert np.median(side[filled.keep[3000:4000]]) > np.median(side[~filled.keep[3000:4000]]) + 0.05
    without = view_coverage(rotation[plain.keep]).scf
    assert filled.views["after"] > 2 * without
    assert filled.views["before"] == pytest.approx(view_coverage(rotation).scf)
    assert filled.figures()["view_coverage"].keys() == {"before", "after"}
