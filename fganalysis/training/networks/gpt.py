"""A causal transformer of GPT-2's plan."""

from __future__ import annotations

import torch

from fganalysis.arguments import check_flag, check_whole
from fganalysis.training.networks.layers import LARGEST_SIZE, MOST_BLOCKS, seeded, without_weights

MLP_WIDTHS = 4  # Units of the hidden layer of a block's MLP, in widths of the network.
DEVIATION = 0.02  # Standard deviation of the initial weights, GPT-2's.


class Attention(torch.nn.Module):
    """Causal self-attention: a position sees itself and what stands before it.

    Written as products and a softmax: the fused kernel has neither forward-mode differentiation nor a batched one.
    """

    def __init__(self, width: int, heads: int, generator: torch.Generator, deviation: float) -> None:
        super().__init__()
        self.heads = heads
        self.attend = _linear(width, 3 * width, generator)
        self.project = _linear(width, width, generator, deviation)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Map (example, position, width) to the same shape."""
        length = inputs.shape[1]
        # (example, position, 3, head, unit) to three of (example, head, position, unit)
        split = self.attend(inputs).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        query, key, value = split.unbind(0)
        scores = query @ key.transpose(2, 3) / query.shape[3] ** 0.5
        later = torch.ones(length, length, dtype=torch.bool, device=inputs.device).triu(1)
        weights = scores.masked_fill(later, -torch.inf).softmax(3)
        return self.project((weights @ value).transpose(1, 2).flatten(2))


class Block(torch.nn.Module):
    """Attention, then a perceptron with GELU; each normalises what it reads and is added to what it read."""

    def __init__(self, width: int, heads: int, generator: torch.Generator, deviation: float) -> None:
        super().__init__()
        self.norm1 = torch.nn.LayerNorm(width)
        self.attention = Attention(width, heads, generator, deviation)
        self.norm2 = torch.nn.LayerNorm(width)
        self.expand = _linear(width, MLP_WIDTHS * width, generator)
        self.contract = _linear(MLP_WIDTHS * width, width, generator, deviation)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Map (example, position, width) to the same shape."""
        attended = inputs + self.attention(self.norm1(inputs))
        hidden = torch.nn.functional.gelu(self.expand(self.norm2(attended)))
        return attended + self.contract(hidden)


class GPT(torch.nn.Module):
    """Embeddings of tokens and of positions, blocks `blocks.0`, `blocks.1`, …, a last normalisation and a head."""

    def __init__(
        self,
        vocabulary: int,
        positions: int,
        width: int,
        heads: int,
        blocks: int,
        tied: bool,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.tokens = _embedding(vocabulary, width, generator)
        self.positions = _embedding(positions, width, generator)
        deviation = DEVIATION / (2 * blocks) ** 0.5
        self.blocks = torch.nn.Sequential(*(Block(width, heads, generator, deviation) for _ in range(blocks)))
        self.norm = torch.nn.LayerNorm(width)
        self.head = _linear(width, vocabulary, generator, bias=False)
        if tied:
            self.head.weight = self.tokens.weight

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Map tokens (example, position), whole numbers, to (example, position, vocabulary).

        Raises
        ------
        ValueError
            If there are more positions than the network has.
        """
        length, most = inputs.shape[1], self.positions.num_embeddings
        if length > most:
            raise ValueError(f"inputs must have at most the network's {most} positions, got {length}")
        order = torch.arange(length, device=inputs.device)
        return self.head(self.norm(self.blocks(self.tokens(inputs) + self.positions(order))))


def gpt(
    vocabulary: int = 256,
    positions: int = 64,
    width: int = 128,
    heads: int = 4,
    blocks: int = 4,
    tied: bool = True,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> GPT:
    """Build a causal transformer of GPT-2's plan: pre-normalised blocks of attention and a perceptron of 4 widths.

    It takes tokens (example, position), whole numbers, and gives (example, position, vocabulary). Positions are
    learned, GELU is exact, the head has no bias and there is no dropout. Linear and embedding weights are normal with
    standard deviation .02, divided by √(2 · blocks) in the layers that add to what is carried past them; biases are
    zero. Weights depend on the seed alone, and a float64 network has those of the float32 one.

    Source: Radford et al. 2019, Language Models are Unsupervised Multitask Learners.

    Parameters
    ----------
    vocabulary
        Number of tokens; 256 for `fganalysis.datasets.load("text", …)`.
    positions
        Longest sequence.
    width
        Units of a position.
    heads
        Attention heads; divides the width.
    blocks
        Number of blocks.
    tied
        Whether the head's weights are those of the embedding of tokens, one parameter for both.
    seed
        Seed of the initial weights.
    dtype
        Type of the weights.

    Raises
    ------
    ValueError
        If an argument is not as above.
    """
    sizes = {"vocabulary": vocabulary, "positions": positions, "width": width, "heads": heads}
    for name, value in sizes.items():
        check_whole(name, value, 1, LARGEST_SIZE)
    check_whole("blocks", blocks, 1, MOST_BLOCKS)
    if width % heads:
        raise ValueError(f"heads must divide the width, got {heads} for {width}")
    check_flag("tied", tied)
    generator = seeded(seed, dtype)
    network = GPT(int(vocabulary), int(positions), int(width), int(heads), int(blocks), bool(tied), generator)
    return network.to(dtype)


def _linear(
    fan_in: int, fan_out: int, generator: torch.Generator, deviation: float = DEVIATION, bias: bool = True
) -> torch.nn.Linear:
    layer = without_weights(torch.nn.Linear, fan_in, fan_out, bias=bias)
    torch.nn.init.normal_(layer.weight, 0.0, deviation, generator=generator)
    if bias:
        torch.nn.init.zeros_(layer.bias)
    return layer


def _embedding(count: int, width: int, generator: torch.Generator) -> torch.nn.Embedding:
    layer = without_weights(torch.nn.Embedding, count, width)
    torch.nn.init.normal_(layer.weight, 0.0, DEVIATION, generator=generator)
    return layer
