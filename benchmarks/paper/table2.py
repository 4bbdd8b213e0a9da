"""Supplementary Table 2: test error at six signal-to-noise ratios.

    python -m benchmarks.paper.table2 --work-dir WORK [--scale full|small] [--snr VALUE ...]

Protocol and work folder as of table1, one training of the paper preset and one of the default preset at each SNR.
"""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure

from benchmarks.paper.common import (
    Results,
    bench_of,
    data_name,
    is_trained,
    log_axis,
    markdown,
    measure_run,
    parser,
    simulate,
)
from cryoforum_plugin.charts.charts import BLUE, GREEN, ORANGE
from cryoforum_plugin.settings import DEFAULT_VIEWS

PUBLISHED = {"0.1": 0.0742, "0.2": 0.0507, "0.4": 0.0393, "0.7": 0.0349, "1": 0.0324, "inf": 0.0221}
COLUMNS = (("paper", "1", "paper preset", BLUE), ("default", "1", "default, 1 view", GREEN),
           ("default", str(DEFAULT_VIEWS), f"default, {DEFAULT_VIEWS} views", GREEN))  # fmt: skip


def test_median(row: dict[str, Any], preset: str, views: str) -> float | None:
    """Median test error (rad), None where it was not measured."""
    return row[preset]["views"][views]["test"]["median_rad"] if preset in row else None


def table(rows: dict[str, Any]) -> str:
    """The table in Markdown."""
    body = [
        ["clean" if snr == "inf" else snr, row["published_rad"], *(test_median(row, preset, views) for preset, views, _, _ in COLUMNS),
         "yes" if row.get("default_at_most_half_of_published") else "no"]
        for snr, row in rows.items()
    ]  # fmt: skip
    return markdown(["SNR", "published", *(label for _, _, label, _ in COLUMNS), "default ≤ half"], body)


def picture(rows: dict[str, Any]) -> Figure:
    """Error against SNR, by network."""
    figure = Figure(figsize=(5.2, 3.6), layout="constrained")
    axes = figure.subplots()
    position = range(len(rows))
    axes.plot(position, [row["published_rad"] for row in rows.values()], "D--", color=ORANGE, label="published", fillstyle="none")  # fmt: skip
    for preset, views, label, colour in COLUMNS:
        points = [(x, test_median(row, preset, views)) for x, row in enumerate(rows.values())]
        points = [point for point in points if point[1] is not None]
        if points:
            filled = "none" if preset == "default" and views == "1" else "full"
            axes.plot(*zip(*points, strict=True), "o-", color=colour, label=label, fillstyle=filled)
    axes.set_xticks(position, ["clean" if snr == "inf" else snr for snr in rows])
    axes.set(xlabel="signal-to-noise ratio", ylabel="median test error (rad)")
    log_axis(axes.yaxis)
    axes.legend(frameon=False, fontsize="small")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def main() -> None:
    options = parser(__doc__, "table2")
    options.add_argument(
        "--snr", nargs="+", choices=list(PUBLISHED), default=list(PUBLISHED), help="train only at these"
    )
    arguments = options.parse_args()
    bench, output = bench_of(arguments, "table2")
    results = Results("benchmarks.paper.table2", bench, output)
    rows = results.content["rows"] = {}

    def measure(snr: str, preset: str, name: str) -> None:
        run = measure_run(bench, simulate(bench, snr=float(snr)), name, 1, ("test",))
        row = rows.setdefault(snr, {"published_rad": PUBLISHED[snr]})
        row[preset] = {key: run[key] for key in ("settings", "passes", "train", "views")}
        if preset == "default":
            error = test_median(row, preset, str(DEFAULT_VIEWS))
            assert error is not None
            row["default_at_most_half_of_published"] = error <= PUBLISHED[snr] / 2

    for snr in PUBLISHED:
        for preset, name in (("default", bench.scale.default_row), ("paper", "paper")):
            if snr not in arguments.snr and not is_trained(bench, data_name(float(snr)), name, 1):
                continue
            results.attempt(
                f"SNR {snr}, {preset}",
                lambda snr=snr, preset=preset, name=name: measure(snr, preset, name),
            )
    results.show(rows, table, picture)


if __name__ == "__main__":
    main()
