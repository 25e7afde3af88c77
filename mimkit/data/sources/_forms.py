"""The forms of `shapes`: about the signed distance from the outline, negative inside, in a circle of radius 1."""

# mypy: disable-error-code="no-any-return"

import numpy as np
from jaxtyping import Float32

Plane = Float32[np.ndarray, "n H W"]


def disc(x: Plane, y: Plane, radius: float = 0.9) -> Plane:
    """A filled circle."""
    return np.sqrt(x * x + y * y) - radius


def ring(x: Plane, y: Plane) -> Plane:
    """A circle with a hole."""
    return np.abs(disc(x, y, 0.72)) - 0.22


def crescent(x: Plane, y: Plane) -> Plane:
    """A disc without another one beside its middle."""
    return np.maximum(disc(x, y, 1.0), -disc(x - 0.5, y, 0.85))


def half_disc(x: Plane, y: Plane) -> Plane:
    """A disc cut through."""
    return np.maximum(disc(x, y + 0.4, 1.0), -(y + 0.4))


def triangle(x: Plane, y: Plane) -> Plane:
    """Equilateral."""
    return np.maximum(np.abs(x) * 0.8660254 - y * 0.5, y) - 0.5


def bar(x: Plane, y: Plane, width: float, height: float) -> Plane:
    """A rectangle of the given half sides."""
    return np.maximum(np.abs(x) - width, np.abs(y) - height)


def square(x: Plane, y: Plane) -> Plane:
    """Equal sides."""
    return bar(x, y, 0.7, 0.7)


def cross(x: Plane, y: Plane) -> Plane:
    """Two bars crossed in the middle."""
    return np.minimum(bar(x, y, 0.95, 0.3), bar(x, y, 0.3, 0.95))


def corner(x: Plane, y: Plane) -> Plane:
    """Two bars that meet at their ends."""
    return np.maximum(bar(x, y, 0.72, 0.72), -bar(x - 0.5, y - 0.5, 0.72, 0.72))


def heart(x: Plane, y: Plane) -> Plane:
    """Two discs over a square on its tip."""
    x, y = np.abs(x), y + 0.15
    lobes = disc(x - 0.42, y + 0.22, 0.52)
    tip = np.maximum(x + y - 0.935, np.maximum(x - y - 0.64, -x - y - 0.2)) * 0.7071068
    return np.minimum(lobes, tip)


def star(x: Plane, y: Plane) -> Plane:
    """Five points: the plane is folded onto one half point, as in Quilez' 2D distance functions."""
    x, y = np.abs(x), -y
    for a, b in ((0.809017, -0.587785), (-0.809017, -0.587785)):
        fold = np.maximum(x * a + y * b, 0) * 2
        x, y = x - fold * a, y - fold * b
    return np.abs(x) * 0.923 + (y - 1) * 0.384


FORMS = {
    "disc": disc,
    "ring": ring,
    "crescent": crescent,
    "half disc": half_disc,
    "triangle": triangle,
    "square": square,
    "cross": cross,
    "corner": corner,
    "heart": heart,
    "star": star,
}
