"""Data, trainings and tables that the paper's benchmarks share; every step is cached and so resumable."""

from __future__ import annotations

import argparse
import csv
import io
import json
import math
import shutil
import signal
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from PIL import Image

from benchmarks.common import (
    COUNT,
    MAP,
    RESULTS,
    TRAINING,
    VALIDATION,
    CommandFailed,
    command_line,
    machine,
    run,
    write_results,
)
from cryoforum_plugin.confidence.evaluation import evaluate
from cryoforum_plugin.formats import read_particles
from cryoforum_plugin.learning.epochs import default_epochs, epoch_images
from cryoforum_plugin.learning.pairs import pairs_in_epoch
from cryoforum_plugin.particles import IntArray, ParticleSet
from cryoforum_plugin.particles.splitting import split_rows
from cryoforum_plugin.settings import DEFAULT_VIEWS, preset, with_values

SETS = ("training", "validation", "test")
KEPT = TRAINING + VALIDATION
VALIDATION_FRACTION = round(VALIDATION / KEPT, 4)
DATA_SEED = 7


@dataclass(frozen=True)
class Scale:
    """How much work a benchmark does.

    count : simulated particles. runs : trainings of every row of Table 1. passes : images that a training shows to
    the network, the same for every row. epochs : of the siamese rows, over which the passes are spread.
    single_epochs : of the single branch, None = those that make up the passes. paper, default : settings that replace those of the
    two presets. default_row : which row stands for the default preset in the other table and the figures.
    """

    count: int
    runs: int
    passes: int
    epochs: int
    single_epochs: int | None = None
    paper: dict[str, Any] = field(default_factory=dict)
    default: dict[str, Any] = field(default_factory=dict)
    default_row: str = "default"


SCALES = {
    # the preset as it is: 50 epochs of 1 % of all pairs of 2,500 images; 1,300 epochs for the single branch
    "full": Scale(
        COUNT,
        runs=5,
        passes=6_250_000,
        epochs=50,
        single_epochs=1300,
        default_row="default_as_shipped",
    ),
    "small": Scale(
        COUNT,
        runs=2,
        passes=80_000,
        epochs=8,
        # 40 px without the last two convolutions: the last map still has 2 x 2 pixels for the pooling to choose from
        paper={
            "images.size_px": 40,
            "network.channels": 8,
            "network.final_convolutions": 0,
            "network.dropout": 0.0,  # 0.3 of so narrow a network's features keeps it from learning at all
            "training.batch_size": 64,
        },
    ),
    # shows that a command runs; its figures mean nothing
    "tiny": Scale(
        300,
        runs=1,
        passes=2048,
        epochs=1,
        paper={"images.size_px": 64, "network.channels": 2, "training.batch_size": 32},
        default={"network.channels": 4, "network.features": 8, "network.hidden": 16},
    ),
}

_NO_DISTANCE = {"loss.distance": 0, "loss.curriculum": False}


@dataclass(frozen=True)
class Row:
    """A configuration: a preset and what is different from it. shipped : with the preset's own passes."""

    label: str
    preset: str = "paper"
    settings: dict[str, Any] = field(default_factory=dict)
    shipped: bool = False


ROWS = {
    "paper": Row("paper preset"),
    "default": Row("default preset", "default"),
    "default_as_shipped": Row("default preset, own number of passes", "default", shipped=True),
    "quaternion": Row("unit quaternion", settings={"network.representation": "quaternion"}),
    "6d": Row("6D", settings={"network.representation": "6d"}),
    "single": Row("single branch", settings={"training.branches": "single", **_NO_DISTANCE}),
    "siamese": Row("siamese, no distance", settings=_NO_DISTANCE),
    "all_pairs": Row("all pairs of a batch", settings={"training.branches": "all_pairs"}),
    "blur_none": Row("no blur", settings={"network.blur": "none"}),
    "blur_gaussian": Row("Gaussian", settings={"network.blur": "gaussian"}),
    "pooling_max": Row("max", settings={"network.pooling": "max"}),
    "pooling_max_average": Row("max with average", settings={"network.pooling": "max_average"}),
}


@dataclass(frozen=True)
class Data:
    """Particles to learn from and to test on.

    name : its folder below the work folder. train, test : tables, relative to the work folder. data_root :
    where image paths start, None = the work folder. read_options : of train and predict. ctf_options : of train
    and reconstruct. settings : of the training, beside those of the row.
    """

    name: str
    train: Path
    test: Path
    symmetry: str = "C1"
    data_root: Path | None = None
    read_options: tuple[str, ...] = ()
    ctf_options: tuple[str, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)

    def with_settings(self, settings: dict[str, Any]) -> Data:
        return replace(self, settings=settings)

    @property
    def suffix(self) -> str:
        return self.train.suffix

    @property
    def root_option(self) -> list[object]:
        return [] if self.data_root is None else ["--data-root", self.data_root]


@dataclass(frozen=True)
class Bench:
    """Where, how much and on what device a benchmark runs."""

    work: Path
    scale_name: str
    device: str
    passes: int | None = None

    @property
    def scale(self) -> Scale:
        scale = SCALES[self.scale_name]
        return scale if self.passes is None else replace(scale, passes=self.passes)

    def cached(
        self, file: Path, identity: dict[str, Any], make: Callable[[], dict[str, Any]]
    ) -> dict[str, Any]:
        """What `make` returned when `file` was written; refuses a file made from something else."""
        identity = json.loads(json.dumps(identity))
        if file.exists():
            content = json.loads(file.read_text())
            if content["identity"] != identity:
                raise SystemExit(f"{file} was made with other settings; give another --work-dir")
            return content["result"]  # type: ignore[no-any-return]
        result = make()
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_name(file.name + ".part")
        temporary.write_text(json.dumps({"identity": identity, "result": result}, indent=2) + "\n")
        temporary.replace(file)
        return result

    def table(self, data: Data, path: Path) -> ParticleSet:
        """Read a particle table of the work folder."""
        return read_particles(self.work / path, data.data_root or self.work)


def data_name(snr: float, protein: str = "70S") -> str:
    """Folder of simulated data."""
    return f"{protein}_snr{snr:g}"


def simulate(
    bench: Bench,
    name: str = "70S",
    snr: float = 0.1,
    map_file: Path = MAP,
    low_pass_A: float | None = 11,
    symmetry: str = "C1",
) -> Data:
    """Simulate the paper's protocol; `name` and SNR name the data."""
    if not map_file.exists():
        raise SystemExit(f"no map {map_file}; give one with --map or set CRYOFORUM_SHARED_DATA")
    folder = Path(data_name(snr, name))
    low_pass = [] if low_pass_A is None else ["--low-pass", f"{low_pass_A:g}"]
    symmetric = [] if symmetry == "C1" else ["--symmetry", symmetry, "--asymmetric-unit"]
    options = ["--count", bench.scale.count, "--snr", snr, *low_pass, *symmetric]
    options += ["--split", KEPT, round(1 - KEPT, 4), "--seed", DATA_SEED]
    bench.cached(
        bench.work / folder / "simulate.json",
        {"map": map_file.name, "options": list(map(str, options))},
        lambda: run(
            bench.work, "simulate", map_file.resolve(), "-o", folder / "particles", *options, "--overwrite",
            "--quiet", "--device", bench.device,
        ),
    )  # fmt: skip
    tables = folder / "particles"
    return Data(str(folder), tables / "train.star", tables / "test.star", symmetry)


@dataclass(frozen=True)
class Plan:
    """A training: preset, replaced settings, and the number of images it shows to the network."""

    preset: str
    settings: dict[str, Any]
    passes: int


def plan(scale: Scale, name: str, training_count: int, extra: dict[str, Any] | None = None) -> Plan:
    """Settings of row `name` with epochs and pairs that make up the passes of `scale`."""
    row = ROWS[name]
    values = {**(scale.paper if row.preset == "paper" else scale.default), **row.settings, **(extra or {})}
    settings = with_values(preset(row.preset), values).training
    if row.shipped:
        shown = epoch_images(training_count, settings) // settings.batch_size * settings.batch_size
        epochs = settings.epochs or default_epochs(training_count, settings)
        return Plan(row.preset, values, epochs * shown)
    if settings.branches == "siamese":
        fraction = float(f"{scale.passes / 2 / scale.epochs / training_count**2:.6g}")
        pairs = pairs_in_epoch(training_count, fraction) // settings.batch_size * settings.batch_size
        values |= {"training.epochs": scale.epochs, "training.pair_fraction": fraction}
        return Plan(row.preset, values, 2 * pairs * scale.epochs)
    shown = max(1, epoch_images(training_count, settings) // settings.batch_size) * settings.batch_size
    wanted = scale.single_epochs if name == "single" else None
    values["training.epochs"] = wanted or max(1, round(scale.passes / shown))
    return Plan(row.preset, values, values["training.epochs"] * shown)


def row_folder(data_name: str, name: str, seed: int) -> Path:
    """Where a training is kept, relative to the work folder."""
    return Path(data_name) / f"{name}_seed{seed}"


def is_trained(bench: Bench, data_name: str, name: str, seed: int) -> bool:
    """Whether an earlier command left this training in the work folder."""
    return (bench.work / row_folder(data_name, name, seed) / "train.json").exists()


def train_row(bench: Bench, data: Data, name: str, seed: int) -> dict[str, Any]:
    """Train row `name`, unless that was done; return its settings, passes, seconds and folder."""
    folder = row_folder(data.name, name, seed)
    training_rows = _rows_of_sets(bench.table(data, data.train), "train", seed)["training"]
    planned = plan(bench.scale, name, len(training_rows), data.settings)

    def make() -> dict[str, Any]:
        (bench.work / folder).mkdir(parents=True, exist_ok=True)
        assignments = [f"--set={key}={value}" for key, value in planned.settings.items()]
        step = run(
            bench.work, "train", data.train, "-o", folder / "model", "--preset", planned.preset, *assignments,
            "--symmetry", data.symmetry, "--validation-fraction", VALIDATION_FRACTION, "--seed", seed, "--resume",
            "--device", bench.device, "--quiet", *data.root_option, *data.read_options, *data.ctf_options,
        )  # fmt: skip
        shutil.rmtree(bench.work / folder / "model" / "checkpoint", ignore_errors=True)
        with (bench.work / folder / "model" / "metrics.csv").open() as file:
            loop_seconds = float(list(csv.DictReader(file))[-1]["seconds"])
        return {**step, "training_loop_seconds": round(loop_seconds, 1)}

    identity = {"preset": planned.preset, "settings": planned.settings, "seed": seed, "scale": bench.scale_name}  # fmt: skip
    step = bench.cached(bench.work / folder / "train.json", identity, make)
    return {
        "seed": seed,
        "preset": planned.preset,
        "settings": planned.settings,
        "passes": planned.passes,
        "folder": str(folder),
        "train": step,
    }


def _rows_of_sets(particles: ParticleSet, part: str, seed: int) -> dict[str, IntArray]:
    """Rows of the training and validation particles in the train table, of the test particles in the other."""
    if part == "test":
        return {"test": np.arange(len(particles))}
    return dict(zip(SETS, split_rows(particles, VALIDATION_FRACTION, seed), strict=False))


def views_of(name: str) -> tuple[int, ...]:
    """Test-time views that a row is predicted with: the paper has one."""
    return (1,) if ROWS[name].preset == "paper" else (1, DEFAULT_VIEWS)


def predicted_table(data: Data, folder: Path, part: str, views: int) -> Path:
    """Table that `predict` writes, relative to the work folder."""
    return folder / f"{part}_views{views}{data.suffix}"


def predict(bench: Bench, data: Data, trained: dict[str, Any], part: str, views: int) -> dict[str, Any]:
    """Predict the "train" or the "test" table; return the figures of `cryoforum evaluate` for each of its sets.

    figures : modulo the point group. figures_without_symmetry : against the labels as they are, as in the paper.
    """
    folder, table = Path(trained["folder"]), data.test if part == "test" else data.train
    output = predicted_table(data, folder, part, views)

    def make() -> dict[str, Any]:
        step = run(
            bench.work, "predict", "--no-refine", folder / "model", table, "-o", output, "--views", views, "--overwrite",
            "--device", bench.device, "--quiet", *data.root_option, *data.read_options,
        )  # fmt: skip
        predicted, known = bench.table(data, output), bench.table(data, table)
        result: dict[str, Any] = {"predict": step}
        for key, symmetry in (("figures", data.symmetry), ("figures_without_symmetry", "C1")):
            result[key] = {
                name: evaluate(predicted[rows], known, symmetry)[0]
                for name, rows in _rows_of_sets(known, part, trained["seed"]).items()
            }
        return result

    return bench.cached(bench.work / output.with_suffix(".json"), {"table": str(table)}, make)


def measure_run(bench: Bench, data: Data, name: str, seed: int, parts: Sequence[str]) -> dict[str, Any]:
    """Train row `name` with `seed`; return settings, times and errors of the sets in `parts` by number of views."""
    trained = train_row(bench, data, name, seed)
    errors: dict[str, Any] = {}
    for views in views_of(name):
        errors[str(views)] = {}
        for part in parts:
            errors[str(views)] |= predict(bench, data, trained, part, views)["figures"]
        medians = ", ".join(f"{key} {value['median_rad']:.4f}" for key, value in errors[str(views)].items())
        print(f"{data.name} {name} seed {seed} views {views}: {medians} rad", flush=True)
    return {**trained, "views": errors}


def over_runs(values: Sequence[float]) -> dict[str, Any]:
    """Median, variance and standard deviation over runs; the last two need more than one."""
    several = len(values) > 1
    return {
        "runs": list(values),
        "median": statistics.median(values),
        "variance": statistics.variance(values) if several else None,
        "standard_deviation": math.sqrt(statistics.variance(values)) if several else None,
    }


def summarise(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Medians (rad) of the runs of a row, by number of views and set, over the runs."""
    return {
        views: {part: over_runs([run["views"][views][part]["median_rad"] for run in runs]) for part in SETS}
        for views in runs[0]["views"]
    }


class Results:
    """The JSON of a benchmark, written anew after every step, so that a cut session leaves what it has."""

    def __init__(self, module: str, bench: Bench, output: Path, *folders: Path) -> None:
        self.output, self.folders = output, (bench.work, *folders)
        self.content: dict[str, Any] = {
            "command": command_line(module),
            "machine": machine(),
            "device": bench.device,
            "scale": bench.scale_name,
            "failed": {},
        }
        self.failed: dict[str, str] = self.content["failed"]

    def attempt(self, name: str, step: Callable[[], None]) -> None:
        """Do a step and write; a command that fails is noted, and the others go on."""
        try:
            step()
        except CommandFailed as error:
            print(f"{name}: {error}", flush=True)
            self.failed[name] = str(error)
        self.write()

    def write(self) -> None:
        write_results(self.output, self.content, *self.folders)

    def save_figure(self, figure: Figure) -> None:
        """Write the picture beside the JSON, with a small palette to keep the file small."""
        buffer = io.BytesIO()
        figure.savefig(buffer, dpi=100)
        Image.open(buffer).convert("RGB").quantize(256, Image.Quantize.FASTOCTREE).save(
            self.output.with_suffix(".png"), optimize=True
        )

    def show(
        self,
        rows: dict[str, Any],
        table: Callable[[dict[str, Any]], str],
        picture: Callable[[dict[str, Any]], Figure],
    ) -> None:
        """Print the table, save the picture, and end."""
        if rows:
            print(table(rows))
            self.save_figure(picture(rows))
        self.end()

    def end(self) -> None:
        """Exit with an error where steps failed."""
        if self.failed:
            raise SystemExit(f"failed: {', '.join(self.failed)}")


def parser(description: str | None, name: str) -> argparse.ArgumentParser:
    """Options of every benchmark of the paper."""
    result = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    result.add_argument("--scale", choices=list(SCALES), default="small")
    result.add_argument("--work-dir", type=Path, required=True, help="where everything is kept and resumed")
    result.add_argument("--passes", type=int, help="images each training shows  [default: by scale]")
    result.add_argument("--device", default="auto")
    result.add_argument("--output", type=Path, help=f"default: {RESULTS.name}/paper_{name}_SCALE.json")
    return result


def bench_of(arguments: argparse.Namespace, name: str) -> tuple[Bench, Path]:
    """Bench and output file of parsed arguments; from here on SIGTERM also ends the command that runs."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    work = arguments.work_dir.resolve()
    work.mkdir(parents=True, exist_ok=True)
    output = arguments.output or RESULTS / f"paper_{name}_{arguments.scale}.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    return Bench(work, arguments.scale, arguments.device, arguments.passes), output.resolve()


def log_axis(axis: Axis) -> None:
    """Logarithmic, labelled 0.1, 0.3, 1 instead of powers of ten."""
    axis.axes.set(**{f"{axis.axis_name}scale": "log"})
    axis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def markdown(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table; floats with three significant digits, None as a dash."""

    def text(value: object) -> str:
        if value is None:
            return "–"
        return f"{value:.3g}" if isinstance(value, float) else str(value)

    lines = [header, ["---"] * len(header), *([text(value) for value in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
