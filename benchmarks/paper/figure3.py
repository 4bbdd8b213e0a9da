"""Figure 3: true against predicted pairwise distance of the test particles.

    python -m benchmarks.paper.figure3 --work-dir WORK [--scale full|small]

All pairs of the test particles, for the unit quaternion, the paper preset (QCQP) and the default preset. Uses the
models that table1 left in the same work folder, or trains them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from benchmarks.paper.common import (
    ROWS,
    Bench,
    Data,
    Results,
    bench_of,
    markdown,
    parser,
    predict,
    predicted_table,
    simulate,
    train_row,
    views_of,
)
from cryoforum_plugin.confidence.matching import match_rows

BINS = 8  # of distance, from 0 to pi
Distances = NDArray[np.float64]


def pair_distances(rotation: NDArray[np.float64]) -> Distances:
    """Angles `(n (n - 1) / 2,)` in rad between all pairs of quaternions `(n, 4)`."""
    first, second = np.triu_indices(len(rotation), 1)
    return 2 * np.arccos(np.abs(rotation @ rotation.T)[first, second].clip(0, 1))


def compare(true: Distances, predicted: Distances) -> dict[str, Any]:
    """Mean absolute error, regression line, and bias (mean of predicted minus true) by bin of true distance."""
    slope, intercept = np.polyfit(true, predicted, 1)
    edges = np.linspace(0, np.pi, BINS + 1)
    number = np.clip(np.digitize(true, edges) - 1, 0, BINS - 1)
    difference = predicted - true
    return {
        "pairs": len(true),
        "mean_absolute_error_rad": float(np.abs(difference).mean()),
        "slope": float(slope),
        "intercept_rad": float(intercept),
        "bias_by_bin": [
            {
                "from_rad": float(edges[i]),
                "to_rad": float(edges[i + 1]),
                "pairs": int((number == i).sum()),
                "bias_rad": float(difference[number == i].mean()) if (number == i).any() else None,
            }
            for i in range(BINS)
        ],
    }


def distances(bench: Bench, data: Data, name: str) -> tuple[dict[str, Any], Distances, Distances]:
    """What row `name` was, and true and predicted distances of its test particles."""
    trained = train_row(bench, data, name, seed=1)
    views = views_of(name)[-1]
    errors = predict(bench, data, trained, "test", views)["figures"]["test"]
    predicted = bench.table(data, predicted_table(data, Path(trained["folder"]), "test", views))
    known = bench.table(data, data.test)
    true = known.require_rotation()[match_rows(predicted, known)]
    about = {key: trained[key] for key in ("preset", "settings", "passes", "train")}
    return (
        {**about, "views": views, "test_median_rad": errors["median_rad"]},
        pair_distances(true),
        pair_distances(predicted.require_rotation()),
    )


def main() -> None:
    arguments = parser(__doc__, "figure3").parse_args()
    bench, output = bench_of(arguments, "figure3")
    results = Results("benchmarks.paper.figure3", bench, output)
    data = simulate(bench)
    rows = results.content["rows"] = {}
    densities: dict[str, Any] = {}

    def measure(name: str) -> None:
        about, true, predicted = distances(bench, data, name)
        rows[name] = about | compare(true, predicted)
        densities[name] = np.histogram2d(true, predicted, bins=90, range=[[0, np.pi]] * 2)[0].T

    for name in ("quaternion", "paper", bench.scale.default_row):
        results.attempt(name, lambda name=name: measure(name))
    if rows:
        results.save_figure(picture(rows, densities))
        print(
            markdown(
                ["", "views", "mean absolute error, rad", "slope", "bias of the last bin, rad"],
                [
                    [ROWS[name].label, row["views"], row["mean_absolute_error_rad"], row["slope"], row["bias_by_bin"][-1]["bias_rad"]]
                    for name, row in rows.items()
                ],
            )
        )  # fmt: skip
    results.end()


def picture(rows: dict[str, Any], densities: dict[str, Any]) -> Figure:
    """Density of pairs, the diagonal, and the bias by bin."""
    figure = Figure(figsize=(3.4 * len(rows), 3.6), layout="constrained")
    panels = figure.subplots(1, len(rows), squeeze=False)[0]
    for axes, (name, row) in zip(panels, rows.items(), strict=True):
        density = np.log10(1 + densities[name])
        axes.imshow(density, origin="lower", extent=(0, np.pi, 0, np.pi), cmap="cividis", aspect="equal")
        axes.plot([0, np.pi], [0, np.pi], "w--", linewidth=0.8)
        centres = [(b["from_rad"] + b["to_rad"]) / 2 for b in row["bias_by_bin"] if b["pairs"]]
        biases = [b["bias_rad"] for b in row["bias_by_bin"] if b["pairs"]]
        axes.plot(centres, np.add(centres, biases), "o", color="white", markersize=3)
        axes.set(
            title=f"{ROWS[name].label}\nMAE {row['mean_absolute_error_rad']:.3f} rad, slope {row['slope']:.3f}",
            xlabel="true distance (rad)",
            ylabel="predicted distance (rad)",
        )
        axes.title.set_fontsize("medium")
    return figure


if __name__ == "__main__":
    main()
