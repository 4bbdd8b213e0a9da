"""The network of the paper's original program as Keras layers, timed: run by `original_network.py`, needs tensorflow-cpu.

    python benchmarks/keras_network.py STACK.npy [--batch 32] [--seconds 20] [--json FILE]
    python benchmarks/keras_network.py STACK.npy --known QUATERNIONS.npy --shown 27000 [--json FILE]

Layers, sizes and losses are those that the paper and its program have: five low-pass copies, ten convolutions with
batch norm, a slope for each pixel and channel, max pooling and dropout, a generalised mean of power 6, ten numbers,
eigenvector of L L'; pairs of images, distances of single images and of the pair. Images come from memory, whole.
With --known the network is trained instead, on all but the last tenth of the images, with the one-cycle learning rate and
the curriculum of the paper's program, and its errors on that tenth are told.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf

SIZE = 128
CONVOLUTIONS = (
    (7, 32),
    (5, 64),
    (3, 128),
    (3, 128),
    (3, 256),
    (3, 256),
    (3, 512),
    (3, 512),
    (3, 1024),
    (3, 1024),
)
POOLED = (0, 1, 3, 5, 7, 9)
CUTOFFS = (63, 57, 47, 33, 10)  # of 64


@keras.saving.register_keras_serializable()
class LowPass(keras.layers.Layer):
    """Images beside five low-pass filtered copies."""

    def build(self, shape: Any) -> None:
        k = np.abs(np.fft.fftfreq(SIZE, 1 / SIZE))
        reach = np.maximum(k[:, None], k[None, : SIZE // 2 + 1])
        self.filters = tf.constant(np.stack([reach <= u for u in CUTOFFS]), tf.complex64)

    def call(self, images: Any) -> Any:
        ft = tf.signal.rfft2d(images[..., 0])
        copies = tf.signal.irfft2d(ft[:, None] * self.filters)
        return tf.concat([tf.transpose(copies, [0, 2, 3, 1]), images], -1)


@keras.saving.register_keras_serializable()
class GeneralisedMean(keras.layers.Layer):
    """Mean of power 6 over the map, shifted so that it is of numbers from 1 on."""

    def call(self, maps: Any) -> Any:
        least = tf.reduce_min(maps, axis=(1, 2), keepdims=True)
        mean = tf.reduce_mean((maps - least + 1) ** 6, axis=(1, 2))
        return mean ** (1 / 6) + least[:, 0, 0] - 1


@keras.saving.register_keras_serializable()
class Pose(keras.layers.Layer):
    """Unit quaternion from ten numbers: the eigenvector of the smallest eigenvalue of L L'."""

    def call(self, numbers: Any) -> Any:
        lower = tf.linalg.band_part(tf.gather(numbers, self.places, axis=1), -1, 0)
        return tf.linalg.eigh(lower @ tf.transpose(lower, [0, 2, 1]))[1][:, :, 0]

    def build(self, shape: Any) -> None:
        places = np.zeros((4, 4), int)
        places[np.tril_indices(4)] = range(10)
        self.places = tf.constant(places)


def network() -> keras.Model:
    """The network, image to quaternion."""
    layers: list[Any] = [keras.Input((SIZE, SIZE, 1)), LowPass()]
    for i, (kernel, channels) in enumerate(CONVOLUTIONS):
        layers += [
            keras.layers.Conv2D(
                channels, kernel, padding="same", use_bias=False, kernel_initializer="he_normal"
            ),
            keras.layers.BatchNormalization(),
            keras.layers.PReLU(),
        ]
        layers += [keras.layers.MaxPool2D()] if i in POOLED else []
        layers.append(keras.layers.Dropout(0.3))
    layers += [GeneralisedMean(), keras.layers.Dense(10, kernel_initializer="he_normal"), Pose()]
    return keras.Sequential(layers)


def angle(p: Any, q: Any) -> Any:
    """Angle in rad between rotations `(n, 4)`."""
    return 2 * tf.acos(tf.abs(tf.reduce_sum(p * q, -1)) * (1 - 4e-7))


def measure(step: Callable[[int], Any], images: int, seconds: float) -> float:
    """Images a second of `step(i)`, which does `images` of them, after it was compiled."""
    for i in range(2):
        step(i)
    start, done = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        step(done)
        done += 1
    return done * images / (time.perf_counter() - start)


def training(model: keras.Model, rate: Any) -> Callable[..., Any]:
    """A compiled step (images a, images b, quaternions a, quaternions b, weight of single images) -> loss."""
    optimiser = keras.optimizers.Adam(rate, beta_2=0.99, epsilon=1e-5)

    @tf.function
    def step(a: Any, b: Any, qa: Any, qb: Any, single: Any) -> Any:
        with tf.GradientTape() as tape:
            pa, pb = model(a, training=True), model(b, training=True)
            apart = tf.reduce_mean(tf.abs(angle(pa, pb) - angle(qa, qb)))
            alone = tf.reduce_mean(angle(pa, qa)) + tf.reduce_mean(angle(pb, qb))
            decay = sum(tf.reduce_sum(w**2) for w in model.trainable_weights if w.name == "kernel")
            loss = (1 - single) * apart + single / 2 * alone + 1e-3 * decay
        optimiser.apply_gradients(
            zip(tape.gradient(loss, model.trainable_weights), model.trainable_weights, strict=True)
        )
        return loss

    return step


def trained(arguments: argparse.Namespace, images: Any) -> dict[str, Any]:
    """Train on all but the last tenth of the images; errors on that tenth."""
    known = np.load(arguments.known).astype(np.float32)
    held_out, rng = len(images) // 10, np.random.default_rng(0)
    keras.utils.set_random_seed(0)
    model = network()
    steps = arguments.shown // (2 * arguments.batch)
    warm_up = round(0.3 * steps)
    rate = keras.optimizers.schedules.CosineDecay(
        4e-5, steps - warm_up, warmup_target=1e-3, warmup_steps=warm_up
    )
    step = training(model, rate)
    for i in range(steps):
        a, b = rng.integers(0, len(images) - held_out, (2, arguments.batch))
        # the program's curriculum, of 50 epochs
        epoch = 1 + 50 * i // steps
        single = min(0.98, (max(0, epoch - 2) / 50) ** 0.5)
        float(step(images[a], images[b], known[a], known[b], tf.constant(single, tf.float32)))
    found = np.concatenate(
        [
            model(part, training=False).numpy()
            for part in np.array_split(images[-held_out:], max(1, held_out // 32))
        ]
    )
    errors = np.degrees(2 * np.arccos(np.abs((found * known[-held_out:]).sum(1)).clip(max=1)))
    return {
        "tensorflow": tf.__version__,
        "shown": steps * 2 * arguments.batch,
        "held_out": held_out,
        "median_error_deg": round(float(np.median(errors)), 2),
        "mean_error_deg": round(float(errors.mean()), 2),
    }


def timed(arguments: argparse.Namespace, images: Any) -> dict[str, Any]:
    """Images trained and predicted a second."""
    rng = np.random.default_rng(0)
    known = rng.normal(size=(len(images), 4)).astype(np.float32)
    known /= np.linalg.norm(known, axis=1, keepdims=True)
    model = network()
    train, single = training(model, 1e-3), tf.constant(0.5)

    @tf.function
    def predict(batch: Any) -> Any:
        return model(batch, training=False)

    def train_step(i: int) -> None:
        a, b = rng.integers(0, len(images), (2, arguments.batch))
        float(train(images[a], images[b], known[a], known[b], single))

    def predict_step(i: int) -> None:
        start = i * arguments.batch % (len(images) - arguments.batch)
        predict(images[start : start + arguments.batch]).numpy()

    return {
        "tensorflow": tf.__version__,
        "parameters": int(model.count_params()),
        "predicted_per_s": round(measure(predict_step, arguments.batch, arguments.seconds), 1),
        "trained_per_s": round(measure(train_step, 2 * arguments.batch, arguments.seconds), 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stack", type=Path, help="float32 images (n, 128, 128)")
    parser.add_argument("--batch", type=int, default=32, help="pairs a training step; images a prediction")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--known", type=Path, help="orientations of the images, quaternions xyzw (n, 4)")
    parser.add_argument("--shown", type=int, default=27000, help="images to train on, again and again")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    images = np.load(arguments.stack)[..., None]
    result = trained(arguments, images) if arguments.known else timed(arguments, images)
    text = json.dumps(result, indent=2)
    print(text)
    if arguments.json:
        arguments.json.write_text(text)


if __name__ == "__main__":
    main()
