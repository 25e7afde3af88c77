"""Random numbers as a function of (seed, epoch, stream, row): the same for any order, number of workers and restart.

Philox is counter-based: row `i` of a stream begins at counter `i * width / 4`, so that it is found without drawing
the rows before it. Only raw bits are used, which numpy keeps stable over its versions.
"""

from enum import IntEnum

import numpy as np
from numpy.random import Philox


class Stream(IntEnum):
    """What numbers are drawn for; streams never overlap."""

    CROP = 0
    ORDER = 1
    REPLACEMENT = 2
    SHAPES_TRAIN = 3
    SHAPES_TEST = 4
    COLOR = 5
    VIEW = 6


def raw(seed: int, epoch: int, stream: Stream, count: int, start: int = 0) -> np.ndarray:
    """`count` uint64 numbers from the one at `start`, a multiple of 4, on."""
    key = np.array([seed, epoch], dtype=np.uint64)
    return np.asarray(Philox(key=key, counter=[0, 0, 0, stream]).advance(start // 4).random_raw(count))


def uniforms(seed: int, epoch: int, stream: Stream, rows: range, width: int) -> np.ndarray:
    """Rows of the stream's table, float64 (len(rows), width) in [0, 1); `width` is a multiple of 4."""
    bits = raw(seed, epoch, stream, len(rows) * width, rows.start * width)
    return (bits.reshape(-1, width) >> np.uint64(11)) * 2.0**-53


def permutation(seed: int, epoch: int, count: int) -> np.ndarray:
    """A random order of `count` samples, int64 (count,)."""
    return np.argsort(raw(seed, epoch, Stream.ORDER, count), kind="stable")


def replacements(seed: int, epoch: int, sample: int, count: int, tries: int) -> np.ndarray:
    """Samples that stand in for `sample` if it cannot be read, in the order in which to try them, int64 (tries,)."""
    row = uniforms(seed, epoch, Stream.REPLACEMENT, range(sample, sample + 1), tries)[0]
    return np.asarray(row * count, dtype=np.int64)
