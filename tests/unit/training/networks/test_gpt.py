"""The transformer looks back only, ties what it is asked to, and is GPT-2's plan."""

from __future__ import annotations

import pytest
import torch

from fganalysis.training.networks import gpt


def test_a_position_sees_itself_and_what_stands_before() -> None:
    network = gpt(7, 5, 8, 2, 2, dtype=torch.float64)
    tokens = torch.tensor([[1, 2, 3, 4, 5]])
    before = network(tokens)
    for place in range(5):
        changed = tokens.clone()
        changed[0, place] = 6
        moved = (network(changed) != before).any(2)[0]
        assert moved.tolist() == [index >= place for index in range(5)]


def test_attention_is_that_of_torch() -> None:
    network = gpt(7, 5, 8, 2, 1, dtype=torch.float64)
    attention = network.blocks[0].attention
    inputs = torch.rand(3, 5, 8, dtype=torch.float64)
    query, key, value = (part.unflatten(2, (2, 4)).transpose(1, 2) for part in attention.attend(inputs).chunk(3, dim=2))
    fused = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
    expected = attention.project(fused.transpose(1, 2).flatten(2))
    torch.testing.assert_close(attention(inputs), expected)


def test_a_tied_head_is_the_embedding_and_an_untied_one_is_not() -> None:
    tied, untied = gpt(7, 5, 8, 2, 1), gpt(7, 5, 8, 2, 1, tied=False)
    assert tied.head.weight is tied.tokens.weight
    assert untied.head.weight is not untied.tokens.weight
    names = [name for name, _ in untied.named_parameters()]
    assert [name for name, _ in tied.named_parameters()] == [name for name in names if name != "head.weight"]
    assert gpt(7, 5, 8, 2, 1, dtype=torch.float64).head.weight.dtype == torch.float64
    double = gpt(7, 5, 8, 2, 1, dtype=torch.float64)
    assert double.head.weight is double.tokens.weight


def test_the_plan_is_gpt_2_s() -> None:
    n_weights = sum(p.numel() for p in gpt(50257, 1024, 32, 4, 3).parameters())
    block = 12 * 32**2 + 13 * 32
    assert n_weights == (50257 + 1024) * 32 + 3 * block + 2 * 32


def test_layers_that_add_to_what_is_carried_start_smaller() -> None:
    network = gpt(7, 5, 128, 2, 2)
    block = network.blocks[1]
    # Of 16 384 normal numbers at least: the relative standard error is .0055 at most, 5 of it are .028.
    for layer, deviation in [
        (block.attention.attend, 0.02),
        (block.expand, 0.02),
        (block.attention.project, 0.01),
        (block.contract, 0.01),
    ]:
        assert layer.weight.std().item() == pytest.approx(deviation, rel=0.028)
        assert not layer.bias.any()


def test_shorter_sequences_are_taken_and_longer_ones_refused() -> None:
    network = gpt(7, 5, 8, 2, 1)
    assert network(torch.zeros(2, 3, dtype=torch.long)).shape == (2, 3, 7)
    with pytest.raises(ValueError, match=r"^inputs must have at most the network's 5 positions, got 6$"):
        network(torch.zeros(2, 6, dtype=torch.long))
