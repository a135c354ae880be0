"""The kernels. Each rounds where the plain form rounds, so that in 16 bits both give the same numbers.

Rows begin at multiples of their length, numbers of a head lie side by side. Products are float32 whatever is read.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def norm_forward(
    x, weight, out, inverse, columns, epsilon, OFFSET: tl.constexpr, ROUNDS: tl.constexpr, BLOCK: tl.constexpr
):
    """A row: n · (w + OFFSET), with n = x / √(mean(x²) + ε) rounded before it where ROUNDS, and 1 / √(…)."""
    row, at = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    inside = at < columns
    read = tl.load(x + row * columns + at, mask=inside, other=0.0)
    wide = read.to(tl.float32)
    scale = 1 / tl.sqrt(tl.sum(wide * wide, axis=0) / columns + epsilon)
    tl.store(inverse + row, scale)
    w = tl.load(weight + at, mask=inside, other=0.0).to(tl.float32) + OFFSET
    n = wide * scale
    if ROUNDS:
        n = n.to(read.dtype).to(tl.float32)
    tl.store(out + row * columns + at, (n * w).to(out.dtype.element_ty), mask=inside)


@triton.jit
def norm_backward(
    gradient, x, weight, inverse, out, columns, OFFSET: tl.constexpr, ROUNDS: tl.constexpr, BLOCK: tl.constexpr
):
    """A row of dx = (g - n · mean(g · n)) / √(mean(x²) + ε), with g = (w + OFFSET) · G."""
    row, at = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    inside = at < columns
    given = tl.load(gradient + row * columns + at, mask=inside, other=0.0)
    w = tl.load(weight + at, mask=inside, other=0.0).to(tl.float32) + OFFSET
    g = given.to(tl.float32) * w
    if ROUNDS:
        g = g.to(given.dtype).to(tl.float32)
    scale = tl.load(inverse + row)
    n = tl.load(x + row * columns + at, mask=inside, other=0.0).to(tl.float32) * scale
    along = tl.sum(g * n, axis=0) / columns
    tl.store(out + row * columns + at, ((g - n * along) * scale).to(out.dtype.element_ty), mask=inside)


@triton.jit
def _tanh(x):
    """By what e^-2|x| is, which does not overflow."""
    small = tl.exp(-2 * tl.abs(x))
    size = (1 - small) / (1 + small)
    return tl.where(x < 0, -size, size)


@triton.jit
def gated_forward(gate, up, out, numbers, GELU: tl.constexpr, BLOCK: tl.constexpr):
    """act(gate) · up, where act is SiLU, or GELU by tanh."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < numbers
    read = tl.load(gate + at, mask=inside, other=0.0)
    x = read.to(tl.float32)
    if GELU:
        active = 0.5 * x * (1 + _tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)))
    else:
        active = x * tl.sigmoid(x)
    product = active.to(read.dtype).to(tl.float32) * tl.load(up + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + at, product.to(out.dtype.element_ty), mask=inside)


@triton.jit
def gated_backward(gradient, gate, up, d_gate, d_up, numbers, GELU: tl.constexpr, BLOCK: tl.constexpr):
    """Dup = G · act(gate), and dgate = G · up · act'(gate)."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < numbers
    read = tl.load(gate + at, mask=inside, other=0.0)
    x, given = read.to(tl.float32), tl.load(gradient + at, mask=inside, other=0.0).to(tl.float32)
    if GELU:
        t = _tanh(0.7978845608028654 * (x + 0.044715 * x * x * x))
        active = 0.5 * x * (1 + t)
        slope = 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * 0.7978845608028654 * (1 + 3 * 0.044715 * x * x)
    else:
        s = tl.sigmoid(x)
        active = x * s
        slope = s * (1 + x * (1 - s))
    by_active = (given * tl.load(up + at, mask=inside, other=0.0).to(tl.float32)).to(read.dtype).to(tl.float32)
    tl.store(d_up + at, (given * active.to(read.dtype).to(tl.float32)).to(d_up.dtype.element_ty), mask=inside)
    tl.store(d_gate + at, (by_active * slope).to(d_gate.dtype.element_ty), mask=inside)


@triton.jit
def _turn(
    source, out, batch, token, time, by_batch, by_head, by_token, cos, sin, HEADS: tl.constexpr, HALF: tl.constexpr,
    BACKWARD: tl.constexpr, BLOCK_HEADS: tl.constexpr, BLOCK_HALF: tl.constexpr,
):  # fmt: skip
    """All heads of one token: what is read has strides, what is written is `[batch, time, heads, size]`."""
    heads, at = tl.arange(0, BLOCK_HEADS)[:, None], tl.arange(0, BLOCK_HALF)[None, :]
    inside = (heads < HEADS) & (at < HALF)
    kind = out.dtype.element_ty
    from_ = source + batch * by_batch + token * by_token + heads * by_head + at
    first = tl.load(from_, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(from_ + HALF, mask=inside, other=0.0).to(tl.float32)
    cos_1 = tl.load(cos + at, mask=at < HALF, other=0.0).to(tl.float32)
    cos_2 = tl.load(cos + HALF + at, mask=at < HALF, other=0.0).to(tl.float32)
    sin_1 = tl.load(sin + at, mask=at < HALF, other=0.0).to(tl.float32)
    sin_2 = tl.load(sin + HALF + at, mask=at < HALF, other=0.0).to(tl.float32)
    if BACKWARD:
        across_1, across_2 = second * sin_2, -first * sin_1
    else:
        across_1, across_2 = -second * sin_1, first * sin_2
    to = out + (batch * time + token) * (HEADS * HALF * 2) + heads * (HALF * 2) + at
    turned_1 = (first * cos_1).to(kind).to(tl.float32) + across_1.to(kind).to(tl.float32)
    turned_2 = (second * cos_2).to(kind).to(tl.float32) + across_2.to(kind).to(tl.float32)
    tl.store(to, turned_1.to(kind), mask=inside)
    tl.store(to + HALF, turned_2.to(kind), mask=inside)


@triton.jit
def rotate(
    query, key, query_out, key_out, cos, sin, time, query_by_batch, query_by_head, query_by_token, key_by_batch,
    key_by_head, key_by_token, by_row, QUERY_HEADS: tl.constexpr, KEY_HEADS: tl.constexpr, HALF: tl.constexpr,
    BACKWARD: tl.constexpr, BLOCK_QUERY: tl.constexpr, BLOCK_KEY: tl.constexpr, BLOCK_HALF: tl.constexpr,
):  # fmt: skip
    """Queries and keys of one token turned by its position, or their gradients turned back."""
    place = tl.program_id(0).to(tl.int64)
    batch, token = place // time, place % time
    cos += batch * by_row + token * (2 * HALF)
    sin += batch * by_row + token * (2 * HALF)
    _turn(query, query_out, batch, token, time, query_by_batch, query_by_head, query_by_token, cos, sin,
          QUERY_HEADS, HALF, BACKWARD, BLOCK_QUERY, BLOCK_HALF)  # fmt: skip
    _turn(key, key_out, batch, token, time, key_by_batch, key_by_head, key_by_token, cos, sin,
          KEY_HEADS, HALF, BACKWARD, BLOCK_KEY, BLOCK_HALF)  # fmt: skip
