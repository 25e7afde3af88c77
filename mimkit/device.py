"""Which device a command works on."""

import torch

from mimkit.errors import UserError


def chosen_device(wanted: str, option: str = "device") -> torch.device:
    """The device of an option: cpu, cuda, or auto, a GPU where there is one.

    option: its name in messages. Raises UserError where a GPU is asked for and there is none.
    """
    if wanted == "cuda" and not torch.cuda.is_available():
        raise UserError(f"{option}=cuda: no GPU is available to torch; use {option}=cpu")
    return torch.device("cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu")
