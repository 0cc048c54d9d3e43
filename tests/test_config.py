"""A config refuses what no model can be, and says why."""

import pytest

from llmbook.config import ModelConfig, differences

SIZES = {"vocab_size": 16, "hidden_size": 12, "num_layers": 2, "num_heads": 3, "max_seq_len": 8}
EXPERTS = {"num_experts": 4, "experts_per_token": 2}
LATENT = {
    "kv_latent_dim": 8, "rope_dim": 2, "positions": "rotary", "attention_bias": False,
    "attention_output_bias": False,
}  # fmt: skip


def test_derived_widths_are_the_classic_ones():
    config = ModelConfig(**SIZES)
    derived = (
        config.num_kv_heads,
        config.head_dim,
        config.intermediate_size,
        config.embedding_size,
    )
    assert derived == (3, 4, 48, 12)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"num_heads": 5}, "hidden_size 12 is not a multiple of num_heads 5"),
        ({"num_kv_heads": 2}, "num_heads 3 is not a multiple of num_kv_heads 2"),
        ({"num_layers": 0}, "num_layers 0 is not positive"),
        ({"intermediate_size": -1}, "intermediate_size -1 is negative"),
        ({"positions": "rotary", "num_heads": 4}, "head_dim 3 is odd: rotary positions turn pairs"),
        ({"positions": "polar"}, "positions 'polar' is none of learned, rotary, alibi"),
        ({"norm": "batch_norm"}, "norm 'batch_norm' is none of layer_norm, rms_norm"),
        ({"norm_placement": "off"}, "norm_placement 'off' is none of pre, post, sandwich"),
        ({"activation": "swish"}, "activation 'swish' is none of gelu, gelu_tanh, relu, silu"),
        (
            {"rope_scaling": "dynamic"},
            "rope_scaling 'dynamic' is none of llama3, linear, ntk, yarn",
        ),
        (
            {"block": "serial"},
            "block 'serial' is none of sequential, parallel, parallel_shared_norm",
        ),
        (
            {"block": "parallel", "norm_placement": "post"},
            "block 'parallel' contradicts norm_placement 'post': its norms stand before",
        ),
        ({"rotary_fraction": 0.5}, "rotary_fraction 0.5 contradicts positions 'learned'"),
        (
            {"positions": "rotary", "rotary_fraction": 0.0},
            "rotary_fraction 0.0 is not a share of a head: above 0, at most 1",
        ),
        (
            {"positions": "rotary", "rotary_fraction": 0.8},
            "rotary_fraction 0.8 of head_dim 4 is 3 numbers: rotary positions turn pairs",
        ),
        (
            {"positions": "rotary", "rotary_fraction": 0.1},
            "rotary_fraction 0.1 of head_dim 4 is 0 numbers: rotary positions turn pairs",
        ),
        ({"alibi_scale": 0.5}, "alibi_scale 0.5 contradicts positions 'learned'"),
        (
            {"positions": "alibi", "position_offset": 2},
            "position_offset 2 contradicts positions 'alibi'",
        ),
        ({"position_offset": -1}, "position_offset -1 is negative"),
        ({"sliding_window": -1}, "sliding_window -1 is negative"),
        ({"num_experts": -1}, "num_experts -1 is negative"),
        ({"num_experts": 4}, "experts_per_token 0 is not between 1 and num_experts 4"),
        (
            {"num_experts": 4, "experts_per_token": 5},
            "experts_per_token 5 is not between 1 and num_experts 4",
        ),
        ({"experts_per_token": 2}, "experts_per_token 2 contradicts num_experts 0"),
        ({"num_shared_experts": 1}, "num_shared_experts 1 contradicts num_experts 0"),
        ({"router": "sigmoid"}, "router 'sigmoid' contradicts num_experts 0"),
        ({"router_bias": True}, "router_bias True contradicts num_experts 0"),
        ({"router": "hash"}, "router 'hash' is none of top_softmax, softmax, sigmoid"),
        (EXPERTS | {"num_shared_experts": -1}, "num_shared_experts -1 is negative"),
        (EXPERTS | {"expert_intermediate_size": -8}, "expert_intermediate_size -8 is negative"),
        (
            EXPERTS | {"num_dense_layers": 2},
            "num_dense_layers 2 leaves none of num_layers 2 to num_experts 4",
        ),
        (EXPERTS | {"routed_scale": 0.0}, "routed_scale 0.0 is not positive"),
        (
            EXPERTS | {"num_expert_groups": 3},
            "num_experts 4 is not a multiple of num_expert_groups 3",
        ),
        (
            EXPERTS | {"num_expert_groups": 2, "groups_per_token": 3},
            "groups_per_token 3 is not between 1 and num_expert_groups 2",
        ),
        (
            EXPERTS | {"num_expert_groups": 2, "experts_per_token": 3},
            "experts_per_token 3 do not fit into 1 of 2 groups of 2",
        ),
        (
            EXPERTS | {"num_expert_groups": 4, "groups_per_token": 4},
            "num_expert_groups 4 of num_experts 4 have one expert each: the two best of a group "
            "are its score",
        ),
        ({"rope_dim": 4}, "rope_dim 4 or query_latent_dim 0 contradicts kv_latent_dim 0"),
        ({"kv_latent_dim": -4}, "kv_latent_dim -4 is negative"),
        (LATENT | {"rope_dim": 3}, "rope_dim 3 is no number of pairs: rotary positions turn pairs"),
        (
            LATENT | {"positions": "alibi"},
            "kv_latent_dim 8 contradicts positions 'alibi' turning 100% of a head: rope_dim "
            "numbers are turned",
        ),
        (
            LATENT | {"num_kv_heads": 1},
            "kv_latent_dim 8 contradicts num_kv_heads 1 of num_heads 3: the latent serves all",
        ),
        (
            LATENT | {"attention_bias": True},
            "kv_latent_dim 8 contradicts attention_bias True and attention_output_bias False: its "
            "matrices have none",
        ),
    ],
)
def test_an_impossible_config_is_refused_in_one_sentence(changes, sentence):
    with pytest.raises(ValueError, match=f"^{sentence}$"):
        ModelConfig(**(SIZES | changes))


def test_differences_are_what_turns_one_configuration_into_the_other():
    one = ModelConfig(**SIZES)
    other = one.but(name="other", num_layers=3, block="parallel", norm_epsilon=1e-6)
    found = differences(one, other)
    assert set(found) == {"num_layers", "block", "norm_epsilon"}
    assert one.but(name="other", **{field: new for field, (_, new) in found.items()}) == other
    assert differences(one, one.but(name="another name")) == {}


def test_an_expert_is_as_wide_as_a_dense_layer_unless_it_has_a_width_of_its_own():
    config = ModelConfig(**SIZES, **EXPERTS, num_dense_layers=1)
    assert (config.expert_width, config.num_sparse_layers) == (48, 1)
    assert config.but(expert_intermediate_size=7).expert_width == 7
    assert ModelConfig(**SIZES).num_sparse_layers == 0


def test_latent_attention_turns_numbers_beside_the_head():
    assert ModelConfig(**SIZES, **LATENT).rotary_dim == 2
