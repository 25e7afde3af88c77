"""Numbers of any type and order of axes to uint8 images (C, H, W)."""

import numpy as np

from mimkit.data.source import BadImage

ValueRange = tuple[float, float]


def to_uint8(values: np.ndarray, value_range: ValueRange | None = None) -> np.ndarray:
    """Values scaled to uint8: `value_range` goes linearly to 0…255, rounded; what lies outside is clipped.

    Without a range uint8 stays as it is, uint16 has (0, 65535), floats have (0, 1) and must lie in it.
    Raises BadImage for other types, values that are not finite, and floats outside of (0, 1).
    """
    if values.dtype == np.uint8 and value_range is None:
        return values
    if values.dtype == bool:
        return values.astype(np.uint8) * np.uint8(255)
    if value_range is None and values.dtype.kind not in "uf":
        raise BadImage(f"its values are {values.dtype}; data.value_range=[low, high] says what becomes 0 and 255")
    scaled = values.astype(np.float32)
    if not np.isfinite(scaled).all():
        raise BadImage("it holds values that are not finite")
    if value_range is None:
        value_range = (0, 1) if values.dtype.kind == "f" else (0, np.iinfo(values.dtype).max)
        if values.dtype.kind == "f" and not (scaled.min() >= 0 and scaled.max() <= 1):
            raise BadImage(
                f"its values lie in {scaled.min():g}…{scaled.max():g}, not 0…1; "
                "data.value_range=[low, high] says what becomes 0 and 255"
            )
    low, high = value_range
    return np.asarray(np.rint(np.clip((scaled - low) / (high - low), 0, 1) * 255), dtype=np.uint8)


def channels_first(values: np.ndarray) -> np.ndarray:
    """(H, W), (H, W, C) or (C, H, W) as (C, H, W). Of first and last axis the shorter is the channels', else the last.

    Raises BadImage for other shapes.
    """
    if values.ndim == 2 and values.size:
        return values[None]
    if values.ndim == 3 and values.size:
        return values if values.shape[0] < values.shape[2] else np.moveaxis(values, 2, 0)
    raise BadImage(f"its shape {values.shape} is none of (H, W), (H, W, C), (C, H, W)")
