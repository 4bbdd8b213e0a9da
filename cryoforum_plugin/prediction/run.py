"""`predict`: a model and a table of particles in, a calibrated prediction of every row out."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from cryoforum_plugin import __version__
from cryoforum_plugin.checksum import checksum
from cryoforum_plugin.confidence.alternatives import with_alternatives
from cryoforum_plugin.confidence.calibration import (
    Calibration,
    calibrated,
    with_widths,
)
from cryoforum_plugin.confidence.likeness import Likeness, Unlikeness, figures_of, unlikeness
from cryoforum_plugin.confidence.outliers import OutlierModel
from cryoforum_plugin.confidence.raw import RawPrediction
from cryoforum_plugin.errors import ImageStackError, ModelError, SettingsError, UnusableImagesError
from cryoforum_plugin.geometry import symmetry_group
from cryoforum_plugin.images.contrast import check_contrast
from cryoforum_plugin.images.pipeline import ImagePipeline
from cryoforum_plugin.images.read_ahead import in_order
from cryoforum_plugin.maps.given import SIMULATED_IMAGES
from cryoforum_plugin.network.device import Precision
from cryoforum_plugin.network.model import Model
from cryoforum_plugin.particles import FloatArray, IntArray, ParticleSet, Prediction
from cryoforum_plugin.prediction.images import image_pipeline
from cryoforum_plugin.prediction.journal import (
    Columns,
    Journal,
    opened,
    remove_journal,
    row_states,
    stack_states,
)
from cryoforum_plugin.prediction.members import assign
from cryoforum_plugin.prediction.predict import Predictor
from cryoforum_plugin.prediction.refining import refiner_for, refines
from cryoforum_plugin.prediction.views import VIEW_COUNTS
from cryoforum_plugin.progress import Advance, progress
from cryoforum_plugin.settings import DEFAULT_VIEWS

LOG = logging.getLogger("cryoforum")
# predicted together, fewer in boxes larger than COMMON_BOX_PX: seconds of work for a CPU, which a killed run may lose
ROWS_AT_ONCE, COMMON_BOX_PX = 4096, 160
CHUNKS = 32  # at least, of small sets, down to FEWEST rows: to be shared out evenly
FEWEST = 256
DEVIATIONS = "deviations"  # column of the journal: how far off the usual each particle lies


@dataclass(frozen=True)
class PredictOptions:
    """Choices of one prediction run.

    batch_size : None = what is fastest on the device. contrast : None = as the model was trained. refine :
    whether poses are refined, None = where there is a reference and it helped held-out particles. reference :
    map to refine against, None = the model's own.
    """

    views: int = DEFAULT_VIEWS
    batch_size: int | None = None
    contrast: str | None = None
    quiet: bool = False
    refine: bool | None = None
    reference: Path | None = None


def prediction_identity(table: Path, model_folder: Path, options: PredictOptions) -> dict[str, Any]:
    """What makes a prediction of a table the same as an earlier one. Raises CryoForumError where files are missing."""
    return {
        "particles": checksum(table),
        "model": checksum(model_folder / "model.pt"),
        "references": [checksum(path) for path in sorted(model_folder.rglob("references.pt"))],
        "views": options.views,
        "contrast": options.contrast,
        "refine": options.refine,
        "reference": None if options.reference is None else checksum(options.reference),
        "version": __version__,
    }


def predict_particles(
    model: Model,
    particles: ParticleSet,
    device: torch.device,
    precision: Precision,
    options: PredictOptions,
    *,
    journal: Path | None = None,
    identity: Mapping[str, Any] | None = None,
) -> tuple[Prediction, Unlikeness]:
    """Predict every row of `particles`; unreadable images (NaN, constant) become NaN rows.

    Also returns how unlike those of the model's calibration they are, together, and warns where that is much.

    Particles without half sets need `members.ready` first where the model has a model for each half.
    journal : folder that keeps what is done, so that the same call goes on where a killed one stopped; the caller
    removes it. identity : plain data that tells this prediction from others.
    Raises ImageStackError for missing or damaged stacks, dark protein, or when no image is usable;
    ParticleFileError for missing CTF parameters; ModelError when the images cannot hold the particle, or
    refinement is asked for without a reference.
    """
    options = with_refinement_decided(model, particles, options)
    with TemporaryDirectory(prefix="cryoforum-") as temporary:
        known = journal_identity(particles, precision, identity or {})
        done = Journal(journal or Path(temporary) / "journal", known)
        with opened(done):
            predict_chunks(model, particles, device, precision, options, done)
            return collect(model, particles, precision, options, done, identity or {})


def with_refinement_decided(model: Model, particles: ParticleSet, options: PredictOptions) -> PredictOptions:
    """Return the options with `refine` true or false. Raises ModelError as `refines` does."""
    return replace(options, refine=refines(model, particles, options.refine, options.reference))


def journal_identity(
    particles: ParticleSet, precision: Precision, identity: Mapping[str, Any]
) -> dict[str, Any]:
    """What a journal must agree in: `identity`, rows and stacks as they are now, and how rows are divided."""
    return {
        **identity,
        "rows": row_states(particles),
        "stacks": stack_states(particles),
        "precision": precision,
        "chunks": [ROWS_AT_ONCE, COMMON_BOX_PX, CHUNKS, FEWEST],
    }


def predict_chunks(
    model: Model,
    particles: ParticleSet,
    device: torch.device,
    precision: Precision,
    options: PredictOptions,
    journal: Journal,
    share: tuple[int, int] = (0, 1),
) -> None:
    """Predict what is not in the journal yet into it, a chunk of rows at a time; see `predict_particles`.

    options : where poses are refined or not has been decided. share : (i, n), of n processes this is number i.
    """
    if options.views not in VIEW_COUNTS:
        raise SettingsError(f"views must be one of {', '.join(map(str, VIEW_COUNTS))}; got {options.views}")
    pipeline = image_pipeline(model, particles, device, options.contrast)
    if (options.contrast or model.settings.images.contrast) != "ignore":
        check_contrast(pipeline, np.arange(len(particles)), training=False)
    if model.calibration.get("calibrated_on") == SIMULATED_IMAGES:
        LOG.warning("this model's widths were calibrated on simulated images; on real ones confidence and expected "
                    "error are as good as the simulation")  # fmt: skip
    chosen, seen = assign(model, particles, pipeline.reader)
    every = list(enumerate(_chunks(particles, chosen, pipeline.box_px)))
    own = every[share[0] :: share[1]]
    left = [(number, of_model, rows) for number, (of_model, rows) in own if not journal.done(number)]
    total, missing = (sum(len(item[-1]) for item in some) for some in ([c for _, c in own], left))
    with progress("predicting", total, options.quiet) as advance:
        if missing < total:
            LOG.info(
                "going on with a prediction that was stopped: %d of %d particles are done",
                total - missing,
                total,
            )
            advance(total - missing, "")
        for of_model, member in enumerate(model.alone):
            todo = [(number, rows) for number, model_number, rows in left if model_number == of_model]
            if todo:
                seen_by = replace(pipeline, box=member.box)
                _predict(member, seen_by, precision, options, todo, seen, journal, advance)


def _predict(
    model: Model,
    pipeline: ImagePipeline,
    precision: Precision,
    options: PredictOptions,
    todo: list[tuple[int, IntArray]],
    seen: FloatArray,
    journal: Journal,
    advance: Advance,
) -> None:
    """Predict the chunks `todo` with one model into the journal."""
    predictor = Predictor(model, pipeline, precision, options.views)
    refining = refiner_for(model, pipeline, options.reference) if options.refine else None
    # a particle is done when it is refined
    told = advance if refining is None else lambda count, note: advance(0, note)
    views = Calibration.of(model.calibration["views"][str(options.views)])
    answers = predictor.stream([rows for _, rows in todo], batch_size(options, pipeline), told)

    def chunks() -> Iterator[_Chunk]:
        for (number, rows), raw in zip(todo, answers, strict=True):
            if refining is None:
                yield _Chunk(number, rows, raw, None, views)
            else:
                network = with_widths(raw, views)
                yield _Chunk(number, rows, refining[0].refine(rows, network, advance), network, refining[1])

    def finish(chunk: _Chunk) -> None:
        found, off = _calibrated(model, chunk, options)
        in_training = np.where(np.isnan(found.confidence), np.nan, seen[chunk.rows])
        columns = _columns(replace(found, in_training=in_training))
        journal.write(chunk.number, chunk.rows, columns | {DEVIATIONS: off})

    # beside the network and the refinement of the next ones
    for _ in in_order(finish, chunks(), threads=max(1, torch.get_num_threads() // 4)):
        pass


def _chunks(particles: ParticleSet, chosen: IntArray, box_px: int) -> Iterator[tuple[int, IntArray]]:
    """Number of the model and rows of each chunk, in the order in which their images lie in the stacks."""
    order = np.lexsort((particles.slice_index, particles.stack_index))
    most = max(64, int(ROWS_AT_ONCE * min(1.0, (COMMON_BOX_PX / box_px) ** 2)))
    count = min(most, max(FEWEST, len(particles) // CHUNKS))
    for number in np.unique(chosen).tolist():
        rows = order[chosen[order] == number]
        yield from ((number, rows[start : start + count]) for start in range(0, len(rows), count))


def batch_size(options: PredictOptions, pipeline: ImagePipeline) -> int:
    """Images that are predicted together."""
    if options.batch_size:
        return options.batch_size
    if pipeline.device.type != "cpu":
        return 512
    # a CPU is fastest while the maps of a batch stay in its caches
    return max(8, min(64, 64 * 64**2 // pipeline.box.size_px**2))


def collect(
    model: Model,
    particles: ParticleSet,
    precision: Precision,
    options: PredictOptions,
    journal: Journal,
    identity: Mapping[str, Any],
) -> tuple[Prediction, Unlikeness]:
    """Prediction of every row in the journal, which holds them all, in the order of `particles`.

    Raises ImageStackError where a stack has changed since the journal was begun.
    """
    now = Journal(journal.folder, journal_identity(particles, precision, identity))
    if now.key != journal.key:
        raise ImageStackError(
            f"{particles.source}: an image stack was changed while its particles were predicted; start again"
        )
    columns = journal.collected(len(particles))
    off = columns.pop(DEVIATIONS)
    prediction = Prediction(**columns)
    try:
        _check_usable(prediction, particles)
    except UnusableImagesError:
        remove_journal(journal.folder)
        raise
    assert prediction.outlier_score is not None
    assert prediction.in_training is not None
    usual = [_likeness(member, options, bool(options.refine))[0] for member in model.alone]
    new = np.flatnonzero(~(prediction.in_training > 0))
    held_out = sum(likeness.count for likeness in usual)
    unlike = unlikeness(usual[0].names, off[new], prediction.outlier_score[new], held_out)
    _warn_of_unlike(particles, unlike)
    return prediction, unlike


def _columns(prediction: Prediction) -> Columns:
    """What is known of a prediction, by field."""
    values = {f.name: getattr(prediction, f.name) for f in fields(Prediction)}
    return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True)
class _Chunk:
    """What is known of some rows: raw numbers, with what calibrates them; of refined ones also the network's, calibrated."""

    number: int
    rows: IntArray
    raw: RawPrediction
    network: RawPrediction | None
    factors: Calibration


def _calibrated(model: Model, chunk: _Chunk, options: PredictOptions) -> tuple[Prediction, FloatArray]:
    """Calibrate a chunk; with how far off the usual each particle lies `(n, m)`."""
    symmetry, outliers = model.settings.symmetry, OutlierModel(**model.outliers)
    raw, factors, refined = chunk.raw, chunk.factors, chunk.network is not None
    known = with_widths(raw, factors) if chunk.network is None else chunk.network
    group = torch.from_numpy(symmetry_group(symmetry))
    likeness, of_refined = _likeness(model, options, refined)
    figures = figures_of(raw if of_refined else known, known, outliers, group)[1]
    off, score = likeness.deviations(figures), likeness.score(figures)
    if not refined:
        return calibrated(raw, factors, score, symmetry=symmetry, widened=known.bingham), off
    found = calibrated(raw, factors, score, known.bingham, symmetry)
    return with_alternatives(found, known, symmetry), off


def _likeness(model: Model, options: PredictOptions, refined: bool) -> tuple[Likeness, bool]:
    """What particles are compared with, and whether refined poses are.

    Not where the map was given, or refinement is not calibrated: then nothing is known of how held-out particles fit it.
    """
    known = model.calibration.get("likeness", {})
    refined = refined and options.reference is None and "refined" in known
    found = known.get("refined" if refined else str(options.views))
    if found is None:
        raise ModelError(
            f"{model.directory} was calibrated by an older version of cryoforum; run `cryoforum recalibrate` with refined "
            "particles it has not seen, or train again"
        )
    return Likeness(**found), refined


def _warn_of_unlike(particles: ParticleSet, unlike: Unlikeness) -> None:
    if unlike["alarms"]:
        LOG.warning(
            "%s: these %d particles are unlike those the model was calibrated on, so that its confidence may not hold: %s; "
            "where they are of the same kind, refine some hundred and run `cryoforum recalibrate`",
            particles.source, unlike["particles"], "; ".join(unlike["alarms"]),
        )  # fmt: skip


def _check_usable(prediction: Prediction, particles: ParticleSet) -> None:
    bad = int(np.isnan(prediction.confidence).sum())
    if bad == len(prediction):
        raise UnusableImagesError(
            f"{particles.source}: every image is constant or holds NaN or infinite pixels"
        )
    if bad:
        LOG.warning("%d of %d images are constant or hold NaN or infinite pixels; their confidence is 0",
                    bad, len(prediction))  # fmt: skip
