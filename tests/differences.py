"""Derivatives by differences, extrapolated: what an analytic derivative is compared with."""


def extrapolated_difference(f, x, step):
    """f'(x) from central differences of `step` and half of it, Richardson-extrapolated: its error is of order step⁴.

    `f` maps a number or a tensor to a number; a tensor `step` is a direction, along which the derivative is taken.
    """

    def central(h):
        return float(f(x + h * step) - f(x - h * step)) / (2 * h)

    return (4 * central(0.5) - central(1.0)) / 3


def relative_error(found, expected):
    """|found - expected| over |expected|; anything but zero counts as wrong where zero is expected."""
    return abs(found - expected) / abs(expected) if expected != 0 else abs(found)
