"""The decoder against the list of modules and the families of transformers; its laws.

LLaMA is compared in tests/zoo/test_llama.py, through the same decoder.
"""

from functools import partial
from pathlib import Path

import pytest
import torch
from formula import expressions
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    FalconConfig,
    FalconForCausalLM,
    GlmConfig,
    GlmForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTBigCodeConfig,
    GPTBigCodeForCausalLM,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    OpenAIGPTConfig,
    OpenAIGPTLMHeadModel,
    OPTConfig,
    OPTForCausalLM,
)
from transformers.activations import ACT2FN

from llmbook.config import ModelConfig
from llmbook.config.modules import modules
from llmbook.costs.parameters import parameter_count
from llmbook.foundations.attention import KVCache
from llmbook.foundations.decoder import ACTIVATIONS, Decoder, initialise
from llmbook.zoo.catalogue import cards

PAGE = Path(__file__).parents[2] / "book" / "foundations" / "decoder.md"
TINY = ModelConfig(vocab_size=61, hidden_size=48, num_layers=3, num_heads=6, max_seq_len=40)
VARIANTS = {
    "learned": TINY.but(position_offset=2),
    "alibi": TINY.but(positions="alibi", embedding_norm=True),
    "rotary": TINY.but(
        positions="rotary", num_kv_heads=2, norm="rms_norm", activation="silu", gated=True
    ),
    "post": TINY.but(norm_placement="post", final_norm=False, embedding_size=20, activation="relu"),
    "sandwich": TINY.but(norm_placement="sandwich"),
    "parallel": TINY.but(positions="rotary", rotary_fraction=0.25, block="parallel"),
    "one norm": TINY.but(positions="rotary", num_kv_heads=1, block="parallel_shared_norm"),
    "experts": TINY.but(gated=True, num_experts=4, experts_per_token=2),
    "shared experts": TINY.but(
        num_experts=4, experts_per_token=2, num_shared_experts=2, num_dense_layers=1,
        expert_intermediate_size=10, router="sigmoid", router_bias=True, num_expert_groups=2,
    ),
    "latents": TINY.but(
        positions="rotary", kv_latent_dim=20, query_latent_dim=30, rope_dim=4,
        attention_bias=False, attention_output_bias=False,
    ),
    "window": TINY.but(positions="rotary", sliding_window=3),
}  # fmt: skip


@pytest.mark.parametrize("name", cards())
def test_weights_are_those_of_the_list_of_modules(name):
    """At the real size, on the meta device: names, shapes and total."""
    config = cards()[name].config
    with torch.device("meta"):
        decoder = Decoder(config)
    expected = {}
    for module in modules(config):
        experts = config.num_experts if "experts" in module.name else 1
        routed = any(part in module.name for part in ("router", "experts", "shared"))
        for copy in range(module.copies):
            layer, expert = divmod(copy, experts)
            layer += config.num_dense_layers if routed else 0
            name = module.name.replace("*", str(layer), 1).replace("*", str(expert))
            for kind, shape in zip(("weight", "bias"), module.weights, strict=False):
                expected[f"{name}.{kind}"] = shape
    assert {key: tuple(weight.shape) for key, weight in decoder.named_parameters()} == expected
    assert sum(weight.numel() for weight in decoder.parameters()) == parameter_count(config).total
    assert set(decoder.state_dict()) == set(expected)  # no buffer is saved


def weights(state, names, split=None, *, inputs_first=False):
    """The state of transformers' model under our names, fused matrices split, (outputs, inputs)."""
    found = {}
    for name, weight in state.items():
        if inputs_first and ".c_" in name and weight.dim() == 2:
            weight = weight.mT
        for theirs, ours in names.items():
            name = name.replace(theirs, ours)
        if "*" in name:
            for part, own in zip(("query", "key", "value"), split(weight), strict=True):
                found[name.replace("*", part)] = own
        else:
            found[name] = weight
    return found


def by_head(config):
    """Query, key and value of head 0, then those of head 1 ...: heads of queries come in groups."""
    K, H = config.num_kv_heads, config.head_dim
    group = config.num_heads // K

    def split(fused):
        rows = fused.unflatten(0, (K, group + 2, H))
        return [part.flatten(0, 2) for part in rows.split((group, 1, 1), dim=1)]

    return split


def by_kind(config):
    """All queries, then all keys, then all values."""
    sizes = [heads * config.head_dim for heads in (config.num_heads, *2 * [config.num_kv_heads])]
    return lambda fused: fused.split(sizes)


def gpt1(config):
    theirs = OpenAIGPTConfig(
        vocab_size=config.vocab_size, n_embd=config.hidden_size, n_layer=config.num_layers,
        n_head=config.num_heads, n_positions=config.max_seq_len,
        afn={"gelu_tanh": "gelu"}.get(config.activation, config.activation),
        layer_norm_epsilon=config.norm_epsilon, tie_word_embeddings=config.tie_embeddings,
    )  # fmt: skip
    names = {
        "transformer.tokens_embed": "embedding", "transformer.positions_embed": "positions",
        "transformer.h.": "layers.", "ln_1": "attention_norm", "ln_2": "mlp_norm", "c_fc": "up",
        "attn.c_attn": "attention.*", "attn.c_proj": "attention.output", "c_proj": "down",
        "lm_head": "head",
    }  # fmt: skip
    return OpenAIGPTLMHeadModel(theirs), partial(
        weights, names=names, split=by_kind(config), inputs_first=True
    )


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
    return GPT2LMHeadModel(theirs), partial(
        weights, names=names, split=by_kind(config), inputs_first=True
    )


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
    return OPTForCausalLM(theirs), partial(weights, names=names)


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

    return BloomForCausalLM(theirs), partial(weights, names=names, split=by_head(config))


def gpt_neox(config):
    theirs = GPTNeoXConfig(
        vocab_size=config.vocab_size, hidden_size=config.hidden_size,
        num_hidden_layers=config.num_layers, num_attention_heads=config.num_heads,
        intermediate_size=config.intermediate_size,
        hidden_act={"gelu_tanh": "gelu_fast"}.get(config.activation, config.activation),
        layer_norm_eps=config.norm_epsilon, tie_word_embeddings=config.tie_embeddings,
        use_parallel_residual=config.block == "parallel", attention_bias=config.attention_bias,
        rotary_pct=config.rotary_fraction, rotary_emb_base=config.rope_theta,
    )  # fmt: skip
    names = {
        "gpt_neox.embed_in": "embedding", "gpt_neox.final_layer_norm": "final_norm",
        "gpt_neox.layers.": "layers.", "input_layernorm": "attention_norm",
        "post_attention_layernorm": "mlp_norm", "query_key_value": "*",
        "attention.dense.": "attention.output.", "dense_h_to_4h": "up", "dense_4h_to_h": "down",
        "embed_out": "head", "lm_head": "head",
    }  # fmt: skip
    return GPTNeoXForCausalLM(theirs), partial(weights, names=names, split=by_head(config))


def falcon(config):
    grouped = 1 < config.num_kv_heads < config.num_heads  # the "new decoder architecture"
    theirs = FalconConfig(
        vocab_size=config.vocab_size, hidden_size=config.hidden_size,
        num_hidden_layers=config.num_layers, num_attention_heads=config.num_heads,
        num_kv_heads=config.num_kv_heads, multi_query=config.num_kv_heads == 1,
        new_decoder_architecture=grouped, parallel_attn=config.block != "sequential",
        num_ln_in_parallel_attn=(2 if config.block == "parallel" else 1) if grouped else None,
        alibi=config.positions == "alibi", bias=config.mlp_bias,
        ffn_hidden_size=config.intermediate_size, activation=config.activation,
        layer_norm_epsilon=config.norm_epsilon, tie_word_embeddings=config.tie_embeddings,
        rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
    )  # fmt: skip
    names = {
        "transformer.word_embeddings": "embedding", "transformer.ln_f": "final_norm",
        "transformer.h.": "layers.", "input_layernorm": "attention_norm",
        "post_attention_layernorm": "mlp_norm", "ln_attn": "attention_norm", "ln_mlp": "mlp_norm",
        "self_attention.": "attention.", "query_key_value": "*",
        "attention.dense.": "attention.output.", "dense_h_to_4h": "up", "dense_4h_to_h": "down",
        "lm_head": "head",
    }  # fmt: skip
    return FalconForCausalLM(theirs), partial(weights, names=names, split=by_head(config))


def starcoder(config):
    theirs = GPTBigCodeConfig(
        vocab_size=config.vocab_size, n_embd=config.hidden_size, n_layer=config.num_layers,
        n_head=config.num_heads, n_positions=config.max_seq_len, n_inner=config.intermediate_size,
        activation_function={"gelu_tanh": "gelu_pytorch_tanh"}.get(
            config.activation, config.activation
        ),
        layer_norm_epsilon=config.norm_epsilon, tie_word_embeddings=config.tie_embeddings,
        multi_query=config.num_kv_heads == 1,
    )  # fmt: skip
    names = {
        "transformer.wte": "embedding", "transformer.wpe": "positions",
        "transformer.ln_f": "final_norm", "transformer.h.": "layers.", "ln_1": "attention_norm",
        "ln_2": "mlp_norm", "c_fc": "up", "attn.c_attn": "attention.*",
        "attn.c_proj": "attention.output", "c_proj": "down", "lm_head": "head",
    }  # fmt: skip
    split = by_kind(config) if config.num_kv_heads == 1 else by_head(config)
    return GPTBigCodeForCausalLM(theirs), partial(weights, names=names, split=split)


LLAMA = {
    "model.embed_tokens": "embedding", "model.norm": "final_norm", "model.layers.": "layers.",
    "input_layernorm": "attention_norm", "post_attention_layernorm": "mlp_norm",
    "self_attn.": "attention.", "q_proj": "query", "k_proj": "key", "v_proj": "value",
    "o_proj": "output", "gate_proj": "gate", "up_proj": "up", "down_proj": "down",
    "lm_head": "head",
}  # fmt: skip


def llama_like(config):
    """What the configurations of Mistral, Mixtral and GLM share."""
    return {
        "vocab_size": config.vocab_size, "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size, "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads, "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim, "max_position_embeddings": config.max_seq_len,
        "hidden_act": config.activation, "rms_norm_eps": config.norm_epsilon,
        "tie_word_embeddings": config.tie_embeddings, "pad_token_id": None,
        "rope_parameters": {
            "rope_type": "default", "rope_theta": config.rope_theta,
            "partial_rotary_factor": config.rotary_fraction,
        },
    }  # fmt: skip


def mistral(config):
    theirs = MistralConfig(**llama_like(config), sliding_window=config.sliding_window or None)
    return MistralForCausalLM(theirs), partial(weights, names=LLAMA)


def mixtral(config):
    theirs = MixtralConfig(
        **llama_like(config), num_local_experts=config.num_experts,
        num_experts_per_tok=config.experts_per_token, sliding_window=config.sliding_window or None,
    )  # fmt: skip

    def translate(state):
        return experts_apart(weights(state, LLAMA | {"mlp.gate.": "mlp.router."}), config)

    return MixtralForCausalLM(theirs), translate


def experts_apart(found, config):
    """The state with each expert's matrices under a name of their own; in place."""
    for layer in range(config.num_dense_layers, config.num_layers):
        stem = f"layers.{layer}.mlp.experts"
        both, down = found.pop(f"{stem}.gate_up"), found.pop(f"{stem}.down")
        for expert in range(config.num_experts):
            gate, up = both[expert].chunk(2)
            parts = {"gate": gate, "up": up, "down": down[expert]}
            found |= {f"{stem}.{expert}.{part}.weight": own for part, own in parts.items()}
    return found


def deepseek(config):
    """DeepSeek-V3: a matrix for both keys and values, head by head, and a bias kept as a buffer."""
    scaling = {"rope_type": "default"}
    if config.rope_scaling == "yarn":
        scaling = {
            "rope_type": "yarn", "factor": config.rope_factor, "mscale": 1.0,
            "mscale_all_dim": 1.0,
            "original_max_position_embeddings": config.rope_trained_len,
        }  # fmt: skip
    theirs = DeepseekV3Config(
        **llama_like(config)
        | {
            "head_dim": config.rope_dim,
            "rope_parameters": scaling | {"rope_theta": config.rope_theta},
        },
        moe_intermediate_size=config.expert_width, n_routed_experts=config.num_experts,
        n_shared_experts=config.num_shared_experts, num_experts_per_tok=config.experts_per_token,
        first_k_dense_replace=config.num_dense_layers, norm_topk_prob=True,
        n_group=config.num_expert_groups, topk_group=config.groups_per_token,
        routed_scaling_factor=config.routed_scale, kv_lora_rank=config.kv_latent_dim,
        q_lora_rank=config.query_latent_dim or None, qk_nope_head_dim=config.head_dim,
        qk_rope_head_dim=config.rope_dim, v_head_dim=config.head_dim,
        experts_implementation="eager",
    )  # fmt: skip
    names = {
        "mlp.gate.e_score_correction_bias": "mlp.router.bias", "mlp.gate.": "mlp.router.",
        "shared_experts": "shared", "q_a_proj": "query_down", "q_a_layernorm": "query_norm",
        "q_b_proj": "query_up", "kv_a_proj_with_mqa": "down", "kv_a_layernorm": "latent_norm",
    }  # fmt: skip
    whole = {} if config.query_latent_dim else {"q_proj": "query_up"}

    def translate(state):
        found = experts_apart(weights(state, names | LLAMA | whole), config)
        heads = (config.num_heads, 2 * config.head_dim)
        for layer in range(config.num_layers):
            stem = f"layers.{layer}.attention"
            both = found.pop(f"{stem}.kv_b_proj.weight").unflatten(0, heads)
            for part, own in zip(("key_up", "value_up"), both.chunk(2, dim=1), strict=True):
                found[f"{stem}.{part}.weight"] = own.flatten(0, 1)
        return found

    model = DeepseekV3ForCausalLM(theirs)
    for name, buffer in model.named_buffers():  # a bias that changes choices
        if name.endswith("e_score_correction_bias"):
            buffer.uniform_(-0.3, 0.3)
    return model, translate


def glm(config):
    """GLM-4, whose rotary pairs are neighbours: the rows of query and key are reordered for halves."""
    theirs = GlmConfig(**llama_like(config), attention_bias=config.attention_bias)

    def halves(weight):
        r = config.rotary_dim
        heads = weight.unflatten(0, (-1, config.head_dim))
        return torch.cat((heads[:, 0:r:2], heads[:, 1:r:2], heads[:, r:]), dim=1).flatten(0, 1)

    def translate(state):
        found = weights(state, LLAMA)
        for name in list(found):
            if ".query." in name or ".key." in name:
                found[name] = halves(found[name])
            if "gate_up" in name:
                gate, up = found.pop(name).chunk(2)
                found[name.replace("gate_up", "gate")] = gate
                found[name.replace("gate_up", "up")] = up
        return found

    return GlmForCausalLM(theirs), translate


OPT = TINY.but(position_offset=2, activation="relu")
BLOOM = TINY.but(positions="alibi", embedding_norm=True)
GPT_1 = TINY.but(norm_placement="post", final_norm=False)
NEOX = TINY.but(
    positions="rotary", rotary_fraction=0.25, block="parallel", tie_embeddings=False
)  # fmt: skip
BARE = {"attention_bias": False, "attention_output_bias": False, "mlp_bias": False}
FALCON_7B = TINY.but(
    **BARE, positions="rotary", num_kv_heads=1, block="parallel_shared_norm", activation="gelu"
)
MISTRAL = TINY.but(
    **BARE, positions="rotary", norm="rms_norm", gated=True, activation="silu",
    tie_embeddings=False, num_kv_heads=2, intermediate_size=80, sliding_window=5,
)  # fmt: skip
MIXTRAL = MISTRAL.but(sliding_window=0, num_experts=4, experts_per_token=2)
DEEPSEEK = MIXTRAL.but(
    num_kv_heads=6, kv_latent_dim=24, query_latent_dim=28, rope_dim=4, num_experts=8,
    expert_intermediate_size=24, num_shared_experts=2, num_dense_layers=1, router="sigmoid",
    router_bias=True, routed_scale=2.5, num_expert_groups=4, groups_per_token=2, norm_epsilon=1e-6,
)  # fmt: skip
GLM = MISTRAL.but(
    sliding_window=0, rotary_fraction=0.5, attention_bias=True, norm_epsilon=1.5625e-7
)
FAMILIES = {
    "gpt-1": (gpt1, GPT_1),
    "gpt-1, relu, 4 heads": (
        gpt1, GPT_1.but(activation="relu", num_heads=4, num_kv_heads=4, head_dim=12)
    ),
    "gpt-1, untied, other epsilon": (gpt1, GPT_1.but(tie_embeddings=False, norm_epsilon=1e-2)),
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
    "gpt-neox": (gpt_neox, NEOX),
    "gpt-neox, sequential, whole heads turned, no attention bias, tied": (
        gpt_neox, NEOX.but(
            block="sequential", rotary_fraction=1.0, attention_bias=False,
            attention_output_bias=False, tie_embeddings=True, activation="gelu",
        ),
    ),
    "gpt-neox, 4 heads half turned, relu, narrow": (
        gpt_neox, NEOX.but(
            num_heads=4, num_kv_heads=4, head_dim=12, rotary_fraction=0.5, activation="relu",
            intermediate_size=50, norm_epsilon=1e-2, rope_theta=1000.0,
        ),
    ),
    "falcon-7b": (falcon, FALCON_7B),
    "falcon-40b": (
        falcon, FALCON_7B.but(num_kv_heads=2, block="parallel", tie_embeddings=False)
    ),
    "falcon-11b: groups and one norm; relu, narrow": (
        falcon, FALCON_7B.but(
            num_kv_heads=3, activation="relu", intermediate_size=50, norm_epsilon=1e-2,
            rope_theta=1000.0,
        ),
    ),
    "falcon-rw: biases, alibi divided by the root of the width": (
        falcon, TINY.but(
            num_heads=8, num_kv_heads=8, head_dim=6, positions="alibi", alibi_scale=6**-0.5,
            activation="gelu",
        ),
    ),
    "starcoder": (starcoder, TINY.but(num_kv_heads=1, activation="gelu")),
    "starcoder, all heads, tanh, narrow": (starcoder, TINY.but(intermediate_size=50)),
    "starcoder, untied, relu, 4 heads": (
        starcoder, TINY.but(
            num_heads=4, num_kv_heads=1, head_dim=12, activation="relu", tie_embeddings=False,
            norm_epsilon=1e-2,
        ),
    ),
    "mistral": (mistral, MISTRAL),
    "mistral, window of one, tied, wide heads": (
        mistral, MISTRAL.but(sliding_window=1, tie_embeddings=True, head_dim=12, num_kv_heads=6)
    ),
    "mistral, window as long as the text": (
        mistral, MISTRAL.but(sliding_window=20, rope_theta=1000.0, norm_epsilon=1e-2)
    ),
    "mixtral": (mixtral, MIXTRAL),
    "mixtral, one of three experts, window, tied": (
        mixtral, MIXTRAL.but(
            num_experts=3, experts_per_token=1, sliding_window=4, tie_embeddings=True,
            num_kv_heads=6,
        ),
    ),
    "mixtral, all of five experts, gelu": (
        mixtral, MIXTRAL.but(
            num_experts=5, experts_per_token=5, activation="gelu", rope_theta=1e6, head_dim=6,
            norm_epsilon=1e-2,
        ),
    ),
    "deepseek": (deepseek, DEEPSEEK),
    "deepseek, stretched, whole queries, one group, no dense layer, tied": (
        deepseek, DEEPSEEK.but(
            rope_scaling="yarn", rope_factor=5.0, rope_trained_len=8, query_latent_dim=0,
            num_expert_groups=1, groups_per_token=1, num_dense_layers=0, tie_embeddings=True,
            rope_theta=100.0,
        ),
    ),
    "deepseek, one wide shared expert, two dense layers, narrow heads, gelu": (
        deepseek, DEEPSEEK.but(
            num_shared_experts=1, expert_intermediate_size=50, num_dense_layers=2, head_dim=6,
            rope_dim=8, num_expert_groups=2, groups_per_token=1, experts_per_token=3,
            routed_scale=1.0, activation="gelu", kv_latent_dim=11,
        ),
    ),
    "glm-4": (glm, GLM),
    "glm-4, no biases, tied, whole heads turned": (
        glm, GLM.but(attention_bias=False, tie_embeddings=True, rotary_fraction=1.0)
    ),
    "glm-4, wide heads, one of keys, gelu": (
        glm, GLM.but(head_dim=16, num_kv_heads=1, rope_theta=1000.0, activation="gelu")
    ),
}  # fmt: skip


def correction_biases(theirs):
    """What DeepSeek's checkpoints hold and its makers' code calls parameters, and this class buffers."""
    return [b for name, b in theirs.named_buffers() if name.endswith("e_score_correction_bias")]


def pair(family):
    """The same random weights in both models, large enough for attention to be sharp."""
    build, config = FAMILIES[family]
    torch.manual_seed(0)
    theirs, translate = build(config)
    theirs.eval()
    for weight in theirs.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    ours, state = Decoder(config), translate(theirs.state_dict())
    if config.tie_embeddings:
        state.pop("head.weight")
    ours.load_state_dict(state)
    learned = [*theirs.parameters(), *correction_biases(theirs)]
    assert parameter_count(config).total == sum(weight.numel() for weight in learned)
    return ours, theirs


def padded_batch():
    tokens = torch.randint(61, (2, 20), generator=torch.Generator().manual_seed(1))
    mask = torch.ones(2, 20, dtype=torch.bool)
    mask[1, :6] = False
    return tokens, mask, (mask.long().cumsum(-1) - 1).masked_fill(~mask, 1)


@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        ("gpt-1", "gelu_new"), ("gpt-2-xl", "gelu_new"), ("gpt-neox-20b", "gelu_fast"),
        ("starcoder", "gelu"), ("falcon-7b", "gelu"), ("mixtral-8x7b", "silu"),
    ],
)  # fmt: skip
def test_the_activation_of_a_card_is_that_of_the_released_config_json(name, theirs):
    """It has no shape, so no weights show it: GPT-NeoX's card once had the exact GELU."""
    x = torch.linspace(-5, 5, 1001)
    off = {
        kind: (activation(x) - ACT2FN[theirs](x)).abs().max().item()
        for kind, activation in ACTIVATIONS.items()
    }
    assert min(off, key=off.get) == cards()[name].config.activation
    assert sorted(off.values())[0] < 1e-6 < 1e-4 < sorted(off.values())[1]


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_logits_equal_transformers_padded_and_cached(family):
    ours, theirs = pair(family)
    tokens, mask, positions = padded_batch()
    extra = {} if ours.config.positions == "alibi" else {"position_ids": positions}
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


@pytest.mark.parametrize("family", [name for name in FAMILIES if name.startswith("glm")])
@torch.no_grad()
def test_a_prefix_equals_transformers_under_a_mask_written_out(family):
    """transformers' GLM is causal; with a mask of four dims it looks where the mask says."""
    ours, theirs = pair(family)
    tokens, mask, positions = padded_batch()
    prefix = mask & (positions < 5)
    written_out = torch.tensor(
        [
            [[bool(mask[b, s] and (s <= t or prefix[b, s])) for s in range(20)] for t in range(20)]
            for b in range(2)
        ]
    )
    expected = theirs(tokens, attention_mask=written_out[:, None], position_ids=positions).logits
    causal = theirs(tokens, attention_mask=mask.long(), position_ids=positions).logits
    spread = expected[mask].std()
    assert (expected - causal)[mask].abs().max() > 0.5 * spread

    caches = [KVCache() for _ in ours.layers]
    cached = [
        ours(
            tokens[:, start:stop], caches=caches, attention_mask=mask[:, :stop],
            prefix=prefix[:, :stop],
        )
        for start, stop in ((0, 12), (12, 13), (13, 20))
    ]  # fmt: skip
    whole = ours(tokens, attention_mask=mask, prefix=prefix)
    for logits in (whole, torch.cat(cached, dim=1)):
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
    # experts meet other tokens in one product, which may round otherwise
    torch.testing.assert_close(before[:, :8], after[:, :8], rtol=0, atol=1e-5)
    assert (before[:, 8:] - after[:, 8:]).abs().amax(-1).min() > 1e-3


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
    some = torch.tensor([[True, True, True, False]])
    with pytest.raises(ValueError, match="prefix covers 4 of 5 tokens"):
        decoder(tokens[:, :5], prefix=some)
    caches = [KVCache() for _ in decoder.layers]
    decoder(tokens[:, :2], caches=caches, prefix=some[:, :2])
    with pytest.raises(ValueError, match="a prefix reaches into the last 2 tokens, which 2 cached"):
        decoder(tokens[:, :2], caches=caches, prefix=some)
    windowed = Decoder(TINY.but(sliding_window=3))
    with pytest.raises(ValueError, match="a prefix, which all may see, contradicts sliding_window"):
        windowed(tokens[:, :4], prefix=some)


@pytest.mark.parametrize("D", [48, 4095, 8190])
def test_a_gated_layer_of_the_page_s_width_has_as_many_parameters_as_a_plain_one_of_4_d(D):
    F = eval(expressions(PAGE)["eq-gated-width"], {"D": D})
    assert int(F) == F
    bare = ModelConfig(
        vocab_size=9, hidden_size=D, num_layers=1, num_heads=1, max_seq_len=3, mlp_bias=False
    )
    gated = bare.but(gated=True, intermediate_size=int(F))
    assert parameter_count(gated).total == parameter_count(bare).total
