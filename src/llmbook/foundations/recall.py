"""How many pairs of key and value a state of fixed size can name.

Page: foundations/recurrence. Keys and values are random directions of H numbers, each pair is
written once into a matrix of H x H, and the answer is the value nearest in direction to what a key
reads. A random direction has with any other a cosine x of which atanh(x) is near normal, with
variance 1 / (H - 2) (Fisher's transformation), so the best of V wrong values reaches about
tanh(m / sqrt(H - 2)), m the median of the largest of V normal numbers.
Left out: keys that are alike, on which the page measures what becomes of this.
"""

from __future__ import annotations

import math

import torch


def median_of_largest(count: int) -> float:
    """Median of the largest of so many normal numbers.

    >>> round(median_of_largest(1024), 2)
    3.2
    """
    return float(torch.special.ndtri(torch.tensor(2 ** (-1 / count), dtype=torch.float64)))


def pairs_at_one_half(head_dim: int, *, num_values: int) -> float:
    """How many pairs a sum may hold before it names fewer than half: H (H - 2) / m² - H / 3.

    What is read has the cosine 1 / sqrt(1 + n / H) with the right value; two terms of the series
    of n = H / sinh(m / sqrt(H - 2))².

    >>> round(pairs_at_one_half(64, num_values=1024))
    365
    """
    m = median_of_largest(num_values)
    return head_dim * (head_dim - 2) / m**2 - head_dim / 3


def delta_rule_age(head_dim: int, *, num_values: int) -> float:
    """How many of the newest pairs the delta rule at rate 1 can name: H/2 ln((H - 2)/m²) + m²/3.

    After a later writes the cosine is e^(-a / H); two terms of the series of
    a = -H ln tanh(m / sqrt(H - 2)).

    >>> round(delta_rule_age(64, num_values=1024))
    61
    """
    m = median_of_largest(num_values)
    return head_dim / 2 * math.log((head_dim - 2) / m**2) + m**2 / 3


def expected_recall(num_pairs: int, *, head_dim: int, num_values: int) -> float:
    """Share of pairs of which a sum names the right value among `num_values`.

    The other pairs add noise of squared length (n - 1) / H, part of it along the right value.

    Raises:
        ValueError: if `head_dim` is below 3.

    >>> round(expected_recall(64, head_dim=64, num_values=1024), 2)
    1.0
    """
    if head_dim < 3:
        raise ValueError(f"head_dim {head_dim} is below 3: too few numbers for random directions")
    z = torch.linspace(-8, 8, 2001, dtype=torch.float64)
    noise = (num_pairs - 1) / head_dim
    along = 1 + z * math.sqrt(noise / head_dim)  # of the right value
    cosine = along / (along**2 + noise * (1 - 1 / head_dim) + 1e-12).sqrt()
    beats_one = torch.special.ndtr(cosine.atanh() * math.sqrt(head_dim - 2))
    density = (-(z**2) / 2).exp() / math.sqrt(2 * math.pi)
    return float(torch.trapezoid(beats_one ** (num_values - 1) * density, z))
