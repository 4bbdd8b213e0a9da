"""Streaming prediction: rows of a table -> raw network answers, recentred where the particle is off-centre."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cryoforum_plugin.geometry import symmetry_group
from cryoforum_plugin.images.pipeline import ImagePipeline, unusable
from cryoforum_plugin.network import NetworkOutput
from cryoforum_plugin.network.device import Precision
from cryoforum_plugin.network.model import Model
from cryoforum_plugin.particles import FloatArray, IntArray
from cryoforum_plugin.prediction.views import predict_views
from cryoforum_plugin.progress import Advance

# A particle is recentred and predicted again when its shift exceeds this part of the trained range.
RECENTRE_ABOVE = 0.5


@dataclass(frozen=True)
class RawPrediction:
    """Network answers before calibration; rows that could not be read are NaN.

    bingham : `(n, 10)`. shift_A : `(n, 2)`. shift_sd_A : `(n,)`. features : `(n, f)`. unusable : `(n,)` bool.
    """

    bingham: Tensor
    shift_A: Tensor
    shift_sd_A: Tensor
    features: Tensor
    unusable: Tensor


class Predictor:
    """Applies a model to the particles of a pipeline, a batch at a time."""

    def __init__(self, model: Model, pipeline: ImagePipeline, precision: Precision, views: int) -> None:
        self.model, self.pipeline, self.views = model, pipeline, views
        self.autocast = precision == "bf16-mixed"
        self.group = torch.from_numpy(symmetry_group(model.settings.symmetry)).float().to(pipeline.device)
        self.recentre_above_A = RECENTRE_ABOVE * model.settings.training.max_shift * model.box.side_A

    @torch.inference_mode()
    def predict(self, rows: IntArray, batch_size: int, advance: Advance) -> RawPrediction:
        """Predict `rows`; the next batch is read while one is computed."""
        parts = []
        for of_batch, originals in self._read_ahead(rows, batch_size):
            bad = unusable(originals)
            if bad.any():
                originals = torch.where(bad[:, None, None], torch.randn_like(originals), originals)
            parts.append(self._batch(of_batch, originals, bad))
            advance(len(of_batch), "")
        return RawPrediction(*(torch.cat(part) for part in zip(*parts, strict=True)))

    def _read_ahead(self, rows: IntArray, batch_size: int) -> Iterator[tuple[IntArray, Tensor]]:
        starts = range(0, len(rows), batch_size)
        with ThreadPoolExecutor(1) as pool:
            pending = pool.submit(self.pipeline.read, rows[:batch_size])
            for start in starts:
                of_batch, images = rows[start : start + batch_size], pending.result()
                following = rows[start + batch_size : start + 2 * batch_size]
                if len(following):
                    pending = pool.submit(self.pipeline.read, following)
                yield of_batch, images

    def _batch(self, rows: IntArray, originals: Tensor, bad: Tensor) -> tuple[Tensor, ...]:
        images = self.pipeline.working(rows, None, originals)
        output = self._network(images)
        shift_A = output.shift.double().cpu() * self.model.box.side_A
        off_centre = np.flatnonzero((shift_A.norm(dim=1) > self.recentre_above_A).numpy())
        if len(off_centre):
            first: FloatArray = shift_A[off_centre].numpy()
            again = self._network(self.pipeline.working(rows[off_centre], first, originals[off_centre]))
            for old, new in zip(output, again, strict=True):
                old[off_centre] = new
            shift_A[off_centre] += again.shift.double().cpu() * self.model.box.side_A
        sd_A = (output.shift_log_variance / 2).exp().cpu() * self.model.box.side_A
        row, column = torch.triu_indices(4, 4)
        parts = (output.bingham[:, row, column].cpu(), shift_A, sd_A, output.features.cpu())
        nan = bad.cpu()
        return (*(torch.where(nan.view(-1, *[1] * (p.ndim - 1)), torch.nan, p) for p in parts), nan)

    def _network(self, images: Tensor) -> NetworkOutput:
        return predict_views(self._forward, images, self.views, self.group)

    def _forward(self, images: Tensor) -> NetworkOutput:
        """The bare network; only its body may run in bfloat16, geometry never does."""
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.autocast):
            output = self.model.network(images)
        return NetworkOutput(*(part.float() for part in output))
