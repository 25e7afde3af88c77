"""MAE's training step against the implementations that can be installed: forward, backward, optimizer, on ready batches.

    python benchmarks/step.py [--config a|b] [--batch N] [--rounds N] [--peers NAME ...] [--tuned-peers] [--json]

First the losses are compared on the same weights, images and mask. Then every implementation trains in a process of its
own, so that the allocator settings of one do not help another, and the processes take turns, one at a time. mimkit runs
with what `mimkit train` sets, the peers as their examples run them; `--tuned-peers` gives them the same allocator settings
and the fused optimizer. A ratio is the median over the rounds of the ratio within a round.
"""

import argparse
import json
import multiprocessing
import statistics
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from io import StringIO
from math import nan
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from peers import BUILD, SHAPES, Lightly, Shape, build_huggingface, build_mimkit
from torch import Tensor

import mimkit
from mimkit.train.memory import keep_large_blocks
from mimkit.types import Standardize

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
GEMM = 8192 if CUDA else 2048  # rows and columns of the square product that gives the peak
PEERS = {"huggingface": "transformers", "lightly": "lightly", "vit-pytorch": "vit-pytorch"}  # what to pip install
COLUMNS = ("images_per_s", "to_mimkit", "to_best_peer", "of_gemm_peak", "peak_memory_gb")
Figures = dict[str, list[float]]  # by name, one per round


def compare_losses(shape: Shape, peers: list[str]) -> dict[str, str]:
    """How far loss and gradient of each peer lie from mimkit's with the same weights, images and mask, relatively."""
    torch.manual_seed(0)
    model = build_mimkit(shape)
    vit, head = model.encoder.timm_model, next(iter(model.objectives.values())).head
    images = replace(shape, batch=min(shape.batch, 16)).images()
    standard, noise, count = Standardize(3)(images), torch.rand(len(images), shape.places), shape.places // 4
    seen, unseen = noise.argsort(1).split((count, shape.places - count), dim=1)
    others: dict[str, tuple[Any, Tensor]] = {}  # first layer and loss
    if "huggingface" in peers:
        theirs = build_huggingface(shape)
        theirs.vit.embeddings.position_embeddings.data.copy_(vit.pos_embed)
        theirs.decoder.decoder_pos_embed.data.copy_(head.pos_embed)
        with redirect_stdout(StringIO()):
            mimkit.load_official(model, theirs.state_dict())
        first = theirs.vit.embeddings.patch_embeddings.projection
        others["huggingface"] = first, theirs(pixel_values=standard, noise=noise).loss
    if "lightly" in peers:
        theirs, ends = Lightly(shape), ("embed.", "predict.")
        theirs.backbone.vit.load_state_dict(vit.state_dict())
        weights = {name if name.startswith(ends) else f"decoder.{name}": t for name, t in head.state_dict().items()}
        theirs.load_state_dict(theirs.state_dict() | weights)
        keep = torch.cat([torch.zeros_like(seen[:, :1]), seen + 1], dim=1)
        others["lightly"] = theirs.backbone.vit.patch_embed.proj, theirs(standard, (keep, unseen + 1))
    hidden = torch.ones_like(noise, dtype=torch.bool).scatter_(1, seen, False)
    loss = model(images, mask=mimkit.Mask.from_hidden(hidden, fed=seen)).loss
    loss.backward()
    said = {"vit-pytorch": "not comparable: no class token, pixels not normalised"}
    slope = vit.patch_embed.proj.weight.grad  # the first layer's: all others lie on its way
    for name, (first, their_loss) in others.items():
        their_loss.backward()
        gap = abs(float(their_loss.double() / loss.double() - 1))
        steeper = (first.weight.grad - slope).abs().max() / slope.abs().max()
        said[name] = f"loss {float(their_loss):.6f}, off by {gap:.1e}; gradient of the first layer off by {steeper:.1e}"
    return {name: said[name] for name in peers}


def training_step(name: str, shape: Shape, tuned: bool) -> Callable[[], None]:
    """A function that does one step of an implementation on a batch that lies ready on the device."""
    images = (shape.images() if name == "mimkit" else Standardize(3)(shape.images())).to(
        DEVICE
    )  # peers expect standardised ones
    model = BUILD[name](shape).to(DEVICE).train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1.5e-4, fused=True if tuned else None)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cuda", torch.bfloat16, enabled=CUDA):
            out = model(images)
        loss = out if isinstance(out, Tensor) else out.loss
        loss.backward()
        optimizer.step()

    return step


def work(pipe: Connection, name: str, shape: Shape, tuned: bool, threads: int) -> None:
    """The life of a process: for every number that arrives do so many repetitions, send their seconds; 0 ends it."""
    torch.set_num_threads(threads)
    if tuned:
        keep_large_blocks()
    if name == "gemm":
        left, right, out = torch.randn(3, GEMM, GEMM).to(DEVICE, torch.bfloat16 if CUDA else torch.float32)
        once: Callable[[], object] = partial(torch.mm, left, right, out=out)
    else:
        once = training_step(name, shape, tuned)
    wait = torch.cuda.synchronize if CUDA else lambda: None
    while repetitions := pipe.recv():
        wait()
        began = time.perf_counter()
        for _ in range(repetitions):
            once()
        wait()
        pipe.send(time.perf_counter() - began)
    pipe.send(peak_memory() / 1e9)


def peak_memory() -> float:
    """Bytes: of the device, or of this process where Linux tells it."""
    if CUDA:
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")
    return 1024 * int(status.read_text().split("VmHWM:")[1].split()[0]) if status.exists() else nan


def take_turns(names: list[str], shape: Shape, tuned: bool, rounds: int, threads: int) -> tuple[Figures, Figures]:
    """Figures per repetition of each name by round, and the peak memory of each process in GB."""
    context = multiprocessing.get_context("spawn")
    pipes = {}
    for name in names:
        pipes[name], end = context.Pipe()
        arguments = (end, name, shape, tuned or name == "mimkit", threads)
        context.Process(target=work, args=arguments, daemon=True).start()
        end.close()  # so that the end of the process is seen here
    repetitions = {name: 20 if CUDA else 5 if name == "gemm" else 1 for name in names}

    def turn(name: str, count: int) -> float:
        pipes[name].send(count)
        return float(pipes[name].recv())

    for name in names:  # to warm up
        turn(name, 3)
    seconds: Figures = {name: [] for name in names}
    for number in range(rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            seconds[name].append(turn(name, repetitions[name]) / repetitions[name])
    return seconds, {name: [turn(name, 0)] for name in names}


def summary(seconds: Figures, memory: Figures, shape: Shape) -> dict[str, dict[str, float]]:
    """A line of figures per implementation, the fastest peer's name decided by the medians."""
    peers = [name for name in seconds if name not in ("mimkit", "gemm")]
    best = min(peers, key=lambda name: statistics.median(seconds[name])) if peers else "mimkit"
    peak = 2 * GEMM**3 / statistics.median(seconds["gemm"])

    def ratio(name: str, other: str) -> float:
        return statistics.median(b / a for a, b in zip(seconds[name], seconds[other]))

    lines = {}
    for name in ("mimkit", *peers):
        rate = shape.batch / statistics.median(seconds[name])
        figures = (rate, ratio(name, "mimkit"), ratio(name, best), rate * shape.flops() / peak, memory[name][0])
        lines[name] = dict(zip(COLUMNS, figures))
    return lines | {"gemm": {"tflops": peak / 1e12}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", choices=SHAPES, default="b", help="a: ViT-B/16 at 224 px; b: ViT-tiny at 32 px")
    parser.add_argument("--batch", type=int, help="images per step (a: 16, b: 256)")
    parser.add_argument("--rounds", type=int, default=10, help="turns of each process")
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=list(PEERS), help="which to run (all)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads of each process")
    parser.add_argument("--tuned-peers", action="store_true", help="peers too get allocator settings and fused AdamW")
    parser.add_argument("--json", action="store_true", help="print figures and every single time as JSON")
    given = parser.parse_args()
    shape = SHAPES[given.config]
    shape = replace(shape, batch=given.batch or shape.batch)
    peers = [name for name in given.peers if find_spec(PEERS[name].replace("-", "_"))]
    equal = compare_losses(shape, peers)
    equal |= {name: f"skipped: pip install {PEERS[name]}" for name in given.peers if name not in peers}
    names = ["mimkit", *peers, "gemm"]
    seconds, memory = take_turns(names, shape, given.tuned_peers, given.rounds, given.threads)
    lines = summary(seconds, memory, shape)
    if given.json:
        print(json.dumps({"config": given.config, "batch": shape.batch, "equal": equal, **lines, "seconds": seconds}))
        return
    for name, said in equal.items():
        print(f"{name:12} {said}")
    tflops, kind = lines.pop("gemm")["tflops"], "bf16" if CUDA else "fp32"
    print(f"\nconfig {given.config}, batch {shape.batch}, {given.threads} threads, {given.rounds} rounds, {kind}")
    print(f"peak: {tflops:.3f} TFLOP/s, a {GEMM} x {GEMM} x {GEMM} product\n")
    print(" " * 12, *(f"{column:>14}" for column in COLUMNS))
    for name, line in lines.items():
        print(f"{name:12}", *(f"{value:14.3f}" for value in line.values()))


if __name__ == "__main__":
    main()
