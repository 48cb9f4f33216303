"""The run that the pictures show: images are made, sharpened, looked at in part, and counted.

It stores tables, as its author takes these for what is large: images are sent inline, and previews
are stored that nobody looks at.
"""

import sys
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from typing import TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from proxyexec import ProxyType, StoreExecutor

Image: TypeAlias = NDArray[np.float64]

IMAGES = 12
CROPS = 12
SIDE = 700


def load(number: int) -> Image:
    return np.random.default_rng(number).random((SIDE, SIDE))


def sharpen(image: Image, gains: pd.DataFrame) -> Image:
    for _ in range(10):
        inner = image[1:-1, 1:-1]
        around = image[:-2, 1:-1] + image[2:, 1:-1] + image[1:-1, :-2] + image[1:-1, 2:]
        image = np.pad(2 * inner - 0.25 * around, 1) * gains["gain"].mean()
    return image


def preview(image: Image) -> pd.DataFrame:
    return pd.DataFrame(image[::2, ::2].copy())


def measure(crop: Image) -> float:
    return float(np.sort(crop, axis=None)[crop.size // 2])


def count(image: Image, threshold: float) -> int:
    return int((image > threshold).sum())


def main(trace: str) -> None:
    gains = pd.DataFrame({"gain": np.ones(300_000)})
    with (
        StoreExecutor(ProcessPoolExecutor(2), should_proxy=ProxyType(pd.DataFrame)) as executor,
        executor.trace(trace),
    ):
        images = list(executor.map(load, range(IMAGES)))
        sharp = list(executor.map(sharpen, images, repeat(gains)))
        previews = [executor.submit(preview, image) for image in sharp]
        done = sum(one.exception() is None for one in previews)
        del previews
        crops = [np.full((20, 20), float(number)) for number in range(IMAGES * CROPS)]
        medians = list(executor.map(measure, crops))
        cells = sum(executor.map(count, sharp, repeat(0.5)))
        print(f"{cells} cells, median {sum(medians):.1f}, {done} previews")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "run.jsonl")
