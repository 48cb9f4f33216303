"""Four pipelines on real data, for ``tuning.py``: what is called, with what, and what comes of it.

Data come with scikit-image and scikit-learn, and text is that of Python's own library; nothing is
downloaded. Every run gets data of another content: what a program has moved before, it seldom
moves again.

    images   photographs are denoised, then described: large arrays, passed on from task to task
    tables   partitions of a table are cleaned, then grouped: data frames, passed on
    text     words are counted, and counts added up by twos: bytes in, dictionaries passed on
    model    a network reads batches of digits: small arrays in, and one object that all tasks get
"""

from __future__ import annotations

import functools
import re
import sysconfig
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from demo import PHOTOGRAPHS, _bundled
from numpy.typing import NDArray
from skimage import filters, util
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier

__all__ = ["PIPELINES", "Pipeline"]

Array = NDArray[Any]

_IMAGES = 12
_EDGES = (160, 320, 640)
_PARTITIONS = 12
_ROWS = (1_500, 6_000, 12_000)
_SHARDS = 16
_SHARD_BYTES = (250_000, 1_000_000)
_BATCHES = 24
_BATCH_ROWS = 500

_WORD = re.compile(rb"[A-Za-z_]+")


@dataclass(frozen=True)
class Pipeline:
    """A program.

    Args:
        name: of it.
        about: what it moves, in words.
        data: makes the data of a run, from its number.
        run: runs it with an executor, and returns what comes of it.
        direct: does the same here, without one.
        equal: tells whether two results are the same.
    """

    name: str
    about: str
    data: Callable[[int], Any]
    run: Callable[[Any, Any], Any]
    direct: Callable[[Any], Any]
    equal: Callable[[Any, Any], bool]


# --- images


def denoise(image: Array) -> Array:
    """Smooth the noise of a sensor away."""
    smooth: Array = filters.gaussian(image, sigma=1, channel_axis=-1)
    return smooth


def describe(image: Array) -> Array:
    """Return how bright an image is, and how its edges are distributed."""
    grey = image.mean(axis=-1)
    edges = filters.sobel(grey)
    counts, _ = np.histogram(edges, bins=64, range=(0, 1))
    return np.concatenate([counts, [grey.mean()]])


@functools.cache
def _photographs() -> list[Array]:
    generator = np.random.default_rng(0)
    images = []
    for number in range(_IMAGES):
        edge = _EDGES[number % len(_EDGES)]
        picture = util.img_as_float64(_bundled(PHOTOGRAPHS, number)[..., :3])
        repeats = [-(-edge // length) for length in picture.shape[:2]]
        tiled = np.tile(picture, (*repeats, 1))[:edge, :edge]
        images.append(np.clip(tiled + generator.normal(scale=0.05, size=tiled.shape), 0, 1))
    return images


def _images(serial: int) -> list[Array]:
    # A little darker each time.
    return [image * (1 - serial / 10_000) for image in _photographs()]


def _run_images(executor: Any, images: list[Array]) -> list[Array]:
    smooth = [executor.submit(denoise, image) for image in images]
    described = [executor.submit(describe, one) for one in smooth]
    return [one.result() for one in described]


def _direct_images(images: list[Array]) -> list[Array]:
    return [describe(denoise(image)) for image in images]


def _same_arrays(some: list[Array], others: list[Array]) -> bool:
    return all(map(np.array_equal, some, others))


# --- tables


def clean(frame: pd.DataFrame) -> pd.DataFrame:
    """Drop what nobody has written, and scale the pixels."""
    pixels = frame.columns[:-1]
    kept = frame[frame[pixels].sum(axis=1) > 0].copy()
    kept[pixels] = kept[pixels] / 16
    return kept


def group(frame: pd.DataFrame) -> pd.DataFrame:
    """Return sums and counts of each digit."""
    grouped = frame.groupby("digit")
    sums = grouped.sum()
    sums["count"] = grouped.size()
    return sums


@functools.cache
def _digits() -> pd.DataFrame:
    inputs, labels = load_digits(return_X_y=True)
    frame = pd.DataFrame(inputs, columns=[f"pixel {number}" for number in range(inputs.shape[1])])
    frame["digit"] = labels
    return frame


def _partitions(serial: int) -> list[pd.DataFrame]:
    return [
        _digits().sample(
            _ROWS[number % len(_ROWS)], replace=True, random_state=serial * _PARTITIONS + number
        )
        for number in range(_PARTITIONS)
    ]


def _mean(parts: list[pd.DataFrame]) -> pd.DataFrame:
    total = functools.reduce(lambda one, other: one.add(other, fill_value=0), parts)
    return total.div(total["count"], axis=0)


def _run_tables(executor: Any, partitions: list[pd.DataFrame]) -> pd.DataFrame:
    cleaned = [executor.submit(clean, one) for one in partitions]
    grouped = [executor.submit(group, one) for one in cleaned]
    return _mean([one.result() for one in grouped])


def _direct_tables(partitions: list[pd.DataFrame]) -> pd.DataFrame:
    return _mean([group(clean(one)) for one in partitions])


# --- text


def count_words(text: bytes) -> Counter[bytes]:
    """Count the words of a text."""
    return Counter(_WORD.findall(text))


def merge(one: Counter[bytes], other: Counter[bytes]) -> Counter[bytes]:
    """Add counts up."""
    return one + other


@functools.cache
def _text() -> bytes:
    wanted = _SHARDS * max(_SHARD_BYTES)
    text = bytearray()
    for path in sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py")):
        text += path.read_bytes()
        if len(text) >= wanted:
            break
    return bytes(text)


def _shards(serial: int) -> list[bytes]:
    text, start, shards = _text(), 0, []
    mark = b"run_%d " % serial
    for number in range(_SHARDS):
        size = _SHARD_BYTES[number % len(_SHARD_BYTES)]
        shards.append(mark + text[start : start + size])
        start += size
    return shards


def _run_text(executor: Any, shards: list[bytes]) -> Counter[bytes]:
    counts = [executor.submit(count_words, shard) for shard in shards]
    while len(counts) > 1:
        pairs = zip(counts[::2], counts[1::2], strict=True)
        counts = [executor.submit(merge, *pair) for pair in pairs]
    total: Counter[bytes] = counts[0].result()
    return total


def _direct_text(shards: list[bytes]) -> Counter[bytes]:
    return functools.reduce(merge, map(count_words, shards))


# --- model


def predict(model: Any, batch: Array) -> Array:
    """Return the probability of each digit, for each scan of a batch."""
    probabilities: Array = model.predict_proba(batch)
    return probabilities


@functools.cache
def _model() -> Any:
    inputs, labels = load_digits(return_X_y=True)
    model = MLPClassifier((256, 256), max_iter=10, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # it is good enough
        return model.fit(inputs, labels)


def _batches(serial: int) -> tuple[Any, list[Array]]:
    inputs, _ = load_digits(return_X_y=True)
    generator = np.random.default_rng(serial)
    batches = []
    for _ in range(_BATCHES):
        scans = inputs[generator.integers(0, len(inputs), _BATCH_ROWS)]
        noise = generator.integers(-1, 2, size=scans.shape)
        batches.append(np.clip(scans + noise, 0, 16))
    model = _model()
    model.intercepts_[0][0] += 1e-9  # another one each time
    return model, batches


def _run_model(executor: Any, data: tuple[Any, list[Array]]) -> list[Array]:
    model, batches = data
    return list(executor.map(partial(predict, model), batches))


def _direct_model(data: tuple[Any, list[Array]]) -> list[Array]:
    model, batches = data
    return [predict(model, batch) for batch in batches]


PIPELINES = {
    one.name: one
    for one in (
        Pipeline(
            "images",
            f"{_IMAGES} photographs of 0.6 to 10 MB: denoised, then described",
            _images,
            _run_images,
            _direct_images,
            _same_arrays,
        ),
        Pipeline(
            "tables",
            f"{_PARTITIONS} partitions of 0.8 to 6 MB: cleaned, then grouped",
            _partitions,
            _run_tables,
            _direct_tables,
            lambda one, other: bool(np.allclose(one, other)),
        ),
        Pipeline(
            "text",
            f"words of {_SHARDS} shards of 250 kB and 1 MB: counted, then added up by twos",
            _shards,
            _run_text,
            _direct_text,
            lambda one, other: one == other,
        ),
        Pipeline(
            "model",
            f"{_BATCHES} batches of 256 kB for a network of 3 MB",
            _batches,
            _run_model,
            _direct_model,
            lambda one, other: all(map(np.allclose, one, other)),
        ),
    )
}
