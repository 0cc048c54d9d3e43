"""Attention with a state of fixed size: linear, decayed, selective and with the delta rule.

Page: foundations/recurrence. Papers: katharopoulos2020transformers (linear attention),
gu2022efficiently and gu2024mamba (state spaces), dao2024transformers and yang2024gated (decay),
schlag2021linear, yang2024parallelizing and yang2025gated (delta rule), dai2019transformerxl.
Every layer here keeps, for each head, a matrix X of H x H_v numbers:
X_t = diag(g_t) X_{t-1} + k_t w_t, o_t = q_t X_t, with w_t = v_t, or what the delta rule writes.
Left out: projections, gates, norms and short convolutions around it; kernels.
RWKV-4 is in `rwkv`, and how much a state holds in `recall`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import elu

from llmbook.foundations.attention import causal_mask

Keys = Float[Tensor, "B N T H"]
Values = Float[Tensor, "B N T H_v"]
Decays = Float[Tensor, "B N T #H"]  # their logarithms, one for each head or each number of a key
State = Float[Tensor, "B N H H_v"]


def decayed_scores(query: Keys, key: Keys, log_decay: Decays) -> Float[Tensor, "B N T T"]:
    """q_t · (g_{s+1} ... g_t k_s) for s <= t, 0 above the diagonal.

    Products of decays are exponents of differences of running sums, never above 1: to divide by
    them instead would overflow after a few hundred tokens.
    """
    run = log_decay.cumsum(-2)
    since = run[:, :, :, None] - run[:, :, None]  # B N T T #H
    past = causal_mask(*since.shape[2:4])[..., None].to(since.device)
    kept = since.masked_fill(~past, -math.inf).exp()
    return torch.einsum("bnth,bnsh,bntsh->bnts", query, key, kept)


def parallel(query: Keys, key: Keys, value: Values, log_decay: Decays) -> Values:
    """All tokens at once and no state: a table of T² scores, as in attention without softmax."""
    return decayed_scores(query, key, log_decay) @ value


def recurrent(
    query: Keys, key: Keys, value: Values, log_decay: Decays, *, state: State | None = None
) -> tuple[Values, State]:
    """One token after another: X = diag(g) X + k v, o = q X (dao2024transformers)."""
    X = empty_state(key, value) if state is None else state
    outputs = []
    for q, k, v, g in zip(*(x.unbind(2) for x in (query, key, value, log_decay)), strict=True):
        X = g.exp()[..., None] * X + k[..., None] * v[..., None, :]  # B N H H_v
        outputs.append((q[..., None, :] @ X)[..., 0, :])
    return torch.stack(outputs, dim=2), X


def chunked(
    query: Keys,
    key: Keys,
    value: Values,
    log_decay: Decays,
    *,
    chunk_size: int = 64,
    state: State | None = None,
) -> tuple[Values, State]:
    """Parallel within chunks, recurrent between them: T / C steps of matrix products.

    Raises:
        ValueError: if `chunk_size` is below 1.
    """
    if chunk_size < 1:
        raise ValueError(f"chunk_size {chunk_size} is below 1: a chunk holds a token at least")
    X = empty_state(key, value) if state is None else state
    outputs = []
    pieces = (x.split(chunk_size, dim=2) for x in (query, key, value, log_decay))
    for q, k, v, g in zip(*pieces, strict=True):
        output, X = through_chunk(q, k, v, g, state=X)
        outputs.append(output)
    return torch.cat(outputs, dim=2), X


def delta_recurrent(
    query: Keys,
    key: Keys,
    value: Values,
    log_decay: Decays,
    rate: Float[Tensor, "B N T"],
    *,
    state: State | None = None,
) -> tuple[Values, State]:
    """Write what is missing: X = diag(g) X + k b (v - k diag(g) X) (yang2025gated).

    A decay for each token is Gated DeltaNet, one for each number of the key is Kimi Delta
    Attention (zhang2025kimi), none is DeltaNet. Keys should have length 1.
    """
    X = empty_state(key, value) if state is None else state
    outputs = []
    pieces = (x.unbind(2) for x in (query, key, value, log_decay, rate))
    for q, k, v, g, b in zip(*pieces, strict=True):
        X = g.exp()[..., None] * X
        missing = v - (k[..., None, :] @ X)[..., 0, :]
        X = X + k[..., None] * (b[..., None] * missing)[..., None, :]
        outputs.append((q[..., None, :] @ X)[..., 0, :])
    return torch.stack(outputs, dim=2), X


def delta_chunked(
    query: Keys,
    key: Keys,
    value: Values,
    log_decay: Decays,
    rate: Float[Tensor, "B N T"],
    *,
    chunk_size: int = 64,
    state: State | None = None,
) -> tuple[Values, State]:
    """The same in chunks: what a chunk writes solves one triangular system.

    w_t = b_t (v_t - k_t X_0 - sum over s < t of (k_t · k_s) w_s), the decays in their places
    (yang2024parallelizing; yang2025gated).

    Raises:
        ValueError: if `chunk_size` is below 1.
    """
    if chunk_size < 1:
        raise ValueError(f"chunk_size {chunk_size} is below 1: a chunk holds a token at least")
    X = empty_state(key, value) if state is None else state
    outputs = []
    pieces = (x.split(chunk_size, dim=2) for x in (query, key, value, log_decay, rate[..., None]))
    for q, k, v, g, b in zip(*pieces, strict=True):
        missing = v - (k * g.cumsum(-2).exp()) @ X  # as seen from the chunk's beginning
        earlier = b * decayed_scores(k, k, g).tril(-1)  # B N C C
        written = torch.linalg.solve_triangular(
            earlier + torch.eye(earlier.shape[-1]).to(earlier), b * missing, upper=False
        )
        output, X = through_chunk(q, k, written, g, state=X)
        outputs.append(output)
    return torch.cat(outputs, dim=2), X


def empty_state(key: Keys, value: Values) -> State:
    """The state before the first token."""
    B, N, _, H = key.shape
    return key.new_zeros(B, N, H, value.shape[-1])


def through_chunk(
    query: Keys, key: Keys, written: Values, log_decay: Decays, *, state: State
) -> tuple[Values, State]:
    """Outputs of one chunk and the state behind it, given what each token writes."""
    run = log_decay.cumsum(-2)  # since the chunk's beginning
    before, whole = run.exp(), run[:, :, -1:]
    outputs = (query * before) @ state + decayed_scores(query, key, log_decay) @ written
    return outputs, whole.exp().mT * state + (key * (whole - run).exp()).mT @ written


def linear_attention(query: Keys, key: Keys, value: Values, *, chunk_size: int = 64) -> Values:
    """Softmax's exp(q · k) replaced by f(q) · f(k), f(x) = elu(x) + 1.

    katharopoulos2020transformers. The sum of weights is what a value of 1 gets.
    """
    weighed = torch.cat((value, torch.ones_like(value[..., :1])), dim=-1)
    no_decay = torch.zeros_like(key[..., :1])
    mixed, _ = chunked(elu(query) + 1, elu(key) + 1, weighed, no_decay, chunk_size=chunk_size)
    return mixed[..., :-1] / mixed[..., -1:]


def scan_rounds(length: int) -> list[list[tuple[int, int]]]:
    """Which elements a parallel scan joins, round by round: (left, right), the result at right.

    Up a tree, then down (blelloch1990prefix; here each element includes its own).

    >>> scan_rounds(4)
    [[(0, 1), (2, 3)], [(1, 3)], [(1, 2)]]
    """
    strides = [2**i for i in range((length - 1).bit_length())]
    up = [[(i - s, i) for i in range(2 * s - 1, length, 2 * s)] for s in strides]
    down = [[(i - s, i) for i in range(3 * s - 1, length, 2 * s)] for s in reversed(strides)]
    return [pairs for pairs in up + down if pairs]


def scan(decay: Float[Tensor, "T ..."], inputs: Float[Tensor, "T ..."]) -> Float[Tensor, "T ..."]:
    """All x_t = a_t x_{t-1} + b_t, x_{-1} = 0, in about 2 log2(T) rounds instead of T steps.

    Two steps are one step: (a, b) then (a', b') is (a' a, a' b + b').
    """
    for pairs in scan_rounds(len(inputs)):
        left, right = torch.tensor(pairs, device=inputs.device).T
        inputs = inputs.index_add(0, right, decay[right] * inputs[left])
        decay = decay.index_copy(0, right, decay[right] * decay[left])
    return inputs


def selective_scan(
    inputs: Float[Tensor, "B T D"],
    step: Float[Tensor, "B T D"],
    rates: Float[Tensor, "D n"],
    write: Float[Tensor, "B T n"],
    read: Float[Tensor, "B T n"],
) -> Float[Tensor, "B T D"]:
    """Mamba's layer: n numbers of state a channel, x = exp(step A) x + step B u, y = C x.

    gu2024mamba, algorithm 2: inputs u, `rates` A (negative), `write` B and `read` C; all but A are
    made from the token. Left out: the skip D u.
    """
    decay = (step[..., None] * rates).exp()  # B T D n
    written = (step * inputs)[..., None] * write[:, :, None]  # B T D n
    states = scan(decay.transpose(0, 1), written.transpose(0, 1)).transpose(0, 1)
    return torch.einsum("btdn,btn->btd", states, read)


def in_segments(
    layers: Sequence[Callable[[Tensor], Tensor]],
    hidden: Float[Tensor, "B T D"],
    *,
    segment_len: int,
    memory_len: int,
) -> Float[Tensor, "B T D"]:
    """Segment after segment, each layer reading its last `memory_len` inputs again.

    dai2019transformerxl, section 3.2: the memory is detached, so no gradient flows into it. A layer
    gets memory and segment in a row; rows of the memory are computed once more here and dropped.
    """
    memory = [hidden[:, :0] for _ in layers]
    outputs = []
    for segment in hidden.split(segment_len, dim=1):
        for i, layer in enumerate(layers):
            seen = torch.cat((memory[i], segment), dim=1)  # B M+T D
            memory[i] = seen[:, max(0, seen.shape[1] - memory_len) :].detach()
            segment = layer(seen)[:, -segment.shape[1] :]
        outputs.append(segment)
    return torch.cat(outputs, dim=1)
