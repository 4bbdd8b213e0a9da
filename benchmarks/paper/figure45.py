"""Figures 4 and 5: the paper's statistics against the error, and maps from filtered orientations.

    python -m benchmarks.paper.figure45 --protein 70S|betagal --work-dir WORK [--scale full|small]

Figure 4 is the 70S ribosome (C1, the data and models of table1), filtered by statistic (7); Figure 5 is
beta-galactosidase (D2), filtered by (6). Of the test particles 25 % are left out, at the quantile of the
validation particles. FSC of the two half sets at 0.143, for the paper preset (1 view) and the default preset.
"""

from __future__ import annotations

from pathlib import Path

from benchmarks.common import MAP, SHARED
from benchmarks.paper import maps
from benchmarks.paper.common import Results, bench_of, parser, simulate

# resolutions in Å at FSC 0.143 and median error; the paper's beta-galactosidase map has 2.49 Å a pixel
PUBLISHED = {
    "70S": {"true": 11.2, "estimated": 14.4, "filtered": 13.1, "test_median_rad": 0.0742},
    "betagal": {"true": 5.2, "estimated": 5.2, "filtered": 5.2, "test_median_rad": 0.05},
}
STATISTIC = {"70S": "trace", "betagal": "lambda_max"}
PROTEINS: dict[str, tuple[Path, float | None, str]] = {
    "70S": (MAP, 11.0, "C1"),
    "betagal": (SHARED / "maps" / "betagal_experimental_D2_100px_3.54A.mrc", None, "D2"),
}


def main() -> None:
    options = parser(__doc__, "figure4|figure5")
    options.add_argument("--protein", choices=list(PROTEINS), default="70S")
    options.add_argument("--map", type=Path, help="another map of the protein")
    arguments = options.parse_args()
    protein = arguments.protein
    bench, output = bench_of(arguments, "figure4" if protein == "70S" else "figure5")
    map_file, low_pass_A, symmetry = PROTEINS[protein]
    map_file = arguments.map or map_file
    results = Results("benchmarks.paper.figure45", bench, output, map_file.parent)
    data = simulate(bench, protein, 0.1, map_file, low_pass_A, symmetry)
    results.content |= {"map": map_file.name, "symmetry": symmetry, "filtered_by": STATISTIC[protein], "published": PUBLISHED[protein]}  # fmt: skip
    rows = results.content["rows"] = {}
    for name in ("paper", bench.scale.default_row):
        results.attempt(
            name,
            lambda name=name: rows.update({name: maps.maps_of_row(bench, data, name, STATISTIC[protein])}),
        )
    if rows:
        print(maps.table(rows, PUBLISHED[protein], STATISTIC[protein]))
        results.save_figure(maps.picture(bench, data, rows, PUBLISHED[protein], STATISTIC[protein]))
    results.end()


if __name__ == "__main__":
    main()
