"""Pictures of the rows for the same images: what each reconstructs, and what its features look like."""

import base64
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from mimkit.compare.report_rows import Row
from mimkit.data.open import open_data
from mimkit.draft import load_recipe
from mimkit.evaluate.features import sample_views
from mimkit.saved.encoder import load, weights_file
from mimkit.show.features import draw_features
from mimkit.show.run import draw as draw_run

IMAGES = 4  # that are drawn
QUALITY = 82  # of WebP


@dataclass(frozen=True)
class Picture:
    """One sheet: what it shows, in words, and its file as a data URI; where it cannot be drawn, why."""

    alt: str
    uri: str = ""
    size: tuple[int, int] = (0, 0)
    missing: str = ""


def draw_pictures(row: Row) -> list[Picture]:
    """Reconstructions and features of a row's first seed, for the same test images as those of the other rows.

    They are drawn once, into the run's pictures/, and again only after its weights have changed.
    """
    run = row.folders[0]
    return [
        _sheet(run, "reconstruction", f"Test images, masked, and what {row.name} makes of them", _draw_reconstruction),
        _sheet(run, "features", f"Test images and the features that {row.name} gives", _draw_features),
    ]


def _sheet(run: Path, name: str, alt: str, draw: Callable[[Path, Path], object]) -> Picture:
    path = run / "pictures" / f"report-{name}.webp"
    try:
        if not path.is_file() or path.stat().st_mtime < weights_file(run).stat().st_mtime:
            whole = path.with_suffix(".png")
            draw(run, whole)
            with Image.open(whole) as image:
                image.convert("RGB").save(path, "WEBP", quality=QUALITY, method=6)
            whole.unlink()
        with Image.open(path) as image:
            size = image.size
    except Exception as error:  # whatever it is, it is not worth the page
        return Picture(alt, missing=(str(error) or type(error).__name__).splitlines()[0])
    encoded = base64.b64encode(path.read_bytes()).decode("ascii")
    return Picture(alt, f"data:image/webp;base64,{encoded}", size)


def _draw_reconstruction(run: Path, path: Path) -> None:
    draw_run(run, None, path, IMAGES)


def _draw_features(run: Path, path: Path) -> None:
    data = load_recipe(run / "recipe.yaml").data
    encoder = load(run)
    images = sample_views(open_data(data.name, data.options, encoder.image_size, encoder.in_chans), encoder, IMAGES)
    draw_features(encoder, images, path)
