"""The decoder against the list of modules and transformers' GPT-2, OPT and BLOOM; its laws.

LLaMA is compared in tests/zoo/test_llama.py, through the same decoder.
"""

import pytest
import torch
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    OPTConfig,
    OPTForCausalLM,
)

from llmbook.config import ModelConfig
from llmbook.config.modules import modules
from llmbook.costs.parameters import parameter_count
from llmbook.foundations.attention import KVCache
from llmbook.foundations.decoder import Decoder, initialise
from llmbook.zoo.catalogue import cards

TINY = ModelConfig(vocab_size=61, hidden_size=48, num_layers=3, num_heads=6, max_seq_len=40)
VARIANTS = {
    "learned": TINY.but(position_offset=2),
    "alibi": TINY.but(positions="alibi", embedding_norm=True),
    "rotary": TINY.but(
        positions="rotary", num_kv_heads=2, norm="rms_norm", activation="silu", gated=True
    ),
    "post": TINY.but(norm_placement="post", final_norm=False, embedding_size=20, activation="relu"),
    "sandwich": TINY.but(norm_placement="sandwich"),
}


@pytest.mark.parametrize("name", cards())
def test_weights_are_those_of_the_list_of_modules(name):
    """At the real size, on the meta device: names, shapes and total."""
    config = cards()[name].config
    with torch.device("meta"):
        decoder = Decoder(config)
    expected = {}
    for module in modules(config):
        for copy in range(module.copies):
            for kind, shape in zip(("weight", "bias"), module.weights, strict=False):
                expected[f"{module.name.replace('*', str(copy))}.{kind}"] = shape
    assert {key: tuple(weight.shape) for key, weight in decoder.named_parameters()} == expected
    assert sum(weight.numel() for weight in decoder.parameters()) == parameter_count(config).total
    assert set(decoder.state_dict()) == set(expected)  # no buffer is saved


def gpt2(config):
    theirs = GPT2Config(
        vocab_size=config.vocab_size, n_embd=config.hidden_size, n_layer=config.num_layers,
        n_head=config.num_heads, n_positions=config.max_seq_len, n_inner=config.intermediate_size,
        activation_function={"gelu_tanh": "gelu_new"}.get(config.activation, config.activation),
        layer_norm_epsilon=config.norm_epsilon, tie_word_embeddings=config.tie_embeddings,
    )  # fmt: skip
    names = {
        "transformer.wte": "embedding", "transformer.wpe": "positions",
        "transformer.ln_f": "final_norm", "transformer.h.": "layers.", "ln_1": "attention_norm",
        "ln_2": "mlp_norm", "c_fc": "up", "attn.c_attn": "attention.*",
        "attn.c_proj": "attention.output", "c_proj": "down", "lm_head": "head",
    }  # fmt: skip
    return GPT2LMHeadModel(theirs), names, lambda fused: fused.chunk(3)


def opt(config):
    theirs = OPTConfig(
        vocab_size=config.vocab_size, hidden_size=config.hidden_size,
        num_hidden_layers=config.num_layers, num_attention_heads=config.num_heads,
        ffn_dim=config.intermediate_size, enable_bias=config.mlp_bias,
        max_position_embeddings=config.max_seq_len, activation_function=config.activation,
        word_embed_proj_dim=config.embedding_size,
        do_layer_norm_before=config.norm_placement == "pre",
        tie_word_embeddings=config.tie_embeddings, pad_token_id=None,
    )  # fmt: skip
    names = {
        "decoder.final_layer_norm": "final_norm", "decoder.": "", "model.": "",
        "embed_tokens": "embedding", "embed_positions": "positions",
        "self_attn_layer_norm": "attention_norm", "final_layer_norm": "mlp_norm",
        "self_attn.": "attention.", "q_proj": "query", "k_proj": "key", "v_proj": "value",
        "out_proj": "output", "fc1": "mlp.up", "fc2": "mlp.down", "lm_head": "head",
    }  # fmt: skip
    return OPTForCausalLM(theirs), names, None


def bloom(config):
    theirs = BloomConfig(
        vocab_size=config.vocab_size, hidden_size=config.hidden_size, n_layer=config.num_layers,
        n_head=config.num_heads, layer_norm_epsilon=config.norm_epsilon,
        tie_word_embeddings=config.tie_embeddings,
    )  # fmt: skip
    names = {
        "transformer.word_embeddings_layernorm": "embedding_norm",
        "transformer.word_embeddings": "embedding", "transformer.ln_f": "final_norm",
        "transformer.h.": "layers.", "input_layernorm": "attention_norm",
        "post_attention_layernorm": "mlp_norm", "self_attention.": "attention.",
        "query_key_value": "*", "attention.dense.": "attention.output.", "dense_h_to_4h": "up",
        "dense_4h_to_h": "down", "lm_head": "head",
    }  # fmt: skip

    def split(fused):  # head by head: query, key, value of head 0, then those of head 1 ...
        return (
            fused.unflatten(0, (config.num_heads, 3, config.head_dim)).transpose(0, 1).flatten(1, 2)
        )

    return BloomForCausalLM(theirs), names, split


def weights(model, names, split):
    """The state of transformers' model under our names, fused matrices split, (outputs, inputs)."""
    found = {}
    for name, weight in model.state_dict().items():
        if ".c_" in name and weight.dim() == 2:
            weight = weight.mT  # GPT-2 keeps (inputs, outputs)
        for theirs, ours in names.items():
            name = name.replace(theirs, ours)
        parts = (
            zip(("query", "key", "value"), split(weight), strict=True)
            if "*" in name
            else [("", weight)]
        )
        found |= {name.replace("*", part): weight for part, weight in parts}
    return found


OPT = TINY.but(position_offset=2, activation="relu")
BLOOM = TINY.but(positions="alibi", embedding_norm=True)
FAMILIES = {
    "gpt-2": (gpt2, TINY),
    "gpt-2, narrow, exact gelu": (
        gpt2, TINY.but(intermediate_size=50, activation="gelu", norm_epsilon=1e-2)
    ),
    "gpt-2, 4 heads, untied": (
        gpt2, TINY.but(num_heads=4, num_kv_heads=4, head_dim=12, tie_embeddings=False)
    ),
    "opt": (opt, OPT),
    "opt-350m": (opt, OPT.but(norm_placement="post", final_norm=False, embedding_size=20)),
    "opt, untied, no biases, gelu": (
        opt, OPT.but(
            tie_embeddings=False, mlp_bias=False, attention_bias=False, attention_output_bias=False,
            activation="gelu", intermediate_size=70,
        ),
    ),
    "bloom": (bloom, BLOOM),
    "bloom, 8 heads": (
        bloom, BLOOM.but(num_heads=8, num_kv_heads=8, head_dim=6, norm_epsilon=1e-2)
    ),
    "bloom, 12 heads, untied": (
        bloom, BLOOM.but(num_heads=12, num_kv_heads=12, head_dim=4, tie_embeddings=False)
    ),
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_logits_equal_transformers_padded_and_cached(family):
    build, config = FAMILIES[family]
    torch.manual_seed(0)
    theirs, names, split = build(config)
    theirs.eval()
    for weight in theirs.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    ours = Decoder(config)
    state = weights(theirs, names, split)
    if config.tie_embeddings:
        state.pop("head.weight")
    ours.load_state_dict(state)

    tokens = torch.randint(config.vocab_size, (2, 20), generator=torch.Generator().manual_seed(1))
    mask = torch.ones(2, 20, dtype=torch.bool)
    mask[1, :6] = False
    positions = (mask.long().cumsum(-1) - 1).masked_fill(~mask, 1)
    extra = {} if config.positions == "alibi" else {"position_ids": positions}
    expected = theirs(tokens, attention_mask=mask.long(), **extra).logits
    spread = expected[mask].std()
    assert spread > 0.5

    caches = [KVCache() for _ in ours.layers]
    cached = [
        ours(tokens[:, start:stop], caches=caches, attention_mask=mask[:, :stop])
        for start, stop in ((0, 9), (9, 10), (10, 11), (11, 20))
    ]
    for logits in (ours(tokens, attention_mask=mask), torch.cat(cached, dim=1)):
        assert (logits - expected)[mask].abs().max() < 2e-5 * spread


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_a_padded_row_equals_the_row_alone(variant):
    decoder = initialise(
        Decoder(VARIANTS[variant]), generator=torch.Generator().manual_seed(0), std=0.2
    ).double()
    short = torch.tensor([[5, 6, 7, 8]])
    batch = torch.cat((torch.tensor([[1, 2, 3]]), short), dim=1)
    mask = torch.tensor([[False] * 3 + [True] * 4])
    torch.testing.assert_close(
        decoder(batch, attention_mask=mask)[:, 3:], decoder(short), rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_a_later_token_changes_no_earlier_logit(variant):
    decoder = initialise(
        Decoder(VARIANTS[variant]), generator=torch.Generator().manual_seed(0), std=0.2
    )
    tokens = torch.arange(12)[None]
    changed = tokens.clone()
    changed[0, 8] = 50
    before, after = decoder(tokens), decoder(changed)
    assert torch.equal(before[:, :8], after[:, :8])
    assert (before[:, 8:] != after[:, 8:]).any(-1).all()


def test_initialisation_follows_gpt_2():
    """Normal 0.02, narrower by sqrt(2 L) where a matrix writes into the residual stream."""
    config = ModelConfig(
        vocab_size=500, hidden_size=128, num_layers=8, num_heads=4, max_seq_len=256
    )
    decoder = initialise(Decoder(config), generator=torch.Generator().manual_seed(0))
    for name, weight in decoder.named_parameters():
        if weight.dim() == 1:
            assert (weight == (1.0 if "norm.weight" in name else 0.0)).all(), name
            continue
        std = 0.02 / 4 if name.endswith(("output.weight", "down.weight")) else 0.02
        assert weight.std().item() == pytest.approx(std, rel=0.03), (
            name
        )  # 16,384 draws: 0.6 % is one sigma
        assert abs(weight.mean().item()) < 4 * std / weight.numel() ** 0.5, name
    again = initialise(Decoder(config), generator=torch.Generator().manual_seed(0))
    assert all(
        torch.equal(x, y) for x, y in zip(decoder.parameters(), again.parameters(), strict=True)
    )


def test_at_the_start_the_loss_is_that_of_a_uniform_guess():
    decoder = initialise(Decoder(TINY), generator=torch.Generator().manual_seed(0))
    tokens = torch.randint(61, (4, 32), generator=torch.Generator().manual_seed(1))
    loss = torch.nn.functional.cross_entropy(
        decoder(tokens)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()
    )
    assert loss.item() == pytest.approx(torch.tensor(61.0).log().item(), abs=0.1)


def test_what_does_not_fit_is_refused():
    decoder, tokens = Decoder(TINY), torch.zeros(1, 41, dtype=torch.long)
    with pytest.raises(ValueError, match="41 tokens do not fit into max_seq_len 40"):
        decoder(tokens)
    with pytest.raises(ValueError, match="2 caches for 3 layers"):
        decoder(tokens[:, :4], caches=[KVCache(), KVCache()])
    with pytest.raises(ValueError, match="attention_mask covers 3 of 4 tokens"):
        decoder(tokens[:, :4], attention_mask=torch.ones(1, 3, dtype=torch.bool))
