"""The real RELION runs our External job, and goes on with what it made."""

from __future__ import annotations

from typing import TYPE_CHECKING

import mrcfile
import numpy as np
import starfile
import torch
from relion_project import EXTERNAL, PIXEL_SIZE_A, REFINE, SELECT, image_names

from cryoforum_plugin import formats
from cryoforum_plugin.confidence.evaluation import angular_errors
from cryoforum_plugin.geometry import symmetry_group
from cryoforum_plugin.reconstruction.fsc import fourier_shell_correlation

if TYPE_CHECKING:
    from relion.conftest import Run


def errors_deg(run: Run, star: str) -> np.ndarray:
    """Angular errors of the particles in `star`, whose image names are those of new.star."""
    truth = formats.read_particles(run.project.folder / run.new_star, run.project.folder)
    found = formats.read_particles(run.project.folder / star, run.project.folder)
    rows = np.searchsorted(truth.slice_index, found.slice_index)
    return np.degrees(
        angular_errors(found.require_rotation(), truth.require_rotation()[rows], symmetry_group("C1"))
    )


def test_train_and_predict_succeed_and_their_outputs_are_in_the_pipeline(relion_run: Run) -> None:
    jobs, nodes = relion_run.project.jobs(), relion_run.project.nodes()
    assert jobs[relion_run.train] == jobs[relion_run.predict] == "succeeded"
    assert nodes[f"{relion_run.train}model/reference.mrc"] == "6"
    assert nodes[f"{relion_run.train}logfile.pdf"] == nodes[f"{relion_run.predict}logfile.pdf"] == "13"
    assert nodes[f"{relion_run.predict}predicted.star"] == "3"
    edges = relion_run.project.read("default_pipeline.star").split("data_pipeline_input_edges")[1]
    assert f"{relion_run.train}model/reference.mrc {relion_run.predict}" in " ".join(edges.split())
    for job in (relion_run.train, relion_run.predict):
        assert relion_run.project.read(f"{job}run.err") == ""
        assert (relion_run.project.folder / job / "logfile.pdf").read_bytes().startswith(b"%PDF")


def test_predicted_table_keeps_everything_and_has_no_priors(relion_run: Run) -> None:
    before = starfile.read(relion_run.project.folder / relion_run.new_star)
    after = starfile.read(relion_run.project.folder / relion_run.predict / "predicted.star")
    assert before["optics"].equals(after["optics"])
    unchanged = [c for c in before["particles"] if not c.startswith(("rlnAngle", "rlnOrigin"))]
    assert before["particles"][unchanged].equals(after["particles"][unchanged])
    assert set(after["particles"]["rlnRandomSubset"]) == {1, 2}
    assert not [c for c in after["particles"] if "Prior" in c]
    assert np.median(errors_deg(relion_run, f"{relion_run.predict}predicted.star")) < 10


def test_our_poses_projected_by_relion_look_like_the_images(relion_run: Run) -> None:
    project = relion_run.project
    project.run("relion_project", "--i", "ref.mrc", "--o", "projected", "--ang", f"{relion_run.predict}predicted.star",
                "--ctf", "--angpix", PIXEL_SIZE_A)  # fmt: skip
    projections = mrcfile.read(project.folder / "projected.mrcs")
    rows = [int(name.split("@")[0]) - 1 for name in image_names(project.folder / relion_run.new_star)]
    images = mrcfile.read(project.folder / "particles.mrcs")[rows]

    def correlation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        a, b = (x - x.mean(axis=(1, 2), keepdims=True) for x in (a.astype(float), b.astype(float)))
        return (a * b).sum((1, 2)) / np.sqrt((a**2).sum((1, 2)) * (b**2).sum((1, 2)))

    ours, others = correlation(images, projections), correlation(images, np.roll(projections, 1, axis=0))
    best = np.sqrt(0.5)  # of the true projection with an image that is half noise
    assert np.median(ours) > 0.8 * best
    assert (ours > others).mean() > 0.95


def test_relions_select_and_ours_keep_the_same_particles(relion_run: Run) -> None:
    project, predicted = relion_run.project, f"{relion_run.predict}predicted.star"
    confidence = starfile.read(project.folder / predicted)["particles"]["rlnParticleFigureOfMerit"].to_numpy()
    values = np.unique(confidence)
    widest = int(np.diff(values).argmax())  # RELION's columns are of single precision
    threshold = float(values[widest : widest + 2].mean().round(6))
    theirs = project.job(
        SELECT,
        {"fn_data": predicted, "do_select_values": "Yes", "select_label": "rlnParticleFigureOfMerit",
         "select_minval": threshold, "select_maxval": 1, "do_queue": "No"},
    )  # fmt: skip
    ours = project.job(EXTERNAL, project.external(predicted, job="select", min_confidence=threshold))
    assert project.jobs()[theirs] == project.jobs()[ours] == "succeeded"
    kept, rejected = (
        image_names(project.folder / ours / f"{name}.star") for name in ("selected", "rejected")
    )
    assert kept == image_names(project.folder / theirs / "particles.star")
    assert 0 < len(kept) == (confidence > threshold).sum() < len(confidence)
    assert sorted([*kept, *rejected]) == image_names(project.folder / predicted)
    project.run(
        "relion_reconstruct", "--i", f"{theirs}particles.star", "--o", "fom.mrc", "--ctf", "--fom_weighting"
    )
    reference, volume = (torch.from_numpy(mrcfile.read(project.folder / n)) for n in ("ref.mrc", "fom.mrc"))
    assert (
        fourier_shell_correlation(reference, volume)[1:10].min() > 0.9
    )  # to 43 Å: the map is noisy and unfiltered


def test_refine3d_starts_from_our_poses_with_local_searches(relion_run: Run) -> None:
    project = relion_run.project
    half = project.job(
        EXTERNAL,
        project.external(
            relion_run.new_star, job="predict", model=relion_run.train.rstrip("/"), refine="no", keep=0.5
        ),
    )
    name = project.job(
        REFINE,
        {"fn_img": f"{half}selected.star", "fn_ref": "ref.mrc", "ref_correct_greyscale": "No", "ini_high": 20, "sym_name": "C1",
         "do_ctf_correction": "Yes", "particle_diameter": 300, "do_zero_mask": "Yes", "sampling": "1.8 degrees",
         "auto_local_sampling": "1.8 degrees", "offset_range": 3, "offset_step": 1, "do_combine_thru_disc": "No",
         "do_parallel_discio": "No", "nr_pool": 10, "do_preread_images": "Yes", "use_gpu": "No", "nr_mpi": 3,
         "nr_threads": 1, "do_queue": "No", "other_args": "--auto_iter_max 3"},  # the first ones bring it home; all take a minute
    )  # fmt: skip
    assert project.jobs()[name] == "succeeded", project.read(f"{name}run.err")[-2000:]
    before, after = (
        errors_deg(relion_run, star) for star in (f"{half}selected.star", f"{name}run_it003_data.star")
    )
    assert np.median(after) < 0.7 * np.median(before)
    refined = starfile.read(project.folder / name / "run_it003_data.star")["particles"]
    assert {"rlnParticleFigureOfMerit", "cryoforumCredibleRadius90"} <= set(refined)
