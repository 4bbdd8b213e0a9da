"""Maps from true, estimated and filtered orientations, and how well the paper's statistics rank the errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from benchmarks.common import run
from benchmarks.paper.common import (
    ROWS,
    Bench,
    Data,
    log_axis,
    markdown,
    predict,
    predicted_table,
    train_row,
    views_of,
)
from cryoforum_plugin.charts.charts import BLUE, COLOURS, GREY, ORANGE
from cryoforum_plugin.confidence.evaluation import angular_errors
from cryoforum_plugin.confidence.matching import match_rows
from cryoforum_plugin.confidence.ranking import spearman
from cryoforum_plugin.formats import write_particles
from cryoforum_plugin.geometry import symmetry_group

STATISTICS = {"lambda_max": "statistic (6)", "trace": "statistic (7)"}
KEEP = 0.75
LEVEL = 0.143


def with_known_shifts(bench: Bench, data: Data, predicted: Path, output: Path) -> None:
    """Copy table `predicted` with the shifts of the test table: the paper reconstructs with known shifts."""
    particles, known = bench.table(data, predicted), bench.table(data, data.test)
    moved = particles.with_poses(particles.require_rotation(), known.shift_A[match_rows(particles, known)])
    write_particles(moved, bench.work / output, overwrite=True)


def reconstruct(bench: Bench, data: Data, table: Path, folder: Path) -> dict[str, Any]:
    """Reconstruct `table` into `folder`, unless that was done; return the figures of `reconstruct`."""

    def make() -> dict[str, Any]:
        figures = bench.work / folder.parent / "reconstruct.json"
        run(
            bench.work, "reconstruct", table, "-o", folder, "--symmetry", data.symmetry, "--json", figures,
            "--device", bench.device, "--overwrite", "--quiet", *data.root_option, *data.ctf_options,
        )  # fmt: skip
        result: dict[str, Any] = json.loads(figures.read_text())
        return result

    return bench.cached(bench.work / folder.with_suffix(".json"), {"table": str(table)}, make)


def maps_of_row(bench: Bench, data: Data, name: str, statistic: str, seed: int = 1) -> dict[str, Any]:
    """Train, predict the test particles, select by both statistics, reconstruct; return all figures.

    Of the estimated orientations there are maps with the known shifts, as in the paper, and with the
    network's own; `statistic` filters the latter.
    """
    trained = train_row(bench, data, name, seed)
    folder, views = Path(trained["folder"]), views_of(name)[-1]
    predicted = predict(bench, data, trained, "test", views)
    tables = {"estimated": predicted_table(data, folder, "test", views)}
    kept: dict[str, Any] = {}
    for name_of in STATISTICS:
        output = tables[f"filtered_{name_of}"] = folder / f"filtered_{name_of}{data.suffix}"
        kept[name_of] = _select(bench, data, tables["estimated"], output, name_of, views)
    maps = {"true": reconstruct(bench, data, data.test, Path(data.name) / "map_true")}
    for which, table in tables.items():
        known = table.with_stem(f"{which}_known_shifts")
        with_known_shifts(bench, data, table, known)
        maps[which] = reconstruct(bench, data, known, folder / f"map_{which}")
        if which in ("estimated", f"filtered_{statistic}"):
            maps[f"{which}_own_shifts"] = reconstruct(bench, data, table, folder / f"map_{which}_own_shifts")
    values, error_rad = statistics_and_errors(bench, data, tables["estimated"])
    return {
        **{key: trained[key] for key in ("preset", "settings", "passes", "folder", "train")},
        "views": views,
        "test": {key: predicted[key]["test"] for key in ("figures", "figures_without_symmetry")},
        "spearman_with_error": {key: spearman(value, error_rad) for key, value in values.items()},
        "filtered": kept,
        "maps": maps,
    }


def _select(
    bench: Bench, data: Data, table: Path, output: Path, statistic: str, views: int
) -> dict[str, Any]:
    """Filter as the paper does, at the quantile of the validation particles; return what is left."""
    run(
        bench.work, "select", table, "-o", output, "--statistic", statistic, "--quantile", KEEP, "--model",
        table.parent / "model", "--views", views, "--overwrite", "--quiet", *data.root_option,
    )  # fmt: skip
    _, error_rad = statistics_and_errors(bench, data, output)
    return {
        "n": len(error_rad),
        "median_rad": float(np.median(error_rad)),
        "mean_rad": float(error_rad.mean()),
    }


def statistics_and_errors(
    bench: Bench, data: Data, table: Path
) -> tuple[dict[str, NDArray[np.float64]], NDArray[np.float64]]:
    """Both statistics `(n,)` and the angular errors `(n,)` in rad of a predicted table."""
    particles, known = bench.table(data, table), bench.table(data, data.test)
    reference = known.require_rotation()[match_rows(particles, known)]
    error_rad = angular_errors(particles.require_rotation(), reference, symmetry_group(data.symmetry))
    return {key: getattr(particles.prediction, key) for key in STATISTICS}, error_rad


def picture(
    bench: Bench, data: Data, rows: dict[str, Any], published: dict[str, float], statistic: str
) -> Figure:
    """A line of panels for each row: statistics against error, central slices, FSC."""
    figure = Figure(figsize=(19, 3.1 * len(rows)), layout="constrained")
    panels = figure.subplots(len(rows), 7, squeeze=False, width_ratios=[1, 1, 1, 0.85, 0.85, 0.85, 1.1])
    for line, (name, row) in zip(panels, rows.items(), strict=True):
        table = predicted_table(data, Path(row["folder"]), "test", row["views"])
        values, error_rad = statistics_and_errors(bench, data, table)
        for axes, key in zip(line, STATISTICS, strict=False):
            axes.plot(error_rad, values[key], ".", color=BLUE, markersize=2, alpha=0.5)
            axes.set(xlabel="error (rad)", ylabel=STATISTICS[key])
            log_axis(axes.xaxis)
            axes.set_xlim(
                np.quantile(error_rad, 0.005), error_rad.max() * 1.1
            )  # the few below crowd the ticks
        line[0].set_title(f"{ROWS[name].label}, {row['views']} view" + "s" * (row["views"] > 1))
        _both_statistics(line[2], values, error_rad)
        folders = {
            "true": Path(data.name) / "map_true",
            "estimated": Path(row["folder"]) / "map_estimated",
            "filtered": Path(row["folder"]) / f"map_filtered_{statistic}",
        }
        figures = {"true": row["maps"]["true"], "estimated": row["maps"]["estimated"], "filtered": row["maps"][f"filtered_{statistic}"]}  # fmt: skip
        for axes, (which, folder) in zip(line[3:6], folders.items(), strict=True):
            with mrcfile.open(bench.work / folder / "map.mrc") as file:
                axes.imshow(file.data[len(file.data) // 2], cmap="gray", origin="lower")
            resolution = f"{figures[which]['resolution_0143_A']:.1f} Å [paper {published[which]}]"
            axes.set(title=f"{which}, {resolution}", xticks=[], yticks=[])
            axes.title.set_fontsize("small")
        _fsc(line[6], {which: bench.work / folder / "fsc.csv" for which, folder in folders.items()})
    return figure


def _both_statistics(
    axes: Axes, values: dict[str, NDArray[np.float64]], error_rad: NDArray[np.float64]
) -> None:
    """(6) against (7), coloured by quarter of the error."""
    quarter = np.searchsorted(np.quantile(error_rad, (0.25, 0.5, 0.75)), error_rad)
    for number in range(4):
        chosen = quarter == number
        axes.plot(values["lambda_max"][chosen], values["trace"][chosen], ".", markersize=2,
                  color=COLOURS[(0, 2, 1, 3)[number]], label=f"{25 * number}–{25 * number + 25} % of errors")  # fmt: skip
    axes.set(xlabel=STATISTICS["lambda_max"], ylabel=STATISTICS["trace"])
    axes.legend(fontsize="x-small", markerscale=4, frameon=False)


def _fsc(axes: Axes, files: dict[str, Path]) -> None:
    for (which, file), colour in zip(files.items(), (GREY, BLUE, ORANGE), strict=True):
        columns = np.genfromtxt(file, delimiter=",", names=True)
        axes.plot(columns["frequency_per_A"], columns["fsc"], color=colour, label=which)
    axes.axhline(LEVEL, color=GREY, linewidth=0.8, linestyle=":")
    axes.set(xlabel="spatial frequency (1/Å)", ylabel="FSC", ylim=(-0.05, 1.02))
    axes.legend(fontsize="small", frameon=False)


def table(rows: dict[str, Any], published: dict[str, float], statistic: str) -> str:
    """Errors and resolutions in Markdown; the first line is the paper's."""
    own = f"filtered_{statistic}"
    body: list[list[object]] = [
        ["published", published.get("test_median_rad"), None, None, published["true"], published["estimated"], published["filtered"], None, None]
    ]  # fmt: skip
    for name, row in rows.items():
        maps = {which: float(f"{figures['resolution_0143_A']:.1f}") for which, figures in row["maps"].items()}
        ranking = row["spearman_with_error"]
        body.append(
            [f"{ROWS[name].label}, {row['views']} view" + "s" * (row["views"] > 1), row["test"]["figures"]["median_rad"], ranking["lambda_max"], ranking["trace"],
             maps["true"], maps["estimated"], maps[own], maps["estimated_own_shifts"], maps[f"{own}_own_shifts"]]
        )  # fmt: skip
    header = ["", "median error, rad", "rank correlation of (6)", "of (7)", "true, Å", "estimated, Å", "filtered, Å",
              "estimated with its own shifts, Å", "filtered with its own shifts, Å"]  # fmt: skip
    return markdown(header, body)
