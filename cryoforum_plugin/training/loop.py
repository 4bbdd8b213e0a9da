"""The training loop: one-cycle AdamW on the device, a checkpoint after every epoch."""

from __future__ import annotations

import csv
import logging
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from cryoforum_plugin.atomic import atomic_file
from cryoforum_plugin.errors import ModelError, SettingsError
from cryoforum_plugin.geometry import angular_distance, angular_distance_to_group
from cryoforum_plugin.images.working import finish
from cryoforum_plugin.network import PoseNetwork
from cryoforum_plugin.network.device import Precision, choose_device
from cryoforum_plugin.network.model import write_tensors
from cryoforum_plugin.posterior import mode, negative_log_likelihood
from cryoforum_plugin.progress import Advance
from cryoforum_plugin.settings import Settings
from cryoforum_plugin.training.batches import BatchMaker
from cryoforum_plugin.training.losses import pose_loss

LOG = logging.getLogger("cryoforum")


@dataclass(frozen=True)
class EpochMetrics:
    """A row of metrics.csv; likelihoods in nat, errors in degrees, seconds since the start."""

    epoch: int
    train_nll: float
    validation_nll: float
    validation_median_deg: float
    validation_mean_deg: float
    learning_rate: float
    seconds: float


@dataclass(frozen=True)
class ValidationData:
    """Working images `(m, n, n)` float16 and their poses `(m, 4)` float32 XYZW."""

    images: Tensor
    rotation: Tensor


@torch.no_grad()  # not inference_mode: roma caches tensors that training then could not use
def validate(network: nn.Module, data: ValidationData, group: Tensor) -> tuple[float, float, float]:
    """Negative log-likelihood (nat), median and mean error (deg) over the validation images, one view."""
    network.eval()
    likelihood, errors = [], []
    for images, rotation in zip(data.images.split(256), data.rotation.split(256), strict=True):
        matrix = network(finish(images.to(rotation.device).float())).bingham
        likelihood.append(negative_log_likelihood(matrix, rotation, group))
        found = mode(matrix)
        errors.append(
            angular_distance(found, rotation.double())
            if len(group) == 1
            else angular_distance_to_group(found, rotation.double(), group.double())
        )
    network.train()
    error, nll = torch.rad2deg(torch.cat(errors)), float(torch.cat(likelihood).mean())
    if not math.isfinite(nll):
        raise ModelError(
            "training diverged (the validation loss is not finite); lower training.learning_rate"
        )
    return nll, float(error.median()), float(error.mean())


class Trainer:
    """Trains a network, one epoch at a time, and can be stopped and resumed between epochs."""

    def __init__(
        self,
        fabric: Fabric,
        network: PoseNetwork,
        batches: BatchMaker,
        validation: ValidationData,
        group: Tensor,
        settings: Settings,
        epochs: int,
        checkpoint: Path,
    ) -> None:
        self.fabric, self.batches, self.validation, self.group = fabric, batches, validation, group
        self.settings, self.loss = settings.training, settings.loss
        self.epochs, self.checkpoint = epochs, checkpoint
        self.count = len(batches.data.rotation)
        images_per_step = self.settings.batch_size * fabric.world_size
        self.steps_per_epoch = max(1, epoch_images(self.count) // images_per_step)
        network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        fused = fabric.device.type in ("cpu", "cuda")
        optimiser = torch.optim.AdamW(
            network.parameters(),
            lr=self.settings.learning_rate,
            weight_decay=self.settings.weight_decay,
            betas=(0.9, 0.98),
            fused=fused,
        )
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimiser,
            self.settings.learning_rate,
            total_steps=epochs * self.steps_per_epoch,
            pct_start=self.settings.warm_up,
            cycle_momentum=False,
        )
        self.network, self.optimiser = fabric.setup(network, optimiser)
        self.metrics: list[EpochMetrics] = []

    @property
    def epoch(self) -> int:
        """Epochs done so far."""
        return len(self.metrics)

    def run(self, advance: Advance) -> dict[str, Any]:
        """Train the remaining epochs; return the weights with the best validation likelihood."""
        start = time.monotonic() - (self.metrics[-1].seconds if self.metrics else 0.0)
        for epoch in range(self.epoch + 1, self.epochs + 1):
            # seeded by epoch and process: a resumed run draws what the killed one would have drawn
            self.batches.generator.manual_seed(
                (self.settings.seed * 1009 + epoch) * 1009 + self.fabric.global_rank
            )
            train_nll = self._epoch(advance)
            nll, median, mean = validate(self.network, self.validation, self.group)
            rate = float(self.schedule.get_last_lr()[0])
            self.metrics.append(
                EpochMetrics(epoch, train_nll, nll, median, mean, rate, time.monotonic() - start)
            )
            if self.fabric.is_global_zero:
                self.save()
            LOG.info(
                "epoch %d/%d: train %.3f nat, validation %.3f nat, median %.2f deg, mean %.2f deg",
                epoch, self.epochs, train_nll, nll, median, mean,
            )  # fmt: skip
            advance(0, f"validation median {median:.2f}°")
        self.fabric.barrier()
        best: dict[str, Any] = torch.load(self.checkpoint / "best.pt", map_location="cpu", weights_only=True)
        return best

    def _rows(self) -> Tensor:
        """Training rows of one epoch: permutations of the particles, as many as it takes."""
        needed = self.steps_per_epoch * self.settings.batch_size
        rounds = -(-needed // self.count)
        order = [torch.randperm(self.count, generator=self.batches.generator) for _ in range(rounds)]
        return torch.cat(order)[:needed]

    def _epoch(self, advance: Advance) -> float:
        total = 0.0
        for rows in self._rows().split(self.settings.batch_size):
            batch = self.batches.make(rows)
            output = self.network(batch.images)
            loss, orientation = pose_loss(output, batch.rotation, batch.shift, self.group, self.loss.shift)
            if not torch.isfinite(loss):
                raise ModelError("training diverged (the loss is not finite); lower training.learning_rate")
            self.optimiser.zero_grad()
            self.fabric.backward(loss)
            self.fabric.clip_gradients(self.network, self.optimiser, max_norm=self.settings.gradient_clip)
            self.optimiser.step()
            self.schedule.step()
            total += float(orientation.detach())
            advance(1, "")
        return total / self.steps_per_epoch

    def save(self) -> None:
        """Write checkpoint/best.pt (if this epoch is the best), last.pt and metrics.csv, each whole."""
        weights = self.network.module.state_dict()
        if self.metrics[-1].validation_nll <= min(row.validation_nll for row in self.metrics):
            write_tensors(self.checkpoint / "best.pt", weights)
        rows = [asdict(row) for row in self.metrics]
        state = {
            "network": weights,
            "optimiser": self.optimiser.state_dict(),
            "schedule": self.schedule.state_dict(),
            "metrics": rows,
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
            self.metrics = [EpochMetrics(**row) for row in state["metrics"]]
        except Exception as error:
            raise ModelError(
                f"{path} cannot be resumed from ({error}); train again with --overwrite"
            ) from error
        return True


def epoch_images(particles: int) -> int:
    """Images shown in one epoch: each particle once, but at least 2,048 (few particles: several times)."""
    return max(particles, 2048)


def default_epochs(particles: int, samples: int) -> int:
    """Epochs that show about `samples` images, between 8 and 200."""
    return min(200, max(8, round(samples / epoch_images(particles))))


def make_fabric(device: str, devices: int, num_nodes: int, precision: Precision) -> Fabric:
    """Fabric for "auto", "cpu", "cuda" or "cuda:N" (one device), or several devices and machines.

    Raises SettingsError where the device does not exist.
    """
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    chosen = choose_device(device)
    if device.startswith("cuda:") and devices > 1:
        raise SettingsError(f"--device {device} is one device; for {devices} devices give --device cuda")
    index: Any = [chosen.index] if device.startswith("cuda:") else devices
    fabric = Fabric(accelerator=chosen.type, devices=index, num_nodes=num_nodes, precision=precision)
    if devices * num_nodes > 1:
        fabric.launch()
    return fabric
