"""Run three pipelines on real data, with the standard library's process pool and with ours.

    denoise   photographs, as large float images, in and out of pool.map(denoise, images)
    predict   a network trained on handwritten digits, in pool.map(partial(predict, model), batches)
    patches   small images in, large stacks of normalized patches out

The data come with scikit-image and scikit-learn; nothing is downloaded. Both pools do the same
work, their results are compared bit for bit, and then they are timed in turns.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import os
import signal
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

# The pool's processes are what runs in parallel; threads of numerical libraries within each
# would only fight them for the processor. Their libraries look when they are loaded.
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

import numpy as np  # noqa: E402 - after the above
from command import at_least, end_tidily_when_terminated  # noqa: E402
from numpy.typing import NDArray  # noqa: E402
from screen import Progress, duration, show_table, size_name  # noqa: E402
from skimage import data, filters, util  # noqa: E402
from sklearn.datasets import load_digits  # noqa: E402
from sklearn.exceptions import ConvergenceWarning  # noqa: E402
from sklearn.neural_network import MLPClassifier  # noqa: E402
from sklearn.pipeline import make_pipeline  # noqa: E402
from sklearn.preprocessing import StandardScaler  # noqa: E402
from traffic import Traffic, counted_traffic  # noqa: E402

import proxyexec  # noqa: E402

Array = NDArray[Any]

# Files that are in scikit-image's wheel, and the functions that read them. Others it downloads.
PHOTOGRAPHS = {
    "astronaut.png": "astronaut",
    "coffee.png": "coffee",
    "chelsea.png": "chelsea",
    "rocket.jpg": "rocket",
    "hubble_deep_field.jpg": "hubble_deep_field",
    "ihc.png": "immunohistochemistry",
    "retina.jpg": "retina",
}
GREY_PICTURES = {
    "camera.png": "camera",
    "moon.png": "moon",
    "brick.png": "brick",
    "grass.png": "grass",
    "gravel.png": "gravel",
}

# Edge of a square patch, in pixels.
PATCH = 7


def denoise(image: Array) -> Array:
    """Smooth the noise of a sensor away."""
    smooth: Array = filters.gaussian(image, sigma=1, channel_axis=-1)
    return smooth


def predict(model: Any, batch: Array) -> Array:
    """Return the probability of each digit, for each scan of a batch."""
    probabilities: Array = model.predict_proba(batch)
    return probabilities


def patches(image: Array) -> Array:
    """Return all patches of an image, one a row, brightness taken out.

    What dictionary learning and clustering of textures start with.
    """
    windows = np.lib.stride_tricks.sliding_window_view(image, (PATCH, PATCH))
    rows = windows.reshape(-1, PATCH * PATCH)
    rows -= rows.mean(axis=1, keepdims=True)
    return rows


@dataclass
class Pipeline:
    """A function and what it is mapped over."""

    name: str
    function: Callable[[Array], Array]
    items: list[Array]
    note: str
    seconds: dict[str, list[float]] = field(default_factory=dict)
    traffic: dict[str, int] = field(default_factory=dict)
    returned: int = 0


def photographs(megabytes: float, tasks: int) -> list[Array]:
    """Return the bundled photographs as noisy float images, tiled to a size.

    They are small; cameras' are not, and arrays of this size are what they become.
    """
    generator = np.random.default_rng(0)
    images = []
    for number in range(tasks):
        picture = util.img_as_float64(_bundled(PHOTOGRAPHS, number)[..., :3])
        edge = max(16, int((megabytes * 1e6 / 24) ** 0.5))
        repeats = [-(-edge // length) for length in picture.shape[:2]]
        tiled = np.tile(picture, (*repeats, 1))[:edge, :edge]
        noise = generator.normal(scale=0.05, size=tiled[..., :1].shape)
        images.append(np.clip(tiled + noise, 0, 1))
    return images


def trained_model() -> Any:
    """Return a small neural network that reads digits."""
    inputs, labels = load_digits(return_X_y=True)
    model = make_pipeline(StandardScaler(), MLPClassifier((32,), max_iter=40, random_state=0))
    with warnings.catch_warnings():
        # It is good enough long before it has converged.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return model.fit(inputs, labels)


def scans(megabytes: float, tasks: int) -> list[Array]:
    """Return batches of digits, scanned over and over: each time with other noise."""
    inputs, _ = load_digits(return_X_y=True)
    generator = np.random.default_rng(0)
    copies = max(1, int(megabytes * 1e6 / inputs.nbytes))
    batches = []
    for _ in range(tasks):
        noise = generator.integers(-1, 2, size=(copies, *inputs.shape), dtype=np.int8)
        batches.append(np.clip(inputs + noise, 0, 16).reshape(-1, inputs.shape[1]))
    return batches


def pictures(megabytes: float, tasks: int) -> list[Array]:
    """Return grey images that each have about so many bytes of patches."""
    edge = max(PATCH, int((megabytes * 1e6 / 8 / PATCH**2) ** 0.5) + PATCH - 1)
    return [
        np.ascontiguousarray(util.img_as_float64(_bundled(GREY_PICTURES, number))[:edge, :edge])
        for number in range(tasks)
    ]


def _bundled(names: dict[str, str], number: int) -> Array:
    folder = Path(data.__file__).parent
    there = [function for file, function in names.items() if (folder / file).exists()]
    if not there:
        raise SystemExit("this scikit-image brings no pictures with it; the demo needs some")
    picture: Array = getattr(data, there[number % len(there)])()
    return picture


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo; return the exit code."""
    options = _options(arguments)
    end_tidily_when_terminated()
    try:
        return _demo(options)
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130


def _demo(options: argparse.Namespace) -> int:
    start = time.perf_counter()
    print("reading pictures, training the model ...", file=sys.stderr, flush=True)
    pipelines = _pipelines(options.megabytes, options.tasks)
    steps = sum(len(one.items) for one in pipelines) * (1 + 2 * options.rounds)
    with counted_traffic() as traffic, _pools(options.workers) as pools:
        with Progress(steps) as progress:
            for pipeline in pipelines:
                _compare(pipeline, pools, progress)
                for number in range(options.rounds):
                    for name in sorted(pools, reverse=bool(number % 2)):
                        _time(pipeline, name, pools[name], traffic, progress)
        _show(pipelines, options.workers, time.perf_counter() - start)
    return 0


def _pipelines(megabytes: float, tasks: int) -> list[Pipeline]:
    return [
        Pipeline("denoise", denoise, photographs(megabytes, tasks), "large in, large out"),
        Pipeline("predict", partial(predict, trained_model()), scans(megabytes, tasks), "large in"),
        Pipeline("patches", patches, pictures(megabytes, tasks), "large out"),
    ]


@contextmanager
def _pools(workers: int) -> Iterator[dict[str, Any]]:
    # Ctrl-C reaches every process of the terminal: workers leave it to this one, which then
    # drops the work that has not begun, and waits for what has.
    raw = concurrent.futures.ProcessPoolExecutor(workers, initializer=_leave_signals)
    ours = proxyexec.ProcessPoolExecutor(workers, initializer=_leave_signals)
    pools = {"raw pool": raw, "proxyexec": ours}
    try:
        for pool in pools.values():
            # Workers start with the first tasks; everyone has to get one.
            list(pool.map(time.sleep, [0.05] * workers))
        yield pools
    finally:
        for pool in pools.values():
            pool.shutdown(wait=True, cancel_futures=True)


def _compare(pipeline: Pipeline, pools: dict[str, Any], progress: Progress) -> None:
    """Check that both pools return the same, before anything is timed."""
    streams = [pool.map(pipeline.function, pipeline.items) for pool in pools.values()]
    for one, other in zip(*streams, strict=True):
        same = type(one) is type(other) and one.dtype == other.dtype and np.array_equal(one, other)
        if not same:
            raise SystemExit(f"{pipeline.name}: the pools' results differ; this is a bug")
        pipeline.returned += one.nbytes
        progress.step(f"{pipeline.name}: comparing results")


def _time(pipeline: Pipeline, name: str, pool: Any, traffic: Traffic, progress: Progress) -> None:
    before = traffic.total
    start = time.perf_counter()
    for result in pool.map(pipeline.function, pipeline.items):
        # What a pipeline does next: it looks at the data, all of them.
        result.max()
        progress.step(f"{pipeline.name}: {name}")
    pipeline.seconds.setdefault(name, []).append(time.perf_counter() - start)
    pipeline.traffic[name] = traffic.total - before


def _show(pipelines: Sequence[Pipeline], workers: int, elapsed: float) -> None:
    rows = []
    for one in pipelines:
        raw, ours = (statistics.median(one.seconds[name]) for name in ("raw pool", "proxyexec"))
        rows.append(
            [
                one.name,
                size_name(sum(item.nbytes for item in one.items)),
                size_name(one.returned),
                duration(raw),
                duration(ours),
                size_name(one.traffic["raw pool"]),
                size_name(one.traffic["proxyexec"]),
                f"{raw / ours:.2f}x",
            ]
        )
    show_table(
        f"{len(pipelines[0].items)} tasks each, {workers} workers; medians of "
        f"{len(pipelines[0].seconds['raw pool'])} rounds",
        ["pipeline", "in", "out", "raw pool", "proxyexec", "raw pipes", "our pipes", "faster"],
        rows,
        notes=[
            "All results are equal, bit for bit.",
            "Pipes: bytes between the caller and the workers; the rest is in shared memory.",
            "Times include the functions' own work, which no pool makes faster.",
            f"{elapsed:.0f} s in all.",
        ],
    )


def _leave_signals() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example: python benchmarks/demo.py --megabytes 100 --workers 4",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--megabytes",
        type=at_least(0.1, float),
        default=50,
        metavar="MB",
        help="size of one task's data (default: 50; pictures end at about 100)",
    )
    parser.add_argument(
        "--tasks", type=at_least(1), default=6, metavar="N", help="of a pipeline (default: 6)"
    )
    parser.add_argument(
        "--workers", type=at_least(1), default=2, metavar="N", help="processes (default: 2)"
    )
    parser.add_argument(
        "--rounds", type=at_least(1), default=3, metavar="N", help="timed (default: 3)"
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
