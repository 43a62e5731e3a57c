"""Time `metrics.evaluate` against the same metrics computed one by one.

    python tests/bench_metrics.py                       768 x 576, one thread
    python tests/bench_metrics.py --tno data/TNO        also all metrics of the 40 TNO pairs, all cores

The reference is tests/plain_metrics.py: one plain NumPy, SciPy or scikit-image call chain for each
metric, filters separable. Both run in turn on the same image, so that a busy machine slows both,
and their results must agree.
"""
import argparse
import statistics
import sys
import time
from pathlib import Path

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import plain_metrics

import metrics


def scene(height: int, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A textured pair and a fusion of it, uint8, deterministic."""
    rng = np.random.default_rng(0)

    def layer(sigma: float) -> np.ndarray:
        x = cv2.GaussianBlur(rng.standard_normal((height, width)), (0, 0), sigma)
        return x / x.std()

    shared = layer(20)
    ir = np.clip(110 + 35 * shared + 20 * layer(6), 0, 255)
    vis = np.clip(120 + 25 * shared + 25 * layer(2), 0, 255)
    fused = np.clip(0.6 * ir + 0.5 * vis - 10, 0, 255)
    return tuple(x.astype(np.uint8) for x in (fused, ir, vis))


def timed(function, *args) -> tuple[float, dict]:
    start = time.perf_counter()
    result = function(*args)
    return time.perf_counter() - start, result


def bench_evaluate(repeats: int) -> None:
    cv2.setNumThreads(1)
    images = scene(576, 768)
    for protocol in ("definition", "toolbox"):
        without = [name for name in metrics.NAMES if name != "FMI"]
        for title, names in (("all 16 metrics", metrics.NAMES), ("without FMI", without)):
            ours, plain = [], []
            for _ in range(repeats + 1):
                seconds, fast = timed(metrics.evaluate, *images, protocol, names)
                ours.append(seconds)
                seconds, slow = timed(plain_metrics.evaluate, *images, protocol, names)
                plain.append(seconds)
            worst = max(abs(fast[name] - slow[name]) for name in names)
            a, b = statistics.median(ours[1:]), statistics.median(plain[1:])
            ratio = statistics.median(y / x for x, y in zip(ours[1:], plain[1:]))
            print(f"{protocol:10s}  {title:14s}  evaluate {1000 * a:5.0f} ms   one by one {1000 * b:5.0f} ms   "
                  f"ratio {ratio:4.1f}   largest difference {worst:.0e}")


def bench_tno(root: Path) -> None:
    from dataset import load_pair, luma, named_pairs

    start = time.perf_counter()
    pairs = named_pairs("tno", root)

    def tasks():
        for pair in pairs:
            ir, vis = load_pair(pair)
            yield metrics.Task(pair.name, ir, luma(vis), {"average": metrics.baseline("average", ir, luma(vis))})

    done = sum(1 for _ in metrics.score_all(tasks(), ["definition"], None, metrics.cores()))
    print(f"{done} TNO pairs, all metrics, reading and starting {metrics.cores()} processes included: "
          f"{time.perf_counter() - start:.1f} s")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7, help="interleaved repeats (default: %(default)s)")
    parser.add_argument("--tno", type=Path, help="folder of the 40 TNO pairs")
    options = parser.parse_args()
    bench_evaluate(options.repeats)
    if options.tno:
        bench_tno(options.tno)
