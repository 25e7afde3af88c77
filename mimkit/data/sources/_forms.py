"""The forms of `shapes`: about the signed distance from the outline, negative inside, in a circle of radius 1."""

import torch
from jaxtyping import Float
from torch import Tensor

Plane = Float[Tensor, "n H W"]


def disc(x: Plane, y: Plane, radius: float = 0.9) -> Plane:
    """A filled circle."""
    return (x * x + y * y).sqrt() - radius


def ring(x: Plane, y: Plane) -> Plane:
    """A circle with a hole."""
    return disc(x, y, 0.72).abs() - 0.22


def crescent(x: Plane, y: Plane) -> Plane:
    """A disc without another one beside its middle."""
    return torch.maximum(disc(x, y, 1.0), -disc(x - 0.5, y, 0.85))


def half_disc(x: Plane, y: Plane) -> Plane:
    """A disc cut through."""
    return torch.maximum(disc(x, y + 0.4, 1.0), -(y + 0.4))


def triangle(x: Plane, y: Plane) -> Plane:
    """Equilateral."""
    return torch.maximum(x.abs() * 0.8660254 - y * 0.5, y) - 0.5


def bar(x: Plane, y: Plane, width: float, height: float) -> Plane:
    """A rectangle of the given half sides."""
    return torch.maximum(x.abs() - width, y.abs() - height)


def square(x: Plane, y: Plane) -> Plane:
    """Equal sides."""
    return bar(x, y, 0.7, 0.7)


def cross(x: Plane, y: Plane) -> Plane:
    """Two bars crossed in the middle."""
    return torch.minimum(bar(x, y, 0.95, 0.3), bar(x, y, 0.3, 0.95))


def corner(x: Plane, y: Plane) -> Plane:
    """Two bars that meet at their ends."""
    return torch.maximum(bar(x, y, 0.72, 0.72), -bar(x - 0.5, y - 0.5, 0.72, 0.72))


def heart(x: Plane, y: Plane) -> Plane:
    """Two discs over a square on its tip."""
    x, y = x.abs(), y + 0.15
    lobes = disc(x - 0.42, y + 0.22, 0.52)
    tip = torch.maximum(x + y - 0.935, torch.maximum(x - y - 0.64, -x - y - 0.2)) * 0.7071068
    return torch.minimum(lobes, tip)


def star(x: Plane, y: Plane) -> Plane:
    """Five points: the plane is folded onto one half point, as in Quilez' 2D distance functions."""
    x, y = x.abs(), -y
    for a, b in ((0.809017, -0.587785), (-0.809017, -0.587785)):
        fold = torch.clamp(x * a + y * b, min=0) * 2
        x, y = x - fold * a, y - fold * b
    return x.abs() * 0.923 + (y - 1) * 0.384


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
