"""The paper's training and its choices, through the command, on tiny data."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from chain import TINY, cryoforum, simulate, succeed

from cryoforum_plugin.geometry import (
    angular_distance,
    angular_distance_to_group,
    in_asymmetric_unit,
    random_quaternions,
    reduce_to_asymmetric_unit,
    symmetry_group,
)
from cryoforum_plugin.launch import Devices
from cryoforum_plugin.launch.devices import make_fabric
from cryoforum_plugin.learning.batches import BatchMaker, TrainingData
from cryoforum_plugin.learning.loop import Trainer
from cryoforum_plugin.learning.optimiser import make_optimiser
from cryoforum_plugin.learning.validation import Labels, ValidationData
from cryoforum_plugin.network import NetworkOutput
from cryoforum_plugin.network.model import build_network, load_model
from cryoforum_plugin.settings import preset, with_values

PAPER = ("--preset", "paper", "--quiet", "--epochs", 2, "--batch-size", 32, "--set", "network.channels=4")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with sim/ and a tiny default model."""
    folder = tmp_path_factory.mktemp("paper")
    simulate(folder, 200)
    succeed("train", folder / "sim" / "train.star", "-o", folder / "model", "--quiet", *TINY)
    return folder


def train(data: Path, out: Path, *assignments: str, options: tuple[object, ...] = PAPER) -> Path:
    extra = [part for assignment in assignments for part in ("--set", assignment)]
    succeed("train", data / "sim" / "train.star", "-o", out, *options, *extra)
    return out


def test_the_papers_preset_is_the_papers() -> None:
    settings = preset("paper")
    assert (settings.images.size_px, settings.images.margin) == (128, None)
    assert (settings.network.encoder, settings.network.blur) == ("vgg", "low_pass")
    assert (settings.network.pooling, settings.network.dropout) == ("generalised_mean", 0.3)
    assert settings.network.representation == "qcqp"
    assert (settings.training.epochs, settings.training.batch_size) == (50, 256)
    assert (settings.training.branches, settings.training.pair_fraction) == ("siamese", 0.01)
    assert (settings.training.optimiser, settings.training.learning_rate) == ("adam", 1e-3)
    assert settings.loss.curriculum


@pytest.mark.parametrize(
    "assignments",
    [
        (),
        ("training.pairs=stratified",),
        ("training.branches=all_pairs",),
        ("training.branches=single", "loss.distance=0", "loss.curriculum=false"),
        ("network.representation=6d", "network.blur=gaussian", "network.pooling=max"),
        ("network.representation=quaternion", "network.blur=none", "network.pooling=max_average"),
        ("loss.geodesic=0", "loss.chordal=1", "loss.likelihood=0.1", "images.preprocessing=none"),
        ("network.final_convolutions=0", "images.size_px=24", "training.augmentation=none"),
    ],
    ids=lambda assignments: " ".join(assignments) or "preset",
)
def test_every_choice_trains_predicts_and_is_read_back(
    data: Path, tmp_path: Path, assignments: tuple[str, ...]
) -> None:
    model = train(data, tmp_path / "model", *assignments)
    metrics = np.genfromtxt(model / "metrics.csv", delimiter=",", names=True)
    assert np.isfinite(metrics["validation_loss"]).all()
    succeed("predict", model, data / "sim" / "test.star", "-o", tmp_path / "out.star", "--quiet")
    result = succeed("evaluate", tmp_path / "out.star", data / "sim" / "test.star")
    assert "median_deg" in result.stdout


def test_likelihood_with_all_pairs_learns_on_the_polar_network(data: Path, tmp_path: Path) -> None:
    options = ("--quiet", *TINY)
    model = train(
        data, tmp_path / "m", "training.branches=all_pairs", "loss.distance=1", "loss.curriculum=true",
        "network.representation=qcqp", options=options,
    )  # fmt: skip
    metrics = np.genfromtxt(model / "metrics.csv", delimiter=",", names=True)
    assert metrics["validation_loss"][-1] < metrics["validation_loss"][0]


def test_labels_are_reduced_to_the_asymmetric_unit() -> None:
    poses = random_quaternions(200, torch.Generator().manual_seed(0))
    group = torch.from_numpy(symmetry_group("D2")).float()
    reduced = Labels("D2", True, torch.device("cpu"))
    assert not in_asymmetric_unit(poses, "D2").all()
    assert in_asymmetric_unit(reduced.of(poses), "D2").all()
    assert angular_distance_to_group(reduced.of(poses), poses, group).max() < 1e-3
    assert len(reduced.equivalent) == 1  # the loss knows no symmetry
    averaged = Labels("D2", False, torch.device("cpu"))
    assert torch.equal(averaged.of(poses), poses)
    assert len(averaged.equivalent) == 4


class Fixed(torch.nn.Module):
    """A network that gives the same posteriors whatever it sees."""

    def __init__(self, bingham: torch.Tensor) -> None:
        super().__init__()
        self.bingham = torch.nn.Parameter(bingham)
        self.encoder = torch.nn.Module()
        self.encoder.body = torch.nn.Sequential()

    def forward(self, images: torch.Tensor) -> NetworkOutput:
        zero = torch.zeros(len(images))
        return NetworkOutput(self.bingham, torch.zeros(len(images), 2), zero, zero[:, None])


def test_siamese_loss_is_the_papers_equation_4(tmp_path: Path) -> None:
    """Written out pair by pair, with a label outside the asymmetric unit among them."""
    pairs, generator = 5, torch.Generator().manual_seed(0)
    poses, found = (random_quaternions(2 * pairs, generator).double() for _ in range(2))
    images = torch.randn(2 * pairs, 16, 16, generator=generator)
    settings = with_values(preset("paper"), {"symmetry": "D2", "training.augmentation": "none"})
    data = TrainingData(images, poses.float(), None, np.ones(2 * pairs), "keep", None)
    bingham = 50 * (torch.eye(4) - found[:, :, None] * found[:, None, :]).float()
    trainer = Trainer(
        make_fabric(Devices("cpu"), "32-true"),
        Fixed(bingham),
        BatchMaker(data, settings.training, generator),
        ValidationData(images[:2], poses[:2]),
        settings,
        2,
        tmp_path,
    )
    rows = torch.stack([torch.arange(pairs), torch.arange(pairs) + pairs], 1).T.flatten()
    loss, _ = trainer._loss(trainer.batches.make(rows), 0.36)
    labels = reduce_to_asymmetric_unit(poses, "D2")
    assert not torch.equal(labels, poses)
    beta_1, beta_2 = 0.36**0.5 / 2, 1 - 0.36**0.5
    expected = 0.0
    for i, j in [(k, k + pairs) for k in range(pairs)]:
        distance = float(angular_distance(found[i], found[j]) - angular_distance(labels[i], labels[j]))
        errors = float(angular_distance(found[i], labels[i]) + angular_distance(found[j], labels[j]))
        expected += (beta_1 * errors + beta_2 * abs(distance)) / pairs
    assert abs(float(loss.detach()) - expected) < 1e-3  # the shift's likelihood is 0 here


def test_optimiser_of_the_paper() -> None:
    network = build_network(preset("paper"), 128)
    settings = preset("paper").training
    optimiser = make_optimiser(network, settings, torch.device("cpu"))
    decayed = {id(p) for group in optimiser.param_groups if group["weight_decay"] for p in group["params"]}
    for name, parameter in network.named_parameters():
        is_kernel = name.endswith("weight") and parameter.ndim > 1
        assert (id(parameter) in decayed) == is_kernel, name
    assert {group["weight_decay"] for group in optimiser.param_groups} == {0.0, 2e-3}
    assert optimiser.param_groups[0]["eps"] == 1e-5
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, settings.learning_rate, total_steps=100, pct_start=settings.warm_up,
        cycle_momentum=settings.cycle_momentum,
    )  # fmt: skip
    momentum, rate = [], []
    for _ in range(99):
        optimiser.step()
        schedule.step()
        momentum.append(optimiser.param_groups[0]["betas"][0])
        rate.append(optimiser.param_groups[0]["lr"])
    assert abs(max(momentum) - 0.95) < 1e-3
    assert abs(min(momentum) - 0.85) < 1e-3
    assert momentum.index(min(momentum)) == rate.index(max(rate))  # Supplementary Figure 2


def test_a_representation_without_uncertainty_cannot_filter(data: Path, tmp_path: Path) -> None:
    model = train(data, tmp_path / "m", "network.representation=6d")
    out = tmp_path / "out.star"
    succeed("predict", model, data / "sim" / "test.star", "-o", out, "--quiet", "--views", 1)
    result = cryoforum("select", out, "-o", tmp_path / "kept.star", "--statistic", "trace")
    assert result.exit_code == 1
    assert "one uncertainty for all images" in result.output


def weights(model: Path) -> dict[str, torch.Tensor]:
    return load_model(model, torch.device("cpu")).network.state_dict()


@pytest.mark.parametrize("freeze", ["none", "early", "encoder"])
def test_a_model_starts_from_another_and_what_is_frozen_stays(
    data: Path, tmp_path: Path, freeze: str
) -> None:
    options = ("--quiet", "--epochs", 1, "--init-from", data / "model")
    model = train(data, tmp_path / "m", f"training.freeze={freeze}", options=options)
    before, after = weights(data / "model"), weights(model)
    same = {name for name in before if torch.equal(before[name], after[name])}
    first, last, head = "encoder.body.0.0.conv.weight", "encoder.body.6.0.conv.weight", "head.second.weight"
    expected = {"none": set(), "early": {first}, "encoder": {first, last}}[freeze]
    assert same & {first, last, head} == expected
    statistics = "encoder.body.0.1.running_mean"
    assert (statistics in same) == (freeze != "none")
    config = json.loads((model / "config.json").read_text())
    assert config["settings"]["network.channels"] == 8  # of the other model
    assert config["init_from"]


def test_frozen_parts_thaw(data: Path, tmp_path: Path) -> None:
    options = ("--quiet", "--epochs", 2, "--init-from", data / "model")
    model = train(
        data, tmp_path / "m", "training.freeze=encoder", "training.freeze_epochs=1", options=options
    )
    before, after = weights(data / "model"), weights(model)
    assert not torch.equal(before["encoder.body.0.0.conv.weight"], after["encoder.body.0.0.conv.weight"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--set", "training.freeze=early"), "--init-from"),
        (("--init-from", "MODEL", "--set", "network.channels=4"), "network.channels 8, not 4"),
        (("--init-from", "nowhere"), "nowhere"),
        (("--set", "loss.distance=1"), "training.branches"),
        (("--set", "loss.likelihood=0"), "loss.geodesic"),
        (("--set", "loss.curriculum=maybe"), "true or false"),
        (("--set", "network.pooling=sum"), "max, max_average or generalised_mean"),
        (("--set", "training.augmentation=none"), "training.simulated 0"),
        (
            ("--set", "training.pairs=stratified", "--set", "training.branches=siamese"),
            "training.augmentation",
        ),
        (("--preset", "paper", "--diameter", "100"), "images.margin"),
        (("--set", "loss.shift=0"), "loss.shift"),
        (("--set", "loss.geodesic=nan"), "infinite"),
        (("--set", "training.freeze_epochs=2"), "training.freeze"),
    ],
)
def test_choices_that_do_not_go_together_are_refused(
    data: Path, tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    given = [data / "model" if option == "MODEL" else option for option in options]
    result = cryoforum("train", data / "sim" / "train.star", "-o", tmp_path / "m", "--quiet", *given)
    assert result.exit_code == 1
    assert message in result.output
    assert not (tmp_path / "m").exists()


def test_a_killed_run_of_the_papers_training_resumes_the_same(data: Path, tmp_path: Path) -> None:
    whole = train(data, tmp_path / "whole")
    import cryoforum_plugin.learning.loop as loop

    class KilledError(Exception):
        pass

    original = loop.Trainer.save

    def save_and_stop(self: loop.Trainer) -> None:
        original(self)
        raise KilledError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.Trainer, "save", save_and_stop)
        cryoforum("train", data / "sim" / "train.star", "-o", tmp_path / "part", *PAPER)
    part = train(data, tmp_path / "part", options=(*PAPER, "--resume"))
    one, two = weights(whole), weights(part)
    assert all(torch.equal(one[name], two[name]) for name in one)
    rows = [
        [line.rpartition(",")[0] for line in (m / "metrics.csv").read_text().splitlines()]
        for m in (whole, part)
    ]
    assert rows[0] == rows[1]  # but for the seconds
