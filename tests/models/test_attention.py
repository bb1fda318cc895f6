"""Attention's options against timm and against the same written out."""

from functools import partial

import pytest
import torch
from timm.layers import Attention, apply_rot_embed_cat, build_rotary_pos_embed
from torch import nn

from fpdm.block_options import BlockOptions
from fpdm.models.attention import BlockAttention, make_attention, rotary_angles, rotate, without_own_value

D, HEADS, HEAD = 48, 3, 16
GRID = (2, 5)


def attention(**options) -> Attention:
    torch.manual_seed(0)
    layer = make_attention(D, HEADS, BlockOptions(**options), GRID)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.3)
    return layer


def tokens(batch=2):
    return torch.randn(batch, 10, D, generator=torch.Generator().manual_seed(1))


def plainly(layer, x, qk_norm=False, positions="sincos", exclude_own_value=False):
    """Head by head: normalise, rotate in the complex plane, attend, take the token's own direction away."""
    parts = (x @ layer.qkv.weight.T + layer.qkv.bias).split(D, dim=-1)
    heads = []
    for head in range(HEADS):
        q, k, v = (part[..., head * HEAD : (head + 1) * HEAD] for part in parts)
        if qk_norm:
            q, k = (a / (a.square().mean(-1, keepdim=True) + 1e-6).sqrt() * scale
                    for a, scale in ((q, layer.q_norm.weight), (k, layer.k_norm.weight)))  # fmt: skip
        if positions == "rotary":
            q, k = turned(q), turned(k)
        out = torch.softmax(q @ k.mT / HEAD**0.5, dim=-1) @ v
        if exclude_own_value:
            out = out - (out * v).sum(-1, keepdim=True) / v.square().sum(-1, keepdim=True) * v
        heads.append(out)
    return torch.cat(heads, dim=-1) @ layer.proj.weight.T + layer.proj.bias


def turned(a):
    """(x_i + j x_{i + 8}) exp(j omega p): four of the eight pairs by the row, the next four by the column."""
    pairs = torch.complex(a[..., : HEAD // 2], a[..., HEAD // 2 :])
    angles = [[place * 10_000 ** (-i / 4) for place in (row, column) for i in range(4)]
              for row in range(GRID[0]) for column in range(GRID[1])]  # fmt: skip
    angles = torch.tensor(angles)
    pairs = pairs * torch.polar(torch.ones_like(angles), angles)
    return torch.cat([pairs.real, pairs.imag], dim=-1)


@pytest.mark.parametrize("exclude_own_value", [False, True])
@pytest.mark.parametrize("positions", ["sincos", "rotary"])
@pytest.mark.parametrize("qk_norm", [False, True])
def test_attention_is_what_its_options_say(qk_norm, positions, exclude_own_value):
    options = {"qk_norm": qk_norm, "positions": positions, "exclude_own_value": exclude_own_value}
    layer = attention(**options)
    torch.testing.assert_close(layer(tokens()), plainly(layer, tokens(), **options), atol=1e-5, rtol=1e-4)


def test_without_rotation_and_exclusion_it_is_timms():
    assert type(attention()) is type(attention(qk_norm=True)) is Attention
    theirs = Attention(D, HEADS, qkv_bias=True, qk_norm=True, norm_layer=partial(nn.RMSNorm, eps=1e-6))
    ours, rotary = attention(qk_norm=True), attention(qk_norm=True, positions="rotary")
    rotary.cos.fill_(1)
    rotary.sin.zero_()
    for layer in (ours, rotary):
        theirs.load_state_dict(layer.state_dict())  # the same names
        torch.testing.assert_close(layer(tokens()), theirs(tokens()), atol=1e-6, rtol=1e-5)


def test_a_new_norm_of_queries_and_keys_has_scale_one():
    layer = make_attention(D, HEADS, BlockOptions(qk_norm=True), None)
    assert torch.equal(layer.q_norm.weight, torch.ones(HEAD)) and torch.equal(layer.k_norm.weight, torch.ones(HEAD))


def test_rotation_is_timms():
    """timm's pairs are neighbours, ours are half a head apart."""
    x = torch.randn(2, HEADS, 10, HEAD)
    angles = rotary_angles(HEAD, *GRID).float()
    theirs = build_rotary_pos_embed(list(GRID), dim=HEAD, in_pixels=False)
    neighbours = torch.arange(HEAD).reshape(2, -1).T.flatten()  # 0, 8, 1, 9, ...
    expected = apply_rot_embed_cat(x[..., neighbours], torch.cat(theirs, dim=-1))
    torch.testing.assert_close(rotate(x, angles.cos(), angles.sin())[..., neighbours], expected)


def test_attention_sees_relative_positions_in_both_directions():
    """One query and one key at all places: the logits of two places depend on the rows and columns between them."""
    rows, columns = 4, 6
    angles = rotary_angles(HEAD, rows, columns)
    q, k = (rotate(part.expand(1, 1, rows * columns, HEAD), angles.cos(), angles.sin())
            for part in torch.randn(2, 1, 1, 1, HEAD, dtype=torch.float64))  # fmt: skip
    logits = (q @ k.mT).reshape(rows, columns, rows, columns)
    seen = {}
    for i, j, m, n in torch.cartesian_prod(*map(torch.arange, logits.shape)).tolist():
        seen.setdefault((m - i, n - j), []).append(logits[i, j, m, n])
    found = torch.stack([torch.stack(group).mean() for group in seen.values()])
    assert max(float(torch.stack(group).std(unbiased=False)) for group in seen.values()) < 1e-12
    assert len(seen) == 7 * 11 and len(found.unique()) == len(seen)


def test_what_is_left_is_orthogonal_to_the_own_value():
    out, v = torch.randn(2, HEADS, 10, HEAD), torch.randn(2, HEADS, 10, HEAD)
    z = without_own_value(out, v)
    cosine = torch.nn.functional.cosine_similarity(z, v, dim=-1)
    assert cosine.abs().max() < 1e-5
    removed = out - z  # along v, and no more than out's component there
    assert torch.nn.functional.cosine_similarity(removed, v, dim=-1).abs().min() > 1 - 1e-5
    torch.testing.assert_close(without_own_value(z, v), z, atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_values_of_zero_exclude_nothing_and_have_finite_gradients(dtype):
    out, v = torch.randn(1, 1, 4, HEAD, dtype=dtype), torch.randn(1, 1, 4, HEAD, dtype=dtype)
    v[..., 1, :] = 0
    out, v = out.requires_grad_(), v.requires_grad_()
    z = without_own_value(out, v)
    assert z.dtype == dtype and torch.equal(z[..., 1, :], out[..., 1, :])
    gradients = torch.autograd.grad(z.float().square().sum(), (out, v), create_graph=True)
    second = torch.autograd.grad(sum(part.float().square().sum() for part in gradients), (out, v))
    assert all(part.isfinite().all() and part[..., 0, :].abs().max() > 0 for part in (*gradients, *second))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_sixteen_bits(dtype):
    """Under autocast and with 16-bit weights: near float32, in the type that the maps return."""
    options = {"qk_norm": True, "positions": "rotary", "exclude_own_value": True}
    layer = attention(**options)
    exact = layer(tokens())
    with torch.autocast("cpu", dtype):
        mixed = layer(tokens())
    half = attention(**options).to(dtype)(tokens().to(dtype))
    for found in (mixed, half):
        assert found.dtype == dtype
        torch.testing.assert_close(found.float(), exact, atol=0.2, rtol=0.05)


def test_only_rotation_and_exclusion_need_another_class():
    for options in ({"positions": "rotary"}, {"exclude_own_value": True}):
        layer = attention(**options)
        assert type(layer) is BlockAttention and list(layer.state_dict()) == list(attention().state_dict())
