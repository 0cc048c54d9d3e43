"""Numbers in few bits: floating-point formats, integers with a scale, codebooks, and sums of them.

A format is data; `round_to` takes a tensor to the numbers that the format has, and leaves it in
float32 or float64, so that any format can be tried on any machine.

Page: foundations/number_formats. Papers: micikevicius2022fp8, Table 1 (fp8);
kalamkar2019study (bf16); dettmers20228bit (blocks) and dettmers2023qlora (NF4, double
quantization); gupta2015deep (stochastic rounding); goldberg1991every (sums).
Left out: packing codes into bytes, and everything that chooses a scale by the data it will meet.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class FloatFormat:
    """A binary format: one sign bit, `exponent_bits`, `mantissa_bits`.

    A code with exponent field e and mantissa field f is worth 2^(e - bias) (1 + f / 2^m), and
    2^(1 - bias) f / 2^m where e = 0 (a subnormal number). Of the highest exponent field, IEEE's
    formats give all codes to infinity and NaN; a format without infinity gives one code to NaN,
    or none, and the rest to numbers.

    >>> FP16.largest, FP16.smallest_normal, FP16.smallest_subnormal == 2.0**-24
    (65504.0, 6.103515625e-05, True)
    """

    name: str
    exponent_bits: int
    mantissa_bits: int
    has_infinity: bool = True
    has_nan: bool = True

    @property
    def bits(self) -> int:
        """Bits that a number takes; tf32 has 19, but lies in memory as 32."""
        return 1 + self.exponent_bits + self.mantissa_bits

    @property
    def bias(self) -> int:
        """What is taken from the exponent field: 2^(bits - 1) - 1 in all formats here."""
        return int(2 ** (self.exponent_bits - 1) - 1)

    @property
    def unit_roundoff(self) -> float:
        """Largest error of rounding over the number, while it is normal: 2^-(m + 1)."""
        return float(2.0 ** -(self.mantissa_bits + 1))

    @property
    def smallest_normal(self) -> float:
        """The least number with a full mantissa: 2^(1 - bias)."""
        return float(2.0 ** (1 - self.bias))

    @property
    def smallest_subnormal(self) -> float:
        """The least number above zero: 2^(1 - bias - m)."""
        return float(2.0 ** (1 - self.bias - self.mantissa_bits))

    @property
    def largest(self) -> float:
        """The largest number that is not infinite."""
        top_exponent = 2**self.exponent_bits - 1 - self.bias - self.has_infinity
        # in units of the last bit; without infinity, NaN takes the last code of the top exponent
        steps = 2 ** (self.mantissa_bits + 1) - 1 - (self.has_nan and not self.has_infinity)
        return math.ldexp(steps, top_exponent - self.mantissa_bits)


FP32 = FloatFormat("fp32", 8, 23)
TF32 = FloatFormat("tf32", 8, 10)
FP16 = FloatFormat("fp16", 5, 10)
BF16 = FloatFormat("bf16", 8, 7)
E5M2 = FloatFormat("fp8 E5M2", 5, 2)
E4M3 = FloatFormat("fp8 E4M3", 4, 3, has_infinity=False)  # E4M3FN in code
E2M1 = FloatFormat("fp4 E2M1", 2, 1, has_infinity=False, has_nan=False)


def finite_values(number_format: FloatFormat) -> Float[Tensor, " codes"]:
    """Every finite number of a format, rising, zero once: each code decoded.

    Raises:
        ValueError: for more than 16 bits, of which there are too many to list.

    >>> finite_values(E2M1).tolist()[7:]
    [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
    """
    m, bias = number_format.mantissa_bits, number_format.bias
    if number_format.bits > 16:
        raise ValueError(f"number_format {number_format.name} has more than 16 bits: too many")
    code = torch.arange(2 ** (number_format.bits - 1), dtype=torch.float64)
    exponent, fraction = (code / 2**m).floor(), (code % 2**m) / 2**m
    normal = 2 ** (exponent - bias) * (1 + fraction)
    value = torch.where(exponent == 0, 2.0 ** (1 - bias) * fraction, normal)
    positive = value[value <= number_format.largest]
    return torch.cat((-positive[1:].flip(0), positive))


def spacing(x: Float[Tensor, "*shape"], number_format: FloatFormat) -> Float[Tensor, "*shape"]:
    """Distance between the format's neighbours around x, in float64; never below the subnormals'.

    2^(e - m) where 2^e <= abs(x) < 2^(e + 1): it doubles with every power of two.

    >>> spacing(torch.tensor([1.0, 255.0, 256.0]), BF16).tolist()
    [0.0078125, 1.0, 2.0]
    """
    _, exponent = torch.frexp(x.double())  # x = fraction 2^exponent, fraction in [1/2, 1)
    least = 1 - number_format.bias
    power = (exponent - 1).clamp(min=least) - number_format.mantissa_bits
    return torch.ldexp(torch.ones_like(x, dtype=torch.float64), power)


def round_to(x: Float[Tensor, "*shape"], number_format: FloatFormat) -> Float[Tensor, "*shape"]:
    """The nearest number of the format, of two equally near the one with an even last bit.

    What rounds beyond the largest number becomes infinite; without infinity it becomes the
    largest, as torch 2.13 does for E4M3 (earlier releases, and others still, make it NaN).
    Clamp x to the largest beforehand to saturate in any format.
    The dtype stays that of x, which must hold the format's numbers: float32 or float64.

    >>> round_to(torch.tensor([0.1, 257.0, 259.0]), BF16).tolist()
    [0.10009765625, 256.0, 260.0]
    """
    step = spacing(x, number_format)
    return within_range((x.double() / step).round() * step, number_format).to(x.dtype)


def round_stochastically(
    x: Float[Tensor, "*shape"], number_format: FloatFormat, *, generator: torch.Generator
) -> Float[Tensor, "*shape"]:
    """One of the format's two neighbours of x, drawn so that the mean is x (gupta2015deep).

    Upwards with probability (x - below) / spacing; a number of the format stays what it is.
    """
    step = spacing(x, number_format)
    chance = torch.rand(x.shape, generator=generator, dtype=torch.float64, device=x.device)
    return within_range((x.double() / step + chance).floor() * step, number_format).to(x.dtype)


def within_range(x: Float[Tensor, "*shape"], number_format: FloatFormat) -> Float[Tensor, "*shape"]:
    """Numbers beyond the largest become infinite, or the largest where there is no infinity.

    >>> within_range(torch.tensor([512.0]), E4M3).item(), within_range(torch.tensor([7e4]), FP16).item()
    (448.0, inf)
    """
    beyond = math.inf if number_format.has_infinity else number_format.largest
    return torch.where(x.abs() > number_format.largest, x.sign() * beyond, x)


def running_sums(
    terms: Float[Tensor, "terms ..."], number_format: FloatFormat
) -> Float[Tensor, "terms ..."]:
    """Partial sums along the first dim, rounded to the format after every addition."""
    total, sums = torch.zeros_like(terms[0]), []
    for term in terms:
        total = round_to(total + term, number_format)
        sums.append(total)
    return torch.stack(sums)


def compensated_sums(
    terms: Float[Tensor, "terms ..."], number_format: FloatFormat
) -> Float[Tensor, "terms ..."]:
    """Partial sums that carry what rounding took off to the next term (Kahan's algorithm).

    Every operation is rounded to the format; goldberg1991every, theorem 8.
    """
    total, lost, sums = torch.zeros_like(terms[0]), torch.zeros_like(terms[0]), []
    for term in terms:
        wanted = round_to(term - lost, number_format)
        after = round_to(total + wanted, number_format)
        lost = round_to(round_to(after - total, number_format) - wanted, number_format)
        total = after
        sums.append(total)
    return torch.stack(sums)


def quantize_absmax(
    x: Float[Tensor, "*shape"], *, bits: int = 8, dim: int | None = None
) -> tuple[Int[Tensor, "*shape"], Float[Tensor, "*scale"]]:
    """Integers from -(2^(bits-1) - 1) to 2^(bits-1) - 1 and the scale to multiply them by.

    The scale is max abs(x) / (2^(bits-1) - 1), of the whole tensor, or of each row along `dim`:
    dettmers2022llmint8, section 2.1.

    >>> codes, scale = quantize_absmax(torch.tensor([1.0, -0.5, 0.1]))
    >>> codes.tolist(), round(scale.item() * 127, 6)
    ([127, -64, 13], 1.0)
    """
    top = 2 ** (bits - 1) - 1
    size = x.abs().amax() if dim is None else x.abs().amax(dim, keepdim=True)
    scale = torch.where(size > 0, size, 1.0) / top  # a row of zeros has codes 0 and any scale
    return (x / scale).round().to(torch.int32), scale


def quantize_zero_point(
    x: Float[Tensor, "*shape"], *, bits: int = 8, dim: int | None = None
) -> tuple[Int[Tensor, "*shape"], Float[Tensor, "*scale"], Int[Tensor, "*scale"]]:
    """Integers from 0 to 2^bits - 1, the scale, and the integer that stands for zero.

    x = scale (code - zero point), where the range from min(x, 0) to max(x, 0) is spread over all
    codes and zero stays exact: jacob2018quantization, eq. (1).

    >>> codes, scale, zero_point = quantize_zero_point(torch.tensor([-1.0, 0.0, 4.1]))
    >>> codes.tolist(), round(scale.item(), 6), zero_point.item()
    ([0, 50, 255], 0.02, 50)
    """
    top = 2**bits - 1
    low = (x.amin() if dim is None else x.amin(dim, keepdim=True)).clamp(max=0)
    high = (x.amax() if dim is None else x.amax(dim, keepdim=True)).clamp(min=0)
    scale = torch.where(high > low, high - low, 1.0) / top
    zero_point = (-low / scale).round()
    codes = ((x / scale).round() + zero_point).clamp(0, top)
    return codes.to(torch.int32), scale, zero_point.to(torch.int32)


def normal_float(bits: int = 4) -> Float[Tensor, " codes"]:
    """NF4 and its kin: quantiles of the normal distribution, scaled to reach from -1 to 1.

    With Q the quantile function: zero, Q at 2^(bits-1) evenly spaced places from 1/2 (left out)
    up to the offset, -Q at one place fewer, all over Q(offset). The offset lies halfway between
    1 - 1 / 2^(bits+1) and 1 - 1 / (2^(bits+1) - 2), the middles of the outermost of 2^bits and of
    2^bits - 1 equal shares; 0.9677083 for 4 bits, seven digits as in bitsandbytes'
    `create_normal_map`, which makes the table printed in dettmers2023qlora, appendix E.
    (Its eq. 4 makes another one.)

    >>> [round(value, 4) for value in normal_float(2).tolist()]
    [-1.0, 0.0, 0.4358, 1.0]
    """
    positives, shares = 2 ** (bits - 1), 2 ** (bits + 1)
    offset = round(1 - (1 / shares + 1 / (shares - 2)) / 2, 7)

    def quantiles(count: int) -> Tensor:
        places = torch.linspace(0.5, offset, count + 1)[1:]
        values: Tensor = torch.distributions.Normal(0.0, 1.0).icdf(places.double())
        return values.float()

    upper, lower = quantiles(positives), quantiles(positives - 1)
    table: Tensor = torch.cat((-lower.flip(0), torch.zeros(1), upper)) / upper[-1]
    return table


def codebook(number_format: FloatFormat) -> Float[Tensor, " codes"]:
    """The numbers of a format over its largest: what blocks of numbers are rounded to.

    >>> codebook(E2M1).tolist()[-3:]
    [0.5, 0.6666666865348816, 1.0]
    """
    return (finite_values(number_format) / number_format.largest).float()


def integer_codebook(bits: int) -> Float[Tensor, " codes"]:
    """The integers of `quantize_absmax` over their largest: evenly spaced from -1 to 1.

    >>> integer_codebook(2).tolist()
    [-1.0, 0.0, 1.0]
    """
    top = int(2 ** (bits - 1) - 1)
    return torch.arange(-top, top + 1) / top


def quantize_blockwise(
    x: Float[Tensor, "*shape"], codes: Float[Tensor, " codes"], *, block_size: int
) -> tuple[Int[Tensor, "blocks block"], Float[Tensor, "blocks 1"]]:
    """For each block of consecutive numbers its largest abs(x), and for each number a place in `codes`.

    The number divided by its block's largest goes to the nearest code: dettmers20228bit,
    section 2.1. x = codes[index] * scale, in the shape "blocks block".

    Args:
        x: numbers, read in the order of memory.
        codes: a codebook from -1 to 1, rising.
        block_size: numbers that share a scale.

    Raises:
        ValueError: if the blocks do not fill x.
    """
    if x.numel() % block_size:
        raise ValueError(f"block_size {block_size} does not divide the {x.numel()} numbers of x")
    blocks = x.reshape(-1, block_size)
    scale = blocks.abs().amax(1, keepdim=True)
    middles = ((codes[1:] + codes[:-1]) / 2).to(x)
    share = blocks / torch.where(scale > 0, scale, 1.0)
    return torch.bucketize(share, middles), scale


def rounded_blockwise(
    x: Float[Tensor, "*shape"], codes: Float[Tensor, " codes"], *, block_size: int
) -> Float[Tensor, "*shape"]:
    """What is left of x after `quantize_blockwise`: codes[index] * scale, in the shape of x."""
    index, scale = quantize_blockwise(x, codes, block_size=block_size)
    return (codes.to(x)[index] * scale).reshape(x.shape)


def bits_per_parameter(code_bits: int, *, block_size: int, scale_bits: float = 32.0) -> float:
    """Bits of a number's code and its share of the block's scale: c + s / block_size.

    A scale that is itself quantized in blocks takes what this function says of it ("double
    quantization", dettmers2023qlora, section 3):

    >>> scale = bits_per_parameter(8, block_size=256)
    >>> round(bits_per_parameter(4, block_size=64, scale_bits=scale), 3)
    4.127
    """
    return code_bits + scale_bits / block_size
