"""How a ratio becomes a number of hidden places: the rule is the mask's option, since methods differ in it."""

import math
from typing import Literal

from mimkit.errors import UserError

Rounding = Literal["floor_visible", "ceil_hidden", "nearest"]


def hidden_count(places: int, ratio: float, count: int | None, rounding: Rounding, unit: str = "places") -> int:
    """Number of hidden places (or what `unit` says) out of `places`: `count` if given, else from the ratio.

    floor_visible: int(L·(1 - ratio)) stay visible, as MAE truncates (L=100, 0.9 leaves 9). ceil_hidden: as SimMIM.
    Raises UserError where nothing or everything would be hidden.
    """
    if count is None:
        visible = int(places * (1 - ratio))
        count = {
            "floor_visible": places - visible,
            "ceil_hidden": math.ceil(places * ratio),
            "nearest": round(places * ratio),
        }[rounding]
    if not 0 < count < places:
        raise UserError(
            f"the mask would hide {count} of {places} {unit}; mask.ratio or mask.count must leave some of both"
        )
    return count
