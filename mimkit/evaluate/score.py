"""What `mimkit eval` does: a frozen encoder and labelled images go through probes; a table, and a JSON of the scores."""

import hashlib
import json
import os
import time
from collections.abc import Iterator, Sequence
from math import sqrt
from pathlib import Path
from typing import Any, Literal

import torch

import mimkit
from mimkit.data.open import open_data
from mimkit.data.source import Source
from mimkit.device import chosen_device
from mimkit.disk import write_text
from mimkit.draft import load_recipe
from mimkit.errors import UserError
from mimkit.evaluate.frozen import Frozen, Split
from mimkit.evaluate.labelled import fingerprint, labelled_sources, labels_sha256
from mimkit.evaluate.options import BESIDE_WEIGHTS, OF_ENCODERS, OF_IMAGES, EvalSettings, read_order
from mimkit.evaluate.target import target_encoder
from mimkit.saved.encoder import describe, load, weights_file
from mimkit.types import Encoder

POOLS = {"mean": "mean of the patch tokens", "cls": "class token"}


def score(
    weights: Path, probes: Sequence[str], given: Sequence[str], output: Path, settings: str | None = None
) -> Iterator[str]:
    """Score the encoder (or the target) of a run or weights file by probes, with options `key=value`; gives the table's lines.

    output: the JSON that is written at the end. settings: a file of options, see `read_order`.
    Raises UserError, and Stopped where a signal stopped a fine-tuning after saving.
    """
    if not weights.exists():
        raise UserError(f"{weights}: no such run folder or weights file")
    home = weights if weights.is_dir() else weights.parent
    order = read_order(home, probes, given, settings)
    encoder, file, built = _subject(weights, home, order.settings.of)
    _check(encoder.to(chosen_device(order.settings.device)), order.settings, probes)
    if not BESIDE_WEIGHTS.isdisjoint(probes) and not os.access(home, os.W_OK):
        raise UserError(f"{home} cannot be written to, and finetune and segment keep files there: score a copy of it")
    told: dict[str, Any] = {"weights_sha256": _sha256(encoder, file), "built": built, "mimkit": mimkit.__version__}
    sources: dict[Split, Source] = {}
    of: dict[Split, Any] = {}
    if order.data is not None:
        name, options = order.data.name, order.data.options
        told["data"] = {"name": name, **options}
        data = open_data(name, options, encoder.image_size, encoder.in_chans)
        sources = labelled_sources(data, order.settings.bank, order.settings.queries)
        told["labels_sha256"] = labels_sha256(sources)
        of = {split: {**told, "images": fingerprint(name, source)} for split, source in sources.items()}
        yield f"{weights} on {name}: {len(sources['train'])} training and {len(sources['test'])} test images"
        if order.probes.keys() - {"finetune"}:
            pool = POOLS[order.settings.pool]
            yield f"features of full images; {pool} for knn, linear and linear_lars; top-1 ± standard error"
    folder = Path(order.settings.cache) if order.settings.cache else home / "features"
    frozen = Frozen(encoder, sources, order.settings.pool, folder, of, file)
    count = {split: len(source) for split, source in sources.items()}
    found: dict[str, Any] = {}
    for probe, run in order.probes.items():
        began = time.perf_counter()
        result = run(frozen)
        seconds = round(time.perf_counter() - began, 2)
        found[probe] = {"metric": result.metric, result.metric: result.value}
        if result.metric == "top1":
            tested = count["test"] - frozen.unreadable.get("test", 0)
            found[probe]["standard_error"] = sqrt(result.value * (100 - result.value) / tested)
        found[probe] |= {"options": dict(vars(run)), **result.details, "seconds": seconds}
        error = f" ± {found[probe]['standard_error']:.2f}" if result.metric == "top1" else ""
        yield f"{probe:<10} {result.value:6.2f}{error} %   {result.note}"
    yield from (f"{number} {split} images could not be read" for split, number in frozen.unreadable.items() if number)
    report = {"weights": str(file or weights), "of": order.settings.of, **told}
    report |= {name: getattr(order.settings, name) for name in sorted(OF_IMAGES)}
    if sources:
        report |= {"images": count, "unreadable": frozen.unreadable}
    output.parent.mkdir(parents=True, exist_ok=True)
    write_text(output, json.dumps({**report, "probes": found}, indent=1) + "\n")
    yield f"written to {output}"


def _subject(
    weights: Path, home: Path, of: Literal["encoder", "target"]
) -> tuple[Encoder, Path | None, dict[str, Any]]:
    """What is scored, the file of its weights where it is an encoder of ours, and how it is built. Raises UserError."""
    if of == "encoder":
        file = weights_file(weights)
        name, options, _ = describe(file)
        return load(file), file, {"name": name, **options}
    if not (home / "recipe.yaml").is_file():
        raise UserError(f"of=target: {weights} is no run's folder, and only a run has a target")
    recipe = load_recipe(home / "recipe.yaml")
    target = next(iter(recipe.objectives.values())).target
    return target_encoder(recipe), None, {"name": target.name, **target.options}


def _sha256(encoder: Encoder, file: Path | None) -> str:
    """Of the weights: of their file, or of all they hold."""
    if file is None:
        digest = hashlib.sha256()
        for name, tensor in encoder.state_dict().items():
            digest.update(name.encode() + tensor.cpu().numpy().tobytes())
        return digest.hexdigest()
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _check(encoder: Encoder, settings: EvalSettings, probes: Sequence[str]) -> None:
    """Raise UserError, before any work is done, where the encoder does not give what is asked for."""
    name = type(encoder).__module__.rpartition(".")[2]
    if settings.of == "target" and (wrong := sorted(OF_ENCODERS.intersection(probes))):
        raise UserError(f"of=target: {', '.join(wrong)} need an encoder of a run; knn, linear and attentive do not")
    if "layers" in probes and not encoder.num_layers:
        raise UserError(f"--probe layers: encoder '{name}' gives no intermediate layers; vit and beit do")
    device = next(encoder.parameters()).device
    with torch.no_grad():
        features = encoder(torch.zeros(1, encoder.in_chans, *encoder.image_size, dtype=torch.uint8, device=device))
    if settings.pool == "cls" and features.cls is None:
        raise UserError(f"pool=cls: this encoder '{name}' has no class token; take pool=mean")
