"""Streaming prediction: rows of a table -> raw network answers, particles recentred by their predicted shift."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cryoforum_plugin.confidence.raw import RawPrediction
from cryoforum_plugin.geometry import symmetry_group
from cryoforum_plugin.images.pipeline import ImagePipeline, unusable
from cryoforum_plugin.images.read_ahead import READERS, in_order, on_each_core
from cryoforum_plugin.images.working import finish
from cryoforum_plugin.network import NetworkOutput
from cryoforum_plugin.network.device import Precision
from cryoforum_plugin.network.encoder import fused_for_inference
from cryoforum_plugin.network.memory import InParts
from cryoforum_plugin.network.model import Model
from cryoforum_plugin.particles import IntArray
from cryoforum_plugin.posterior import align_to_copy, mode, upper_from_matrix
from cryoforum_plugin.posterior.mixture import heaviest_first
from cryoforum_plugin.prediction.views import predict_views
from cryoforum_plugin.progress import Advance

# Particles are located again while their shift along x or y is beyond this part of the range that the network
# was trained for.
RECENTRE_ABOVE = 1.2
MOST_PASSES = 3


class Predictor:
    """Applies a model to the particles of a pipeline, a batch at a time."""

    def __init__(self, model: Model, pipeline: ImagePipeline, precision: Precision, views: int) -> None:
        self.model, self.pipeline, self.views = model, pipeline, views
        self.autocast = precision == "bf16-mixed"
        weights = torch.bfloat16 if self.autocast else torch.float32
        self.network = fused_for_inference(model.network, weights)
        self.group = torch.from_numpy(symmetry_group(model.settings.symmetry)).float().to(pipeline.device)
        self.in_parts = InParts("images")
        self.recentre_above_A = RECENTRE_ABOVE * model.settings.training.max_shift * model.box.side_A

    def predict(self, rows: IntArray, batch_size: int, advance: Advance) -> RawPrediction:
        """Predict `rows`."""
        return next(self.stream([rows], batch_size, advance))

    def stream(
        self, chunks: Iterable[IntArray], batch_size: int, advance: Advance
    ) -> Iterator[RawPrediction]:
        """Predict chunk after chunk of rows; images are read ahead, also of the chunk that follows."""
        batches = (
            (number, rows) for number, chunk in enumerate(chunks) for rows in self.pipeline.batches(chunk, batch_size)
        )  # fmt: skip
        read = in_order(lambda batch: self.pipeline.read_ahead(batch[1]), batches, READERS)
        found = on_each_core(lambda item: self._answers(item[0][1], item[1]), read, self.pipeline.device)
        for _, of_chunk in groupby(found, key=lambda item: item[0][0][0]):
            parts = []
            for ((_, rows), _), answers in of_chunk:
                parts += answers
                advance(len(rows), "")
            yield RawPrediction(*(_joined(part) for part in zip(*parts, strict=True)))

    @torch.no_grad()  # not inference_mode: roma caches tensors that training then could not use
    def _answers(self, rows: IntArray, originals: Tensor) -> list[tuple[Tensor | None, ...]]:
        """Network answers of one batch, in parts that the device's memory holds."""
        return self.in_parts(lambda part: self._part(rows[part], originals[part]), len(rows))

    def _part(self, rows: IntArray, read: Tensor) -> tuple[Tensor | None, ...]:
        originals = self.pipeline.on_device(read)
        bad = unusable(originals)
        if bad.any():
            originals = torch.where(bad[:, None, None], torch.zeros_like(originals), originals)
        return self._batch(rows, originals, bad.cpu())

    def _batch(self, rows: IntArray, originals: Tensor, bad: Tensor) -> tuple[Tensor | None, ...]:
        """Network answers of one batch, in Å and radians; NaN where `bad` `(b,)`."""
        side_A = torch.from_numpy(self.pipeline.sampling_A(rows) * self.pipeline.box.size_px)
        limit_A = self.pipeline.box_px * torch.from_numpy(self.pipeline.particles.pixel_size_A[rows]) / 2
        output = self._forward(self.pipeline.working(rows, None, originals))
        start_A = torch.zeros(len(rows), 2, dtype=torch.float64)
        found_A = output.shift.double().cpu() * side_A[:, None]
        for _ in range(MOST_PASSES - 1):
            far = np.flatnonzero((found_A.abs().amax(1) > self.recentre_above_A).numpy() & ~bad.numpy())
            if not len(far):
                break
            start_A[far] = (start_A + found_A)[far].clamp(-limit_A[far, None], limit_A[far, None])
            again = self._forward(self.pipeline.working(rows[far], start_A[far].numpy(), originals[far]))
            for old, new in zip(output, again, strict=True):
                if old is not None and new is not None:
                    old[far] = new
            found_A[far] = again.shift.double().cpu() * side_A[far, None]
        if self.views > 1:  # all views of the centred image: the network sees those best
            start_A = (start_A + found_A).clamp(-limit_A[:, None], limit_A[:, None])
            centred = self.pipeline.working(rows, start_A.numpy(), originals)
            output = predict_views(self._forward, centred, self.views, self.group)
            found_A = output.shift.double().cpu() * side_A[:, None]
        shift_A = start_A + found_A
        sd_A = (output.shift_log_variance.double().cpu() / 2).exp() * side_A
        parts = (upper_from_matrix(output.bingham).cpu(), shift_A, sd_A, output.features.cpu())
        first = tuple(_blank(part, bad) for part in parts)
        if output.modes is None or output.log_weight is None:
            return (*first, bad, None, None)
        modes, log_weight = heaviest_first(output.modes, output.log_weight)
        if len(self.group) > 1:  # a copy of the heaviest is no alternative
            heaviest = mode(modes[:, :1]).expand(-1, modes.shape[1], -1).flatten(0, 1)
            modes = align_to_copy(modes.flatten(0, 1), heaviest, self.group).view_as(modes)
        return (*first, bad, _blank(upper_from_matrix(modes).cpu(), bad), _blank(log_weight.cpu(), bad))

    def _forward(self, images: Tensor) -> NetworkOutput:
        """Finish working images `(b, n, n)` and predict; only the network's body may run in bfloat16."""
        images = finish(images, self.model.settings.images.preprocessing)
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.autocast):
            output: NetworkOutput = self.network(images)
        return output.map(Tensor.float)


def _blank(values: Tensor, bad: Tensor) -> Tensor:
    """`values` `(b, ...)` with NaN in the rows `bad` `(b,)`."""
    return torch.where(bad.view(-1, *[1] * (values.ndim - 1)), torch.nan, values)


def _joined(parts: Sequence[Tensor | None]) -> Any:
    """Batches one after the other; None where they are None."""
    known = [part for part in parts if part is not None]
    return torch.cat(known) if known else None
