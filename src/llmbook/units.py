"""Numbers with names: powers of ten and of two, seconds, bytes of a number format.

Page: notation.
"""

KB, MB, GB, TB = 10**3, 10**6, 10**9, 10**12
KIB, MIB, GIB, TIB = 2**10, 2**20, 2**30, 2**40

MILLION, BILLION, TRILLION = 10**6, 10**9, 10**12

SECONDS_PER_DAY = 86_400
PETAFLOP_DAY = 10**15 * SECONDS_PER_DAY  # FLOPs of one petaFLOP/s kept up for a day

BYTES = {"fp32": 4, "tf32": 4, "bf16": 2, "fp16": 2, "fp8": 1, "int8": 1}
"""Bytes of one number in each format that stores whole bytes (tf32 is stored as fp32)."""


def bytes_of(dtype: str) -> int:
    """Bytes of one number of the format.

    Raises:
        ValueError: if the format is unknown.

    >>> bytes_of("bf16")
    2
    """
    if dtype not in BYTES:
        raise ValueError(f"dtype {dtype!r} is not one of {', '.join(BYTES)}")
    return BYTES[dtype]


def below(error: float, bound: float) -> str:
    """What a page prints of a rounding error: not its digits, which change with the processor, but a bound.

    Raises:
        ValueError: if the error is not below the bound, or is not a number.

    >>> f"largest difference {below(3e-16, 1e-14)}"
    'largest difference below 1e-14'
    """
    if not error < bound:
        raise ValueError(f"error {error:.3g} is not below its bound {bound:g}")
    return f"below {bound:g}"


def in_words(count: float) -> str:
    """A count as people say it: three significant digits and a letter for the power of ten.

    >>> in_words(6_738_415_616), in_words(124_439_808), in_words(950)
    ('6.74 B', '124 M', '950')
    """
    for size, letter in ((TRILLION, "T"), (BILLION, "B"), (MILLION, "M"), (10**3, "k")):
        if abs(count) >= size:
            scaled = count / size
            digits = max(0, 2 - (len(str(int(abs(scaled)))) - 1))
            return f"{scaled:.{digits}f} {letter}"
    return f"{count:g}"
