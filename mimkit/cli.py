"""The commands. Each is a thin door to the package; what goes wrong by the user's hand is one line and exit code 2."""

import os
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from mimkit.arguments import Overrides, Plugin, Recipe, Weights, check_writable
from mimkit.errors import UserError

EXIT_FAILED, EXIT_MISTAKE, EXIT_STOPPED = 1, 2, 75
ClickException: Any = typer.BadParameter.__mro__[2]  # whichever click typer carries

app = typer.Typer(
    name="mimkit",
    help="Masked image modelling: an encoder reads a masked image, a head predicts, at the masked places, "
    "a normalised target.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


@app.command(epilog="Example: mimkit train mae data=./photos image_size=64 train.epochs=20 --out runs/photos")
def train(
    recipe: Recipe,
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="The run's folder; default runs/<method>-<n>.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out, or with the latest.")] = False,
    plugin: Plugin = None,
) -> None:
    """Train a recipe.

    The run's folder takes recipe.yaml, metrics.jsonl, checkpoints/, pictures/, encoder.safetensors and summary.json.
    Ctrl-C or SIGTERM saves and leaves with 75; --resume then goes on, bit for bit.
    """
    from mimkit.draft import draft
    from mimkit.train.run import choose_folder

    drafted = draft(recipe, overrides or ())
    folder = choose_folder(out, drafted.method, resume)
    checked = drafted.recipe()

    from mimkit.train.loop import train as run

    summary = run(checked, folder, resume)
    if summary["exit"] != "done":
        typer.echo(f"stopped by {summary['exit']} at step {summary['step']}, saved; go on with --resume --out {folder}")
        raise typer.Exit(EXIT_STOPPED)
    typer.echo(f"done: {summary['step']} steps, {summary['seconds']:.0f} s, loss {summary['loss']:.4f}")
    if summary["knn_top1"] is not None:
        before, after = summary["knn_top1_untrained"], summary["knn_top1"]
        typer.echo(f"kNN top-1: untrained encoder {before:.1f} %, trained encoder {after:.1f} %")
    typer.echo(f"pictures:  {folder / 'pictures'}\nencoder:   {folder / 'encoder.safetensors'}")


@app.command(epilog="Example: mimkit check mae data=./photos image_size=64")
def check(recipe: Recipe, overrides: Overrides = None, plugin: Plugin = None) -> None:
    """Validate a recipe, build it, look through its data, run one step, and say what it takes."""
    from mimkit.draft import load_recipe

    checked = load_recipe(recipe, overrides or ())

    from mimkit.train.check import report

    for line in report(checked):
        typer.echo(line)


@app.command("eval", epilog="Example: mimkit eval runs/mae-1 --probe knn,linear knn.k=10")
def evaluate(
    weights: Weights,
    options: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Options, such as data=./photos or pool=cls.")
    ] = None,
    probe: Annotated[
        str, typer.Option(help="One or more of knn,linear,linear_lars,layers,attentive,attentive_sgd,finetune,segment.")
    ] = "knn,linear",
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="The JSON to write; default eval.json beside the weights.")
    ] = None,
    settings: Annotated[
        str | None, typer.Option(metavar="NAME", help="The authors' options for finetune, or a YAML file of options.")
    ] = None,
    plugin: Plugin = None,
) -> None:
    """Score a frozen encoder on labelled images: by default those of its run, or data=PATH.

    Its features are kept in features/ beside the weights, so that the next probe need not extract them again.
    The probe finetune trains the encoder: Ctrl-C or SIGTERM saves and leaves with 75, and the same command goes on.
    """
    output = output or (weights if weights.is_dir() else weights.parent) / "eval.json"
    check_writable(output)

    from mimkit.evaluate.finetune.run import Stopped
    from mimkit.evaluate.score import score

    try:
        for line in score(weights, probe.split(","), options or (), output, settings):
            typer.echo(line)
    except Stopped as stopped:
        typer.echo(f"{stopped}, saved; the same command goes on")
        raise typer.Exit(EXIT_STOPPED) from None


@app.command(epilog="Example: mimkit bench mae simmim maskfeat data=./photos mask.ratio=0.5,0.75 --seeds 3")
def bench(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="RECIPE... [KEY=VALUE]...", help="Recipes; overrides for all, or RECIPE:KEY=VALUE for one."
        ),
    ],
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each row, with the seeds 0, 1, ….")] = 3,
    equal: Annotated[str, typer.Option(help="What each run gets as much of: images, seconds or flops.")] = "images",
    budget: Annotated[
        float | None, typer.Option(help="How much of it; default: as many images as the first recipe takes.")
    ] = None,
    probes: Annotated[str, typer.Option(help="Probes as of mimkit eval; their options are overrides.")] = "knn,linear",
    out: Annotated[Path, typer.Option(help="The folder of the runs, results.json, results.md, report.html.")] = Path(
        "bench"
    ),
    plugin: Plugin = None,
) -> None:
    """Compare recipes: same images in the same order, same budget, same seeds, same probes.

    mask.ratio=0.5,0.75 makes a row for each value. A recipe that fails is a row that says why. Ctrl-C or SIGTERM leaves
    with 75; the same command goes on, after a kill, too, and trains nothing twice.
    """
    check_writable(out, is_folder=True, option="--out")

    from mimkit.compare.bench import compare
    from mimkit.compare.request import Request
    from mimkit.compare.work import Stopped

    try:
        done = compare(Request(tuple(words), seeds, equal, budget, tuple(probes.split(",")), out, tuple(plugin or ())))
    except Stopped:
        typer.echo("stopped; the same command goes on")
        raise typer.Exit(EXIT_STOPPED) from None
    if not done:
        raise typer.Exit(EXIT_FAILED)


@app.command(epilog="Example: mimkit show runs/mae-1 ./photos mask.ratio=0.5,0.75,0.9 -o ratios.png")
def show(
    weights: Weights,
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[IMAGES] [KEY=VALUE]...",
            help="A folder or other data; other masks for a run's weights, or a seed.",
        ),
    ] = None,
    output: Annotated[Path, typer.Option("-o", "--output", help="The PNG to write.")] = Path("show.png"),
    count: Annotated[int, typer.Option("-n", help="How many images.", min=1, max=8)] = 8,
    plugin: Plugin = None,
) -> None:
    """Draw what a run reconstructs, or what an encoder sees (principal components, attention).

    mask=random,block or mask.ratio=0.5,0.75 draws the masks side by side.
    """
    check_writable(output)
    images = [word for word in words or () if "=" not in word]
    if len(images) > 1:
        raise UserError(f"show draws one set of images, not {' and '.join(images)}; overrides are key=value")

    from mimkit.show.run import draw

    given = [word for word in words or () if "=" in word]
    typer.echo(draw(weights, images[0] if images else None, output, count, given))


@app.command(epilog="Example: mimkit generate runs/mage-1 --from photo.png --mask center -o painted.png")
def generate(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run on codes, such as mage.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The PNG to write.")] = Path("generate.png"),
    count: Annotated[
        int | None, typer.Option("-n", help="How many images; default 64, of a picture 6, for --score 1000.", min=1)
    ] = None,
    steps: Annotated[int, typer.Option(help="Forward passes an image.", min=1)] = 20,
    temperature: Annotated[float, typer.Option(help="Chance in which codes are kept.", min=0)] = 6.0,
    seed: Annotated[int, typer.Option(help="Of all that is drawn.", min=0)] = 0,
    picture: Annotated[Path | None, typer.Option("--from", metavar="IMAGE", help="Paint a part of it anew.")] = None,
    mask: Annotated[
        str | None,
        typer.Option(
            metavar="MASK", help="What to paint: a PNG's white pixels; or center, border, left, right, top, bottom."
        ),
    ] = None,
    score: Annotated[
        Path | None, typer.Option(metavar="RUN_OR_WEIGHTS", help="Draw nothing, measure images by this encoder.")
    ] = None,
    plugin: Plugin = None,
) -> None:
    """Paint images with a run that was trained on codes: out of nothing, or what is missing of a picture."""
    check_writable(output)

    from mimkit.generate.draw import draw_painted, draw_samples
    from mimkit.generate.sampler import Sampling
    from mimkit.generate.score import score as measure

    sampling = Sampling(steps, temperature)
    if score is not None:
        for line in measure(run, score, count or 1000, sampling, seed):
            typer.echo(line)
    elif picture is not None or mask is not None:
        typer.echo(draw_painted(run, output, count or 6, sampling, seed, picture, mask))
    else:
        typer.echo(draw_samples(run, output, count or 64, sampling, seed))


@app.command(epilog="Example: mimkit embed runs/mae-1 ./photos -o features.npz")
def embed(
    weights: Weights,
    images: Annotated[str, typer.Argument(metavar="IMAGES", help="A folder, a parquet file, or other data.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="FILE.npz, FILE.parquet or FILE.csv.")],
    plugin: Plugin = None,
) -> None:
    """Write the features (mean of the patch tokens) of all images, with their file names and labels."""
    check_writable(output)

    from mimkit.evaluate.embed import embed as write

    typer.echo(write(weights, images, output))


@app.command(epilog="Example: mimkit export runs/mae-1 -o encoder/ --to timm")
def export(
    run: Weights,
    output: Annotated[Path, typer.Option("-o", "--output", help="Where to write.")],
    to: Annotated[str, typer.Option(help="timm or safetensors.")],
    plugin: Plugin = None,
) -> None:
    """Hand the encoder over to other software."""
    check_writable(output, is_folder=True)

    from mimkit.weights.export import export as write

    typer.echo(write(run, output, to))


@app.command("import", epilog="Example: mimkit import mae_pretrain_vit_base.pth --as mae -o encoder/")
def import_weights(
    weights: Annotated[Path, typer.Argument(metavar="WEIGHTS", help="Authors' weights: .pth, .bin or .safetensors.")],
    method: Annotated[str, typer.Option("--as", metavar="METHOD", help="A method (mae, simmim, …), or a recipe.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The folder to write.")],
    overrides: Overrides = None,
    plugin: Plugin = None,
) -> None:
    """Take published weights over: an encoder, a tokenizer for target=vq; with the head, a run to show and go on with."""
    check_writable(output, is_folder=True)

    from mimkit.weights.importing import import_weights as write

    typer.echo(write(weights, method, output, overrides or ()))


@app.command("list", epilog="Example: mimkit list target")
def list_components(
    role: Annotated[str | None, typer.Argument(metavar="[ROLE]", help="encoder, mask, head, target, …")] = None,
    plugin: Plugin = None,
) -> None:
    """List every component with its options, defaults and one line of text; and the recipes."""
    from mimkit.catalogue import lines

    for line in lines(role):
        typer.echo(line)


def main() -> NoReturn:
    """Run the command line and leave with 0, 2 (the user's mistake), 75 (stopped after saving) or 1 (a bug; no row done)."""
    # Threads that wait for each other give the core away soon: else a step on a shared machine can take forty times as long.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # read when torch is loaded
    try:
        code: Any = app(standalone_mode=False)
    except UserError as error:
        sys.exit(_mistake(str(error)))
    except ClickException as error:
        sys.exit(_mistake(f"{error.format_message()} (mimkit --help shows the commands)"))
    except typer.Abort:
        sys.exit(_mistake("interrupted"))
    sys.exit(code or 0)


def _mistake(text: str) -> int:
    print(text, file=sys.stderr)
    return EXIT_MISTAKE
