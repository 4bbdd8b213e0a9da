"""Images a second of cache building, training, prediction and refinement, by box size, against the machine's limits.

    python benchmarks/throughput.py [--boxes 64 128 256 512] [--preset default] [--map MAP] [--device auto] [--output FILE.json]

The same simulated particles in boxes of several sizes: Fourier-padded and with white noise beyond, or cropped. Training is
what metrics.csv says from the second epoch on, prediction and refinement what `predict` prints. The limits are measured
in the same run: how fast the stack's bytes come from the disk (its pages dropped from memory before) and from memory,
and how many operations a second a large matrix product in the network's arithmetic reaches. Where the time of a
prediction goes is measured stage by stage on batches in memory, in processor time of one thread.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
import torch
from common import MAP, RESULTS, command_line, machine, run, trained_per_s, write_results
from torch.utils.flop_counter import FlopCounterMode

from cryoforum_plugin import formats
from cryoforum_plugin.confidence.calibration import Calibration, calibrated, with_widths
from cryoforum_plugin.images.cache import cached_images
from cryoforum_plugin.images.stacks import StackReader, write_stack
from cryoforum_plugin.images.working import finish
from cryoforum_plugin.network.device import choose_device, choose_precision
from cryoforum_plugin.network.encoder import fused_for_inference
from cryoforum_plugin.network.model import Model, load_model
from cryoforum_plugin.particles import ParticleSet
from cryoforum_plugin.prediction.images import image_pipeline
from cryoforum_plugin.prediction.predict import Predictor
from cryoforum_plugin.prediction.refining import refiner_for
from cryoforum_plugin.prediction.run import PredictOptions, batch_size

PIXELS = 2**27  # of one stack: half a gigabyte
VIEWS = 2


def resized(images: np.ndarray, box: int, noise: float) -> np.ndarray:
    """Images `(b, n, n)` Fourier-cropped or padded to `box`, new frequencies filled with white noise."""
    n = images.shape[-1]
    ft = np.fft.fftshift(np.fft.fft2(images), axes=(-2, -1))
    if box <= n:
        a = n // 2 - box // 2
        ft = ft[:, a : a + box, a : a + box]
    else:
        rng = np.random.default_rng(0)
        full = np.fft.fftshift(np.fft.fft2(rng.normal(0, noise, (len(images), box, box))), axes=(-2, -1))
        a = box // 2 - n // 2
        full[:, a : a + n, a : a + n] = ft * (box / n)
        ft = full
    return np.fft.ifft2(np.fft.ifftshift(ft, axes=(-2, -1))).real.astype(np.float32)


def make_box(work: Path, box: int) -> Path:
    """Write the simulated particles in boxes of `box` px; return their table."""
    folder = work / f"box{box}"
    folder.mkdir(exist_ok=True)
    made = formats.read_particles(work / "sim" / "particles.star", work)
    count = min(len(made), PIXELS // box**2)
    with mrcfile.mmap(work / "sim" / "particles.mrcs") as file:
        n, size_A = file.data.shape[-1], float(made.pixel_size_A[0])
        noise = float(file.data[:200].std())
        batches = (
            resized(np.asarray(file.data[i : min(i + 64, count)]), box, noise) for i in range(0, count, 64)
        )
        write_stack(folder / "particles.mrcs", batches, size_A * n / box, overwrite=True)
    particles = replace(
        made[np.arange(count)], stacks=(folder / "particles.mrcs",), pixel_size_A=np.full(count, size_A * n / box), host=None,
        box_px=box,
    )  # fmt: skip
    formats.write_particles(particles, folder / "particles.star", overwrite=True, data_root=work)
    return folder / "particles.star"


def bandwidth(path: Path) -> dict[str, float]:
    """Megabytes a second of reading a file from the disk and from memory, in requests of 4 MB."""
    found = {}
    for name in ("disk", "memory"):
        with open(path, "rb", buffering=0) as file:
            if name == "disk" and hasattr(os, "posix_fadvise"):
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            buffer, done, start = bytearray(2**22), 0, time.perf_counter()
            while got := file.readinto(buffer):
                done += got
            found[f"{name}_MB_per_s"] = round(done / 1e6 / (time.perf_counter() - start))
    return found


def peak_gflops(device: torch.device, dtype: torch.dtype) -> float:
    """Billions of operations a second of a large matrix product, the best of some."""
    n = 2048 if device.type == "cpu" else 8192
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    best = 0.0
    for _ in range(8):
        synchronise(device)
        start = time.perf_counter()
        a @ b
        synchronise(device)
        best = max(best, 2 * n**3 / (time.perf_counter() - start) / 1e9)
    return best


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def network_flops(model: Model) -> int:
    """Operations of the network on one image."""
    n = model.box.size_px
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        fused = fused_for_inference(model.network)
        fused(torch.zeros(1, 1, n, n, device=next(fused.parameters()).device))
    return counter.get_total_flops()


def stages(model: Model, particles: ParticleSet, device: torch.device) -> dict[str, float]:
    """Microseconds an image of each stage of a prediction with VIEWS views, and of a refinement."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    pipeline = image_pipeline(model, particles, device)
    predictor = Predictor(model, pipeline, choose_precision("auto", device), VIEWS)
    batches = list(
        pipeline.batches(np.arange(min(len(particles), 512)), batch_size(PredictOptions(), pipeline))
    )
    originals = [pipeline.read(rows) for rows in batches]
    working = [pipeline.working(rows, None, images) for rows, images in zip(batches, originals, strict=True)]
    rows = np.concatenate(batches)
    raw = predictor.predict(rows, len(batches[0]), lambda count, note: None)
    factors = Calibration.of(model.calibration["views"][str(VIEWS)])
    each = range(len(batches))
    found = {
        "read": timed(lambda: [pipeline.read(part) for part in batches], len(rows), device),
        "working image": timed(lambda: [pipeline.working(batches[i], None, originals[i]) for i in each], len(rows), device),
        "normalise and mask": timed(lambda: [finish(images) for images in working], len(rows), device),
        "network, one view": timed(lambda: [predictor._forward(images) for images in working], len(rows), device),
        "calibrate": timed(lambda: calibrated(with_widths(raw, factors), factors, np.zeros(len(rows))), len(rows), device),
    }  # fmt: skip
    whole = timed(lambda: [predictor._answers(batches[i], originals[i]) for i in each], len(rows), device)
    found["whole prediction of the network"] = whole
    refiner, _ = refiner_for(model, pipeline, None)
    few = rows[:256]
    refiner.refine(few[:32], raw[:32], lambda count, note: None)
    found["refinement"] = timed(
        lambda: refiner.refine(few, raw[:256], lambda count, note: None), len(few), device
    )
    torch.set_num_threads(threads)
    return {name: round(1e6 * value, 1) for name, value in found.items()}


@torch.no_grad()
def timed(work: Callable[[], Any], images: int, device: torch.device) -> float:
    """Seconds an image, of the processor or of the GPU's clock."""
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    work()
    synchronise(device)
    start = clock()
    work()
    synchronise(device)
    return (clock() - start) / images


def build_cache(model: Model, particles: ParticleSet, device: torch.device, work: Path) -> dict[str, float]:
    """Images a second of making the cache, and of taking it up again."""
    pipeline, rows = image_pipeline(model, particles, device), np.arange(len(particles))
    found = {}
    with tempfile.TemporaryDirectory(dir=work) as folder:
        for name in ("cache_built_per_s", "cache_reused_per_s"):
            start = time.perf_counter()
            cached_images(pipeline, rows, None, Path(folder), lambda count, note: None)
            found[name] = round(len(rows) / (time.perf_counter() - start))
    return found


def measure(work: Path, box: int, preset: str, device: torch.device) -> dict[str, Any]:
    """Everything for one box size."""
    table = make_box(work, box)
    folder = table.parent
    common: tuple[object, ...] = ("--device", device, "--quiet", "--overwrite")
    run(
        work,
        "train",
        table,
        "-o",
        folder / "model",
        "--preset",
        preset,
        "--epochs",
        4,
        "--no-half-sets",
        *common,
    )
    particles = formats.read_particles(table, work)
    model = load_model(folder / "model", device)
    rates: dict[str, float] = {"trained_per_s": round(trained_per_s(folder / "model"), 1)}
    rates |= build_cache(model, particles, device, work)
    for name, options in (("predicted", ("--no-refine",)), ("predicted_and_refined", ("--refine",))):
        figures = folder / f"{name}.json"
        run(
            work,
            "predict",
            folder / "model",
            table,
            "-o",
            folder / "out.star",
            "--json",
            figures,
            *common,
            *options,
        )
        rates[f"{name}_per_s"] = json.loads(figures.read_text())["particles_per_s"]
    bytes_each = StackReader(particles.stacks).header(0).expected_bytes / len(particles)
    limits = bandwidth(particles.stacks[0])
    limits["images_from_disk_per_s"] = round(limits["disk_MB_per_s"] * 1e6 / bytes_each)
    return {
        "box_px": box,
        "particles": len(particles),
        **rates,
        **limits,
        "network_MFLOP": round(network_flops(model) / 1e6, 1),
        "working_box_px": model.box.size_px,
        "us_per_image_of_one_thread": stages(model, particles, device),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--boxes", type=int, nargs="+", default=[64, 128, 256, 512])
    parser.add_argument("--preset", default="default")
    parser.add_argument("--count", type=int, default=4000)
    parser.add_argument("--map", type=Path, default=MAP)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--work-dir", type=Path, default=None)
    parser.add_argument("--output", type=Path, default=RESULTS / "throughput.json")
    arguments = parser.parse_args()
    device = choose_device(arguments.device)
    precision = choose_precision("auto", device)
    dtype = torch.bfloat16 if precision == "bf16-mixed" else torch.float32
    with tempfile.TemporaryDirectory() as temporary:
        work = (arguments.work_dir or Path(temporary)).resolve()
        work.mkdir(parents=True, exist_ok=True)
        os.chdir(work)
        run(
            work,
            "simulate",
            arguments.map.resolve(),
            "-o",
            "sim",
            "--count",
            arguments.count,
            "--snr",
            0.1,
            "--overwrite",
        )
        peak = peak_gflops(device, dtype)
        rows = [measure(work, box, arguments.preset, device) for box in arguments.boxes]
        for (
            row
        ) in rows:  # a prediction locates the particle before its views; a training step takes three passes
            flops = row["network_MFLOP"] / 1e3
            row["predicted_share_of_peak"] = round((VIEWS + 1) * flops * row["predicted_per_s"] / peak, 3)
            row["trained_share_of_peak"] = round(3 * flops * row["trained_per_s"] / peak, 3)
            row["predicted_share_of_disk"] = round(row["predicted_per_s"] / row["images_from_disk_per_s"], 3)
        result = {
            "command": command_line(),
            "machine": machine(),
            "device": str(device),
            "arithmetic": precision,
            "peak_GFLOP_per_s": round(peak),
            "rows": rows,
        }
        print(write_results(arguments.output.absolute(), result, work))
    for row in rows:
        print("|", " | ".join(str(row[name]) for name in (
            "box_px", "cache_built_per_s", "trained_per_s", "predicted_per_s", "predicted_and_refined_per_s", "images_from_disk_per_s",
            "trained_share_of_peak", "predicted_share_of_peak")), "|")  # fmt: skip


if __name__ == "__main__":
    main()
