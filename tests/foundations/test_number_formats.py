"""Number formats against torch's casts and quantizers, bitsandbytes' tables, and their laws."""

import math
from fractions import Fraction
from pathlib import Path
from statistics import NormalDist

import bitsandbytes.functional as bitsandbytes
import pytest
import torch
from formula import expressions

from llmbook.foundations.number_formats import (
    BF16,
    E2M1,
    E4M3,
    E5M2,
    FP16,
    FP32,
    TF32,
    bits_per_parameter,
    codebook,
    compensated_sums,
    finite_values,
    integer_codebook,
    normal_float,
    quantize_absmax,
    quantize_blockwise,
    quantize_zero_point,
    round_stochastically,
    round_to,
    rounded_blockwise,
    running_sums,
    spacing,
)
from llmbook.published import number

PAGE = Path(__file__).parents[2] / "book/foundations/number_formats.md"
IN_TORCH = {
    FP16: torch.float16,
    BF16: torch.bfloat16,
    E4M3: torch.float8_e4m3fn,
    E5M2: torch.float8_e5m2,
}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def patterns(count):
    """Any 32 bits: infinities, NaNs, subnormals and all magnitudes."""
    low, high = -(2**31), 2**31
    return torch.randint(low, high, (count,), generator=seeded()).to(torch.int32).view(torch.float)


def same_bits(a, b):
    return bool(((a.view(torch.int32) == b.view(torch.int32)) | (a.isnan() & b.isnan())).all())


# --- what the bits say ---------------------------------------------------------------------------


@pytest.mark.parametrize("number_format", [*IN_TORCH, FP32], ids=lambda f: f.name)
def test_limits_are_those_of_torch(number_format):
    info = torch.finfo(IN_TORCH.get(number_format, torch.float32))
    assert number_format.largest == info.max
    assert number_format.smallest_normal == info.smallest_normal
    assert number_format.unit_roundoff == info.eps / 2
    assert number_format.bits == info.bits


@pytest.mark.parametrize(("key", "number_format"), [("e4m3", E4M3), ("e5m2", E5M2)])
def test_limits_of_fp8_are_the_printed_ones(key, number_format):
    for what in ("largest", "smallest_normal", "smallest_subnormal"):
        assert getattr(number_format, what) == number(f"number_formats.{key}.{what}").theirs


def test_tf32_has_the_range_of_fp32_and_the_precision_of_fp16_in_19_bits():
    assert TF32.smallest_normal == FP32.smallest_normal
    assert 2.0**127 < TF32.largest < FP32.largest
    assert TF32.unit_roundoff == FP16.unit_roundoff
    assert TF32.bits == 19


@pytest.mark.parametrize("number_format", IN_TORCH, ids=lambda f: f.name)
def test_finite_values_are_all_codes_that_torch_decodes(number_format):
    dtype = IN_TORCH[number_format]
    codes = torch.arange(2**number_format.bits)
    integers = torch.uint8 if number_format.bits == 8 else torch.uint16
    decoded = codes.to(integers).view(dtype).double()
    theirs = decoded[decoded.isfinite()].unique()
    assert torch.equal(finite_values(number_format), theirs)
    assert finite_values(number_format).abs()[theirs > 0].min() == number_format.smallest_subnormal


def test_there_are_too_many_numbers_of_fp32_to_list():
    with pytest.raises(ValueError, match="fp32 has more than 16 bits"):
        finite_values(FP32)


# --- rounding ------------------------------------------------------------------------------------


@pytest.mark.parametrize("number_format", IN_TORCH, ids=lambda f: f.name)
def test_rounding_is_bit_for_bit_that_of_torchs_cast(number_format):
    x = patterns(1_000_000)
    assert same_bits(round_to(x, number_format), x.to(IN_TORCH[number_format]).float())


@pytest.mark.parametrize("number_format", IN_TORCH, ids=lambda f: f.name)
def test_ties_and_the_edge_of_the_range_are_those_of_torch(number_format):
    values = finite_values(number_format)
    middles = ((values[1:] + values[:-1]) / 2).float()
    largest = torch.tensor(number_format.largest)
    edge = largest + spacing(largest, number_format).float() * torch.tensor([0.49, 0.5, 0.51, 1.0])
    x = torch.cat((middles, edge, -edge, torch.tensor([math.inf, -math.inf, math.nan, -0.0])))
    assert same_bits(round_to(x, number_format), x.to(IN_TORCH[number_format]).float())


def test_tf32_is_the_bit_pattern_of_fp32_rounded_to_ten_bits_of_mantissa():
    x = patterns(200_000)
    x = x[x.isfinite() & (x.abs() < TF32.largest)]
    bits = x.view(torch.int32).long() & 0xFFFFFFFF
    kept = (bits + 0xFFF + ((bits >> 13) & 1)) >> 13 << 13  # to nearest, ties to even
    expected = torch.where(kept >= 2**31, kept - 2**32, kept).to(torch.int32).view(torch.float)
    assert same_bits(round_to(x, TF32), expected)


def test_rounding_finds_the_nearest_of_all_numbers():
    values = finite_values(E2M1)
    x = torch.linspace(-7, 7, 1001)
    nearest = (x[:, None] - values).abs().amin(1)
    assert torch.allclose((round_to(x, E2M1) - x).abs().double(), nearest.double())
    assert round_to(torch.tensor([100.0, -math.inf]), E2M1).tolist() == [6, -6]


def test_rounding_keeps_the_dtype_and_what_is_already_there():
    for dtype in (torch.float32, torch.float64):
        values = finite_values(E5M2).to(dtype)
        assert torch.equal(round_to(values, E5M2), values)
        assert round_to(values, E5M2).dtype == dtype
    x = torch.rand(100, dtype=torch.float64, generator=seeded())
    assert torch.equal(round_to(x, FP32), x.float().double())


def test_spacing_is_the_distance_to_the_next_number():
    values = finite_values(E4M3)
    positive = values[values > 0]
    assert torch.equal(spacing(positive[:-1], E4M3), positive[1:] - positive[:-1])


def test_stochastic_rounding_takes_the_two_neighbours_and_is_right_on_average():
    x = torch.full((200_000,), 1 + 2.0**-7 * 0.3)
    drawn = round_stochastically(x, BF16, generator=seeded())
    assert drawn.unique().tolist() == [1, 1 + 2.0**-7]
    assert (drawn > 1).float().mean().item() == pytest.approx(0.3, abs=4 * 0.5 / 200_000**0.5)
    negative = round_stochastically(-x, BF16, generator=seeded())
    assert (negative < -1).float().mean().item() == pytest.approx(0.3, abs=4 * 0.5 / 200_000**0.5)
    values = finite_values(E4M3)
    assert torch.equal(round_stochastically(values, E4M3, generator=seeded()), values)


# --- sums ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_running_sums_are_those_of_a_loop_in_torchs_dtype(dtype):
    number_format = {v: k for k, v in IN_TORCH.items()}[dtype]
    terms = torch.rand(300, 4, generator=seeded()).to(dtype)
    total, expected = torch.zeros(4, dtype=dtype), []
    for term in terms:
        total = total + term
        expected.append(total)
    sums = running_sums(terms.float(), number_format)
    assert torch.equal(sums, torch.stack(expected).float())


def test_kahans_sum_keeps_its_bound_where_the_plain_one_leaves_it():
    terms = round_to(torch.rand(2000, 8, generator=seeded()), BF16)
    exact = torch.tensor([float(sum(map(Fraction, column))) for column in terms.T.tolist()])
    # |error| <= (2 u + O(n u^2)) sum |x|: goldberg1991every, theorem 8
    u, n = BF16.unit_roundoff, len(terms)
    bound = (2 * u + n * u**2) * exact
    assert ((compensated_sums(terms, BF16)[-1] - exact).abs() <= bound).all()
    assert ((compensated_sums(terms, BF16)[-1] - exact).abs() <= 2 * u * exact).all()
    assert ((running_sums(terms, BF16)[-1] - exact).abs() > bound).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_compensated_sums_round_every_operation_as_torchs_dtype_does(dtype):
    number_format = {v: k for k, v in IN_TORCH.items()}[dtype]
    size = 4.0 ** torch.randint(-3, 4, (300, 4), generator=seeded())
    terms = (size * torch.randn(300, 4, generator=seeded(1))).to(dtype)
    total, lost, expected = torch.zeros(4, dtype=dtype), torch.zeros(4, dtype=dtype), []
    for term in terms:
        wanted = term - lost
        after = total + wanted
        lost = (after - total) - wanted
        total = after
        expected.append(total)
    sums = compensated_sums(terms.float(), number_format)
    assert torch.equal(sums, torch.stack(expected).float())


# --- integers ------------------------------------------------------------------------------------


def test_absmax_is_the_printed_example():
    """belkada2022gentle: eight numbers and their codes."""
    codes, scale = quantize_absmax(torch.tensor([1.2, -0.5, -4.3, 1.2, -3.1, 0.8, 2.4, 5.4]))
    assert codes.tolist() == [28, -12, -101, 28, -73, 19, 56, 127]
    assert 1 / scale.item() == pytest.approx(23.5, abs=0.05)


def test_absmax_of_a_tensor_whose_largest_number_is_negative_is_the_printed_one_mirrored():
    codes, scale = quantize_absmax(torch.tensor([-1.2, 0.5, 4.3, -1.2, 3.1, -0.8, -2.4, -5.4]))
    assert codes.tolist() == [-28, 12, 101, -28, 73, -19, -56, -127]
    assert 1 / scale.item() == pytest.approx(23.5, abs=0.05)


@pytest.mark.parametrize("bits", [4, 8])
def test_absmax_is_torchs_quantizer_for_each_row(bits):
    x = torch.randn(6, 50, generator=seeded())
    top = 2 ** (bits - 1) - 1
    codes, scale = quantize_absmax(x, bits=bits, dim=1)
    assert scale.shape == (6, 1)
    theirs = torch.fake_quantize_per_channel_affine(
        x, x.abs().amax(1) / top, torch.zeros(6, dtype=torch.int32), 0, -top, top
    )
    assert torch.allclose(codes * scale, theirs)
    assert codes.abs().amax(1).tolist() == [top] * 6


@pytest.mark.parametrize(("low", "high"), [(-1.0, 3.0), (0.5, 2.0), (-3.0, -1.0)])
def test_zero_point_is_torchs_observer_and_quantizer(low, high):
    x = low + (high - low) * torch.rand(1000, generator=seeded())
    observer = torch.ao.quantization.MinMaxObserver(dtype=torch.quint8)
    observer(x)
    their_scale, their_zero = observer.calculate_qparams()
    codes, scale, zero_point = quantize_zero_point(x)
    assert scale.item() == pytest.approx(their_scale.item())
    assert zero_point.item() == their_zero.item()
    theirs = torch.fake_quantize_per_tensor_affine(x, scale.item(), int(zero_point), 0, 255)
    clear = ((x / scale).frac().abs() - 0.5).abs() > 1e-3  # not a tie, which they multiply away
    assert torch.allclose(((codes - zero_point) * scale)[clear], theirs[clear])


def test_zero_point_by_rows_and_in_four_bits_covers_each_row():
    x = torch.randn(5, 64, generator=seeded())
    codes, scale, zero_point = quantize_zero_point(x, bits=4, dim=1)
    assert codes.amin(1).tolist() == [0] * 5
    assert codes.amax(1).tolist() == [15] * 5
    assert (((codes - zero_point) * scale - x).abs() <= scale * 1.0001).all()


@pytest.mark.parametrize("quantize", [quantize_absmax, quantize_zero_point])
def test_a_row_of_zeros_stays_zero(quantize):
    codes, scale, *zero_point = quantize(torch.zeros(2, 3), dim=1)
    assert not ((codes - sum(zero_point)) * scale).any()


# --- codebooks -----------------------------------------------------------------------------------


def test_nf4_is_the_table_of_bitsandbytes_bit_for_bit():
    assert torch.equal(normal_float(), bitsandbytes.get_4bit_type("nf4", device="cpu"))


def test_nf4_is_the_printed_table_where_the_page_checks_it():
    for place in (1, 6, 8, 14):
        printed = number(f"number_formats.nf4.{place}").theirs
        assert normal_float()[place].item() == pytest.approx(printed, abs=1e-15)


def test_the_offset_of_nf4_is_the_mean_of_two_outermost_middles():
    offset = (Fraction(29, 30) + Fraction(31, 32)) / 2
    assert round(float(offset), 7) == 0.9677083
    places = [0.5 + (float(offset) - 0.5) * i / 8 for i in range(9)]
    positive = [NormalDist().inv_cdf(place) for place in places]
    expected = [quantile / positive[-1] for quantile in positive]
    assert normal_float()[7:].tolist() == pytest.approx(expected, abs=1e-6)


def test_a_normal_float_of_other_bits_has_its_ends_its_zero_and_one_more_above():
    for bits in (2, 3, 5):
        values = normal_float(bits)
        assert len(values) == 2**bits
        assert (values[0], values[-1], (values == 0).sum()) == (-1, 1, 1)
        assert (values > 0).sum() == (values < 0).sum() + 1
        assert (values.diff() > 0).all()


def test_e2m1_is_bitsandbytes_fp4_but_for_its_least_number():
    theirs = bitsandbytes.get_4bit_type("fp4", device="cpu").abs().unique() * 12
    ours = codebook(E2M1).abs().unique() * 12
    assert theirs.tolist() == pytest.approx([0, 0.0625, 2, 3, 4, 6, 8, 12])
    assert ours.tolist() == pytest.approx([0, 1, 2, 3, 4, 6, 8, 12])


def test_blocks_of_nf4_are_those_of_bitsandbytes_code_by_code():
    x = torch.randn(64, 256, generator=seeded())
    packed, state = bitsandbytes.quantize_4bit(x, blocksize=64, quant_type="nf4")
    pairs = torch.stack((packed.flatten() >> 4, packed.flatten() & 15), dim=1)
    codes, scales = quantize_blockwise(x, normal_float(), block_size=64)
    assert torch.equal(codes.flatten(), pairs.flatten().long())
    assert torch.equal(scales.flatten(), state.absmax)
    theirs = bitsandbytes.dequantize_4bit(packed, state)
    assert torch.equal(rounded_blockwise(x, normal_float(), block_size=64), theirs)


def test_one_block_of_integers_is_absmax():
    x = torch.randn(7, 11, generator=seeded())
    codes, scale = quantize_absmax(x)
    assert torch.allclose(rounded_blockwise(x, integer_codebook(8), block_size=77), codes * scale)


def test_blocks_are_alone_with_their_outliers():
    x = torch.randn(4, 64, generator=seeded())
    struck = x.clone()
    struck[0, 0] = 1000
    before, after = (rounded_blockwise(y, integer_codebook(4), block_size=64) for y in (x, struck))
    assert torch.equal(before[1:], after[1:])
    assert not after[0, 1:].any()


@pytest.mark.parametrize("codes", [normal_float(), integer_codebook(4), codebook(E4M3)])
def test_quantizing_twice_in_the_same_blocks_changes_nothing(codes):
    once = rounded_blockwise(torch.randn(64, 64, generator=seeded()), codes, block_size=64)
    assert torch.equal(rounded_blockwise(once, codes, block_size=64), once)
    assert not torch.equal(rounded_blockwise(once, codes, block_size=4096), once)


def test_a_block_of_zeros_stays_zero_and_blocks_fill_the_tensor():
    assert not rounded_blockwise(torch.zeros(2, 4), normal_float(), block_size=4).any()
    with pytest.raises(ValueError, match="block_size 3 does not divide the 8 numbers"):
        quantize_blockwise(torch.zeros(2, 4), normal_float(), block_size=3)


def test_double_quantization_takes_the_printed_bits():
    """dettmers2023qlora, section 3: 32/64 = 0.5 becomes 8/64 + 32/(64 * 256) = 0.127."""
    scales = bits_per_parameter(8, block_size=256)
    twice = bits_per_parameter(4, block_size=64, scale_bits=scales) - 4
    assert bits_per_parameter(4, block_size=64) == 4.5
    assert twice == 8 / 64 + 32 / (64 * 256)
    assert twice == pytest.approx(number("number_formats.double.scales").theirs, abs=5e-4)


def test_formulas_of_the_page_are_those_of_the_library():
    def value(label, **letters):
        return eval(expressions(PAGE)[label], letters)

    for f in (FP32, TF32, BF16, FP16, E5M2, E4M3, E2M1):
        assert value("eq-unit-roundoff", m=f.mantissa_bits) == f.unit_roundoff
    for f in (BF16, E4M3, E5M2):
        for a in (0.25, 1.0, 2.0):
            sums = running_sums(torch.full((600, 1), a), f)
            assert value("eq-stagnation", a=a, m=f.mantissa_bits) == sums[-1].item()
    bits = bits_per_parameter(5, block_size=48, scale_bits=12.0)
    assert value("eq-bits-a-parameter", c=5, z=12.0, n=48) == bits
