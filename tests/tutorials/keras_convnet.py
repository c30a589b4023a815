"""Keras's example "Simple MNIST convnet": softmax at its end; `save_weights`. Run with KERAS_BACKEND=jax."""

from pathlib import Path

import keras
import numpy as np
from keras import layers

num_classes = 10
input_shape = (28, 28, 1)


def build_model() -> keras.Model:
    """The model of the example, with BatchNorm."""
    return keras.Sequential(
        [
            keras.Input(shape=input_shape),
            layers.Conv2D(4, kernel_size=(3, 3), activation="relu"),
            layers.MaxPooling2D(pool_size=(2, 2)),
            layers.BatchNormalization(),
            layers.Conv2D(8, kernel_size=(3, 3), activation="relu"),
            layers.MaxPooling2D(pool_size=(2, 2)),
            layers.Flatten(),
            layers.Dropout(0.5),
            layers.Dense(num_classes, activation="softmax"),
        ]
    )


model = build_model()


def main(images: np.ndarray, labels: np.ndarray, folder: Path, steps: int) -> list[str]:
    """Train and save three seeds; images [N, 28, 28]."""
    x, y = images[: 32 * steps, ..., None], keras.utils.to_categorical(labels[: 32 * steps], num_classes)
    for seed in range(3):
        keras.utils.set_random_seed(seed)
        trained = build_model()
        trained.compile(loss="categorical_crossentropy", optimizer="adam", metrics=["accuracy"])
        trained.fit(x, y, batch_size=32, epochs=1, verbose=0)
        trained.save_weights(folder / f"ck{seed}.weights.h5")
    return [f"ck{seed}.weights.h5" for seed in range(3)]


def outputs(file: Path, images: np.ndarray, first: Path) -> np.ndarray:
    """The network of a checkpoint with the statistics of the first, by the framework itself."""
    one, other = build_model(), build_model()
    one.load_weights(first)
    other.load_weights(file)
    for mine, his in zip(other.non_trainable_variables, one.non_trainable_variables, strict=True):
        mine.assign(his)
    return np.asarray(other.predict(images[..., None], verbose=0))
