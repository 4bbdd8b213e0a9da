"""Table 1: rotational representation, training strategy, blurring layer and pooling.

    python -m benchmarks.paper.table1 --work-dir WORK [--scale full|small] [--runs N] [--rows NAME ...]

Every row is `train --preset paper` with one setting changed, on the same 5,000 simulated images (SNR 0.1, split
50/17/33); runs differ in the seed of the training. Median errors of the training, validation and test
particles are in rad; reported are their median and variance over the runs, beside the paper's. `all_pairs` (every
pair of a batch from one pass of the network) and the default preset are not in the paper.
"""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure

from benchmarks.paper.common import (
    ROWS,
    SETS,
    Results,
    bench_of,
    is_trained,
    log_axis,
    markdown,
    measure_run,
    parser,
    simulate,
    summarise,
)
from cryoforum_plugin.charts.charts import BLUE, GREY, ORANGE

GROUPS = {
    "Rotational representation": {
        "quaternion": "Unit quaternion",
        "6d": "6D representation",
        "paper": "Modified QCQP",
    },
    "Training strategy": {
        "single": "Single branch",
        "siamese": "Siamese network",
        "paper": "Siamese network with auxiliary loss",
        "all_pairs": "All pairs of a batch (ours)",
    },
    "Blurring layer": {"blur_none": "None", "blur_gaussian": "Gaussian filter", "paper": "Low-pass filter"},
    "Global pooling": {
        "pooling_max": "Max",
        "pooling_max_average": "Max with average",
        "paper": "Generalised mean",
    },
    "Default preset": {"default": "same number of passes", "default_as_shipped": "as it is"},
}

# median (variance) of training, validation and test, as printed; two misprints: the test error of the
# quaternion, 0.01081 (its text and validation error say 0.1081), and the variances, which can only be
# standard deviations
PUBLISHED = {
    "quaternion": ((0.0217, 0.0006), (0.1071, 0.0021), (0.1081, 0.0015)),
    "6d": ((0.0196, 0.0007), (0.0943, 0.0022), (0.0981, 0.0018)),
    "paper": ((0.0162, 0.0005), (0.0696, 0.0018), (0.0742, 0.0016)),
    "single": ((0.0430, 0.0011), (0.1119, 0.0024), (0.1166, 0.0031)),
    "siamese": ((0.0131, 0.0001), (0.0750, 0.0013), (0.0787, 0.0006)),
    "blur_none": ((0.0166, 0.0009), (0.0744, 0.0057), (0.0789, 0.0048)),
    "blur_gaussian": ((0.01705, 0.0005), (0.0699, 0.0004), (0.0744, 0.0004)),
    "pooling_max": ((0.0189, 0.0009), (0.0731, 0.0013), (0.0791, 0.0009)),
    "pooling_max_average": ((0.0307, 0.0016), (0.0767, 0.0016), (0.0816, 0.0024)),
}


def published(name: str) -> dict[str, Any] | None:
    """Published figures of a row by set, or None."""
    if name not in PUBLISHED:
        return None
    return {
        part: {"median": median, "variance_as_printed": variance}
        for part, (median, variance) in zip(SETS, PUBLISHED[name], strict=True)
    }


def lines(rows: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """(group, label, row, views) of every line of the table that there is something to say about."""
    return [
        (group, label, name, views)
        for group, members in GROUPS.items()
        for label, name in ((label, name) for name, label in members.items())
        if name in rows
        for views in rows[name]["summary"]
    ]


def table(rows: dict[str, Any]) -> str:
    """The table in Markdown: measured, and in brackets published."""
    body = []
    for group, label, name, views in lines(rows):
        row, cells = rows[name], list[str]()
        for part in SETS:
            figures = row["summary"][views][part]
            spread = "" if figures["variance"] is None else f" ± {figures['standard_deviation']:.4f}"
            paper = "" if row["published"] is None else f" [{row['published'][part]['median']:.4f}]"
            cells.append(f"{figures['median']:.4f}{spread}{paper}")
        seconds = sum(run["train"]["seconds"] for run in row["runs"]) / len(row["runs"])
        body.append([group, label, views, row["passes"], len(row["runs"]), *cells, f"{seconds:.0f}"])
    header = ["", "", "views", "passes", "runs", *SETS, "s/training"]
    return markdown(header, body)


def picture(rows: dict[str, Any]) -> Figure:
    """Point chart: every run small, their median large, the published value beside."""
    chosen = lines(rows)[::-1]
    figure = Figure(figsize=(10, 0.8 + 0.3 * len(chosen)), layout="constrained")
    panels = figure.subplots(1, len(SETS), sharey=True, squeeze=False)[0]
    for axes, part in zip(panels, SETS, strict=True):
        for height, (_, _, name, views) in enumerate(chosen):
            values = rows[name]["summary"][views][part]
            axes.plot(values["runs"], [height] * len(values["runs"]), ".", color=BLUE, markersize=4)
            axes.plot(values["median"], height, "o", color=BLUE, label="here" if height == 0 else None)
        paper = [
            (rows[name]["published"][part]["median"], height)
            for height, (_, _, name, _) in enumerate(chosen)
            if rows[name]["published"]
        ]
        if paper:
            axes.plot(*zip(*paper, strict=True), "D", color=ORANGE, fillstyle="none", label="paper")
        axes.set(title=part, xlabel="median error (rad)")
        log_axis(axes.xaxis)
        axes.grid(axis="y", color=GREY, alpha=0.2)
    labels = [f"{group}: {label}" + f" ({views} views)" * (views != "1") for group, label, _, views in chosen]
    panels[0].set_yticks(range(len(chosen)), labels)
    panels[-1].legend(fontsize="small")
    return figure


def main() -> None:
    options = parser(__doc__, "table1")
    options.add_argument("--runs", type=int, help="trainings of each row  [default: by scale]")
    options.add_argument("--rows", nargs="+", choices=list(ROWS), help="train only these")
    arguments = options.parse_args()
    bench, output = bench_of(arguments, "table1")
    results = Results("benchmarks.paper.table1", bench, output)
    data = simulate(bench)
    shipped = {"default_as_shipped"} - {bench.scale.default_row}
    names = arguments.rows or [name for name in ROWS if name not in shipped]
    rows = results.content["rows"] = {}

    def measure(name: str, seed: int) -> None:
        run = measure_run(bench, data, name, seed, ("train", "test"))
        row = rows.setdefault(
            name,
            {key: run[key] for key in ("preset", "settings", "passes")}
            | {"published": published(name), "runs": []},
        )
        row["runs"].append({key: run[key] for key in ("seed", "train", "views")})
        row["summary"] = summarise(row["runs"])

    for seed in range(1, (arguments.runs or bench.scale.runs) + 1):
        for name in (n for n in ROWS if n in names or is_trained(bench, data.name, n, seed)):
            results.attempt(f"{name}, seed {seed}", lambda name=name, seed=seed: measure(name, seed))
    results.show(rows, table, picture)


if __name__ == "__main__":
    main()
