"""The mixer cuts patches in order and keeps groups of channels apart."""

from __future__ import annotations

import torch

from fganalysis.training.networks import mixer


def test_an_image_is_cut_into_its_patches_row_by_row() -> None:
    network = mixer((2, 4, 6), 3, patches=2, width=4, groups=2, blocks=1, dtype=torch.float64)
    first = network.blocks[0]
    seen: list[torch.Tensor] = []
    first.channels.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    image = torch.arange(48.0, dtype=torch.float64).reshape(1, 2, 4, 6)
    assert network(image).shape == (1, 3)
    (tokens,) = seen
    assert tokens.shape == (1, 4, 12)
    for token, (row, column) in enumerate([(0, 0), (0, 3), (2, 0), (2, 3)]):
        patch = image[0, :, row : row + 2, column : column + 3]
        assert torch.equal(tokens[0, token], patch.flatten())


def test_groups_of_channels_are_kept_apart() -> None:
    mixing = mixer((1, 4, 4), 3, patches=2, width=6, groups=2, blocks=1).blocks[0].channels
    weight = mixing.mix_groups.weight
    assert weight.shape == (6, 3, 1)
    inputs = torch.rand(1, 4, 6)
    before = mixing.mix_groups(inputs.transpose(1, 2))
    inputs[..., 3:] += 1
    after = mixing.mix_groups(inputs.transpose(1, 2))
    assert torch.equal(before[:, :3], after[:, :3]) and not torch.equal(before[:, 3:], after[:, 3:])


def test_the_first_block_mixes_no_tokens_and_the_others_do() -> None:
    network = mixer((1, 4, 4), 3, patches=2, width=6, groups=2, blocks=2)
    image = torch.rand(1, 1, 4, 4)
    changed = image.clone()
    changed[..., :2, :2] = torch.rand(2, 2)
    first, second = network.blocks
    moved = (first(image) != first(changed)).any(2)[0]
    assert moved.tolist() == [True, False, False, False]
    assert (second(first(image)) != second(first(changed))).any(2).all()


def test_units_are_normalised_within_their_group() -> None:
    network = mixer((1, 8, 8), 3, patches=2, width=12, groups=3, blocks=1)
    outputs = network.blocks[0].channels(torch.rand(2, 4, 16)).unflatten(2, (3, 4))
    torch.testing.assert_close(outputs.mean(3), torch.zeros(2, 4, 3), atol=1e-5, rtol=0)
    torch.testing.assert_close(outputs.square().mean(3), torch.ones(2, 4, 3), atol=1e-2, rtol=0)


def test_the_defaults_are_the_authors_medium_network() -> None:
    network = mixer()
    # With a head of 512·10 + 10 a block, for its local losses, these are the 919 thousand of their table.
    n_weights = sum(p.numel() for p in network.parameters())
    assert n_weights + 4 * 5130 == 918_770
