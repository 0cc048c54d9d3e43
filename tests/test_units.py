"""Names of numbers."""

import pytest

from llmbook.units import BYTES, GB, GIB, PETAFLOP_DAY, below, bytes_of, in_words


def test_a_gib_is_seven_per_cent_more_than_a_gb():
    assert pytest.approx(1.0737, abs=5e-5) == GIB / GB


def test_a_petaflop_day_is_the_one_that_gpt_3_prints():
    # brown2020language, appendix D: 3.64e3 petaFLOP/s-days for 3.14e23 FLOPs
    assert pytest.approx(3.64e3, rel=2e-3) == 3.14e23 / PETAFLOP_DAY


def test_formats_are_as_wide_as_torch_says():
    import torch

    widths = {
        "fp32": torch.float32,
        "bf16": torch.bfloat16,
        "fp16": torch.float16,
        "int8": torch.int8,
    }
    for name, dtype in widths.items():
        assert BYTES[name] == torch.empty((), dtype=dtype).element_size()


def test_an_unknown_format_names_the_known_ones():
    with pytest.raises(ValueError, match="dtype 'fp7' is not one of fp32"):
        bytes_of("fp7")


@pytest.mark.parametrize("error", [1e-12, 2e-12, float("nan"), float("inf")])
def test_an_error_that_reaches_its_bound_or_is_none_is_refused(error):
    with pytest.raises(ValueError, match="is not below its bound 1e-12"):
        below(error, 1e-12)


def test_words_round_to_three_digits():
    assert [in_words(n) for n in (1_234, 12_345, 123_456, 1e12)] == [
        "1.23 k",
        "12.3 k",
        "123 k",
        "1.00 T",
    ]
