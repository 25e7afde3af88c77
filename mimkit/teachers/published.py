"""Weights that others published: had from the hub or its local cache, or refused in one line."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from mimkit.errors import UserError

HUB_TIMEOUT = 5  # seconds


@contextmanager
def published_weights(name: str, instead: str) -> Iterator[None]:
    """Around what may download. Without a network the local cache is looked through at once, without retries.

    Raises UserError, saying what to pass `instead`, where the weights cannot be had.
    """
    from huggingface_hub import constants, get_session

    offline = constants.HF_HUB_OFFLINE
    try:
        if not offline:
            get_session().head(constants.ENDPOINT, timeout=HUB_TIMEOUT)
    except Exception:  # whatever its HTTP library raises: the hub cannot be reached
        constants.HF_HUB_OFFLINE = True
    reached = not constants.HF_HUB_OFFLINE
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = one_line(error) if reached else "neither in the local cache nor to be downloaded: no network"
        raise UserError(f"weights of {name}: {reason}; pass {instead}") from error
    finally:
        constants.HF_HUB_OFFLINE = offline


def one_line(error: Exception) -> str:
    """What an exception says, on one line of at most 300 characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else f"{text[:299]}…"


@contextmanager
def fixed_seed() -> Iterator[None]:
    """Weights drawn inside are the same at every build, and the generator is afterwards as it was before."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        yield
