"""The training loop: one-cycle Adam on the device, checkpoints between epochs."""

from __future__ import annotations

import csv
import logging
import math
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from lightning_fabric import Fabric
from torch import Tensor

from cryoforum_plugin.atomic import atomic_file
from cryoforum_plugin.errors import DeviceError, ModelError
from cryoforum_plugin.learning.balance import view_weights, weighted_rows
from cryoforum_plugin.learning.batches import Batch, BatchMaker, Rows, Share
from cryoforum_plugin.learning.epochs import epoch_images, shared_batch_size
from cryoforum_plugin.learning.label_noise import LabelNoise
from cryoforum_plugin.learning.losses import (
    curriculum,
    distance_loss,
    label_negative_log_likelihood,
    orientation_loss,
    shift_negative_log_likelihood,
)
from cryoforum_plugin.learning.optimiser import frozen_parts, make_optimiser
from cryoforum_plugin.learning.pairs import random_pairs, stratified_pairs
from cryoforum_plugin.learning.shared_norm import gather, share_batch_norm
from cryoforum_plugin.learning.validation import Labels, ValidationData, validate
from cryoforum_plugin.network import PoseNetwork
from cryoforum_plugin.network.memory import freed_memory_kept, out_of_memory
from cryoforum_plugin.network.model import write_tensors
from cryoforum_plugin.progress import Advance
from cryoforum_plugin.settings import Settings

LOG = logging.getLogger("cryoforum")
DIVERGED = "training diverged (the loss or its gradient is not finite); lower training.learning_rate"
STEPS_BETWEEN_LOOKS = 50  # at whether the loss is finite: each makes a GPU wait
CHECKPOINT_SECONDS = 20.0  # writing a large network after every short epoch would cost more than training it


@dataclass(frozen=True)
class EpochMetrics:
    """A row of metrics.csv; losses are the weighted terms of single images, seconds since the start.

    wrong_labels : the part of the particles' labels that are taken for wrong.
    """

    epoch: int
    train_loss: float
    validation_loss: float
    validation_median_deg: float
    validation_mean_deg: float
    learning_rate: float
    wrong_labels: float
    seconds: float


class Trainer:
    """Trains a network, one epoch at a time, and can be stopped and resumed between epochs.

    Several processes share each batch: they draw the same random numbers and make a part of it each, average gradients,
    and normalise by the statistics of the whole, so that they train what one would. Only dropout differs.
    """

    def __init__(
        self,
        fabric: Fabric,
        network: PoseNetwork,
        batches: BatchMaker,
        validation: ValidationData,
        settings: Settings,
        epochs: int,
        checkpoint: Path,
    ) -> None:
        self.fabric, self.batches, self.validation = fabric, batches, validation
        self.batches.share = Share(fabric.global_rank, fabric.world_size)
        self.all_settings, self.settings, self.loss = settings, settings.training, settings.loss
        self.epochs, self.checkpoint = epochs, checkpoint
        self.labels = Labels(settings.symmetry, settings.loss.symmetry == "asymmetric_unit", fabric.device)
        self.known = self.labels.of(batches.data.rotation).cpu()
        self.count, self.siamese = len(self.known), self.settings.branches == "siamese"
        self.view_weights = self._view_weights()
        self.draw_counts = self._counts()
        self.batch_size = shared_batch_size(self.settings.batch_size, fabric.world_size)
        if self.batch_size != self.settings.batch_size:
            LOG.info("batches of %d, not %d: a multiple of the %d processes",
                     self.batch_size, self.settings.batch_size, fabric.world_size)  # fmt: skip
        images_per_step = self.batch_size * (2 if self.siamese else 1)
        self.steps_per_epoch = max(1, epoch_images(self.count, self.settings) // images_per_step)
        network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.frozen = frozen_parts(network, self.settings.freeze)
        # before `setup`: several processes wait for the same gradients to the end, so that parts that thaw have theirs
        # from the beginning, which are dropped
        self.thawing = self.settings.freeze_epochs is not None and fabric.world_size > 1
        for part in self.frozen:
            part.requires_grad_(self.thawing)
        if fabric.world_size > 1:
            share_batch_norm(network)
        optimiser = make_optimiser(network, self.settings, fabric.device)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimiser,
            self.settings.learning_rate,
            total_steps=epochs * self.steps_per_epoch,
            pct_start=self.settings.warm_up,
            cycle_momentum=self.settings.cycle_momentum,
        )
        self.network, self.optimiser = fabric.setup(network, optimiser)
        self.label_noise = LabelNoise(
            self.loss.outliers if self.loss.likelihood else 0.0, fabric, fabric.device
        )
        self.parts = 1  # that a batch is computed in
        self.metrics: list[EpochMetrics] = []
        self.best: dict[str, Tensor] = {}

    def _view_weights(self) -> Tensor | None:
        """How often each particle is drawn, None = all alike."""
        if self.settings.balance_views == 0:
            return None
        mirrored = self.settings.augmentation == "full"
        return view_weights(self.known, self.labels.group, mirrored, self.settings.balance_views)

    def _counts(self) -> Tensor | None:
        """One over how often each particle is drawn, on the device."""
        return None if self.view_weights is None else (1 / self.view_weights).to(self.fabric.device)

    @property
    def epoch(self) -> int:
        """Epochs done so far."""
        return len(self.metrics)

    @property
    def wrong_labels(self) -> float:
        """Part of the labels taken for wrong at the best epoch, the one whose weights `run` returns."""
        return min(reversed(self.metrics), key=lambda row: row.validation_loss).wrong_labels

    def run(self, advance: Advance) -> dict[str, Tensor]:
        """Train the remaining epochs; return the weights with the best validation loss."""
        with freed_memory_kept() if self.fabric.device.type == "cpu" else nullcontext():
            return self._run(advance)

    def _run(self, advance: Advance) -> dict[str, Tensor]:
        start = time.monotonic() - (self.metrics[-1].seconds if self.metrics else 0.0)
        written = -math.inf
        for epoch in range(self.epoch + 1, self.epochs + 1):
            # seeded by epoch: a resumed run draws what the killed one would have drawn
            seed = (self.settings.seed * 1009 + epoch) * 1009
            self.batches.seed(seed)
            torch.manual_seed(seed + self.fabric.global_rank)  # dropout
            self._set_training(epoch)
            train_loss = self._epoch(epoch, advance)
            wrong = self.label_noise.weight
            loss, median, mean = validate(
                self.network, self.validation, self.labels, self.all_settings, wrong, self.fabric
            )
            rate = float(self.schedule.get_last_lr()[0])
            self.metrics.append(
                EpochMetrics(epoch, train_loss, loss, median, mean, rate, wrong, time.monotonic() - start)
            )
            if loss <= min(row.validation_loss for row in self.metrics):
                self.best = {k: v.detach().cpu().clone() for k, v in self.network.module.state_dict().items()}
            due = epoch == self.epochs or time.monotonic() - written > CHECKPOINT_SECONDS
            if due and self.fabric.is_global_zero:
                self.save()
                written = time.monotonic()
            LOG.info(
                "epoch %d/%d: train loss %.3f, validation loss %.3f, median %.2f deg, mean %.2f deg, "
                "wrong labels %.1f %%",
                epoch, self.epochs, train_loss, loss, median, mean, 100 * wrong,
            )  # fmt: skip
            advance(0, f"validation median {median:.2f}°")
        return self.best

    def _set_training(self, epoch: int) -> None:
        """Training mode, with what is frozen in `epoch` kept as it is, its batch statistics too."""
        self.network.train()
        for part in self.frozen:
            part.requires_grad_(self.thawing or not self._freezes(epoch))
            part.train(not self._freezes(epoch))

    def _freezes(self, epoch: int) -> bool:
        return self.settings.freeze_epochs is None or epoch <= self.settings.freeze_epochs

    def _drop_frozen_gradients(self) -> None:
        for part in self.frozen:
            for parameter in part.parameters():
                parameter.grad = None

    def _rows(self) -> list[Rows]:
        """Training rows of the steps of one epoch, brought to the device at once."""
        drawn = self._drawn_rows()
        return self.batches.data.rows(torch.cat(drawn)).split(len(drawn[0]))

    def _drawn_rows(self) -> list[Tensor]:
        """Training rows of the steps of one epoch.

        Images: permutations of the particles, as many as it takes, or draws that favour rare views. Pairs: the first of each, then the second.
        """
        needed, generator = self.steps_per_epoch * self.batch_size, self.batches.generator
        if self.siamese:
            if self.settings.pairs == "stratified":
                pairs = stratified_pairs(self.known, self.labels.equivalent.cpu(), needed, generator)
            else:
                pairs = random_pairs(self.count, needed, generator)
            return [step.T.flatten() for step in pairs.split(self.batch_size)]
        if self.view_weights is not None:
            drawn = weighted_rows(self.view_weights, needed, generator)
            return list(drawn.split(self.batch_size))
        rounds = -(-needed // self.count)
        order = [torch.randperm(self.count, generator=self.batches.generator) for _ in range(rounds)]
        return list(torch.cat(order)[:needed].split(self.batch_size))

    def _pairs(self, images: int) -> tuple[Tensor, Tensor]:
        """Rows of the first and second image of the pairs of a batch."""
        if self.siamese:
            rows = torch.arange(images, device=self.fabric.device)
            return rows[: images // 2], rows[images // 2 :]
        first, second = torch.triu_indices(images, images, 1, device=self.fabric.device)
        return first, second

    def _loss(self, batch: Batch, done: float) -> tuple[Tensor, Tensor]:
        """Loss of a batch after part `done` of the training, and its terms of single orientations."""
        output = self.network(batch.images)
        known, equivalent = self.labels.of(batch.rotation), self.labels.equivalent
        likelihood = None
        if self.loss.likelihood:
            nll = label_negative_log_likelihood(output, known, equivalent)
            counts = None if self.draw_counts is None else self.draw_counts[batch.rows]
            likelihood = self.label_noise(nll, batch.exact, counts)
        orientation = orientation_loss(output.bingham, known, equivalent, self.loss, likelihood).mean()
        single, pairwise = curriculum(done) if self.loss.curriculum else (1.0, 1.0)
        loss = single * orientation
        if self.loss.distance:
            loss = loss + pairwise * self.loss.distance * self._distance_loss(output.bingham, known)
        if self.loss.shift:
            shift = shift_negative_log_likelihood(output.shift, output.shift_log_variance, batch.shift)
            loss = loss + self.loss.shift * shift.mean()
        return loss, orientation

    def _distance_loss(self, bingham: Tensor, known: Tensor) -> Tensor:
        """Mean error of the distances: of this process's pairs of images, or of all pairs of the whole batch."""
        if not self.siamese and self.fabric.world_size > 1:
            bingham, known = gather(bingham).flatten(0, 1), gather(known).flatten(0, 1)
        return distance_loss(bingham, known, *self._pairs(len(known)), self.labels.equivalent)

    def _gradients(self, batch: Batch, done: float) -> tuple[Tensor, Tensor]:
        """Leave the gradients of a batch; return its loss, and that of single orientations, without theirs.

        In as many parts as it takes for the device's memory to hold each.
        """
        while True:
            try:
                return self._in_parts(batch, done)
            except (MemoryError, RuntimeError) as error:
                if not out_of_memory(error):
                    raise
            self._divide(len(batch.images))  # only here: the error's traceback keeps tensors in memory

    def _in_parts(self, batch: Batch, done: float) -> tuple[Tensor, Tensor]:
        self.optimiser.zero_grad()
        total = torch.zeros(2, device=self.fabric.device)
        for part in range(self.parts):
            some = Batch(
                *(values[part :: self.parts] for values in batch)
            )  # particles and simulated ones alike
            loss, orientation = (values / self.parts for values in self._loss(some, done))
            self.fabric.backward(loss)
            total = total + torch.stack([loss.detach(), orientation.detach()])
        return total[0], total[1]

    def _divide(self, images: int) -> None:
        """Halve what is computed at once. Raises DeviceError where that is not possible."""
        if self.fabric.world_size > 1 or images % (4 * self.parts):
            raise DeviceError(
                f"out of memory with {images // self.parts} images at a time; give a smaller --batch-size"
            )
        self.parts *= 2
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        LOG.warning(
            "out of memory with %d images at a time: going on with %d, a step is taken in %d parts (batch norm sees "
            "each by itself)", 2 * images // self.parts, images // self.parts, self.parts,
        )  # fmt: skip

    def _epoch(self, epoch: int, advance: Advance) -> float:
        """Train an epoch; return the mean loss of single orientations. Nothing but the looks makes a GPU wait."""
        total = torch.zeros((), dtype=torch.float64, device=self.fabric.device)
        diverged = torch.zeros((), dtype=torch.bool, device=self.fabric.device)
        for step, rows in enumerate(self._rows(), 1):
            done = (epoch - 1 + step / self.steps_per_epoch) / self.epochs
            loss, orientation = self._gradients(self.batches.make(rows), done)
            if self.thawing and self._freezes(epoch):
                self._drop_frozen_gradients()
            norm = self.fabric.clip_gradients(
                self.network, self.optimiser, max_norm=self.settings.gradient_clip, error_if_nonfinite=False
            )
            assert norm is not None
            diverged |= ~(torch.isfinite(loss) & torch.isfinite(norm))
            self.optimiser.step()
            self.schedule.step()
            total += orientation
            if (step % STEPS_BETWEEN_LOOKS == 0 or step == self.steps_per_epoch) and diverged:
                raise ModelError(DIVERGED)
            advance(1, "")
        mean = self.fabric.all_reduce(total / self.steps_per_epoch)
        assert isinstance(mean, Tensor)
        return float(mean)

    def save(self) -> None:
        """Write checkpoint/last.pt and metrics.csv, each whole."""
        rows = [asdict(row) for row in self.metrics]
        state = {
            "network": self.network.module.state_dict(),
            "best": self.best,
            "optimiser": self.optimiser.state_dict(),
            "schedule": self.schedule.state_dict(),
            "metrics": rows,
            "wrong_labels": self.label_noise.weight,
        }
        write_tensors(self.checkpoint / "last.pt", state)
        with (
            atomic_file(self.checkpoint / "metrics.csv", overwrite=True) as temporary,
            open(temporary, "w", newline="") as handle,
        ):
            writer = csv.DictWriter(handle, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows({k: f"{v:.6g}" for k, v in row.items()} for row in rows)

    def resume(self) -> bool:
        """Load checkpoint/last.pt if there is one; return whether there was. Raises ModelError."""
        path = self.checkpoint / "last.pt"
        if not path.exists():
            return False
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            self.network.module.load_state_dict(state["network"])
            self.optimiser.load_state_dict(state["optimiser"])
            self.schedule.load_state_dict(state["schedule"])
            self.label_noise.weight = float(state["wrong_labels"])
            self.best, self.metrics = state["best"], [EpochMetrics(**row) for row in state["metrics"]]
        except Exception as error:
            raise ModelError(
                f"{path} cannot be resumed from ({error}); train again with --overwrite"
            ) from error
        return True
