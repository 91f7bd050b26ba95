"""Models that nobody here wrote, built from a configuration with random weights: no download, no checkpoint.

`PUBLIC` maps a name to a function that makes the case, as `ZOO` does, with about a thousand parameters each. The
packages are needed by these tests alone: a case whose package is missing skips its test.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from tests.networks.zoo import CLASSES, EXAMPLES, Case, build, class_parts, normal, token_loss, token_parts, whole

VOCABULARY, LENGTH = 11, 5


def _module_of(package: str, name: str) -> ModuleType:
    """A module by its file: importing vit_pytorch needs torchvision, which a torch of another build cannot import."""
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        pytest.skip(f"{package} is not installed")
    spec = importlib.util.spec_from_file_location(f"{package}_{name}", Path(found.origin).parent / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _classifier(make: Callable[[], nn.Module], inputs: Any, logits: Callable[[Any], torch.Tensor]) -> Case:
    return Case(
        build(make),
        lambda outputs, targets: functional.cross_entropy(logits(outputs), targets),
        inputs,
        torch.arange(EXAMPLES) % CLASSES,
        lambda outputs, targets: class_parts(logits(outputs), targets),
    )


def _language(
    make: Callable[[], nn.Module], as_inputs: Callable[[torch.Tensor], Any], logits: Callable[..., Any]
) -> Case:
    return Case(
        build(make),
        lambda outputs, targets: token_loss(logits(outputs), targets),
        as_inputs(whole(VOCABULARY, EXAMPLES, LENGTH)),
        whole(VOCABULARY, EXAMPLES, LENGTH, seed=3),
        lambda outputs, targets: token_parts(logits(outputs), targets),
    )


def _vit_pytorch(name: str, kind: str) -> Case:
    sizes = {"image_size": 8, "patch_size": 4, "num_classes": CLASSES, "dim": 8, "depth": 1, "heads": 2, "mlp_dim": 6}
    model = getattr(_module_of("vit_pytorch", name), kind)
    return _classifier(
        lambda: model(**sizes, dim_head=3, channels=1), normal(EXAMPLES, 1, 8, 8), lambda outputs: outputs
    )


def _x_transformers(**options: object) -> Case:
    """Its softmax is taken in float32 whatever the weights are: seven digits are right, no more.

    A tied head is no module: the outputs are multiplied with the embedding's weight.
    """
    x_transformers = pytest.importorskip("x_transformers")

    def make() -> nn.Module:
        layers = x_transformers.Decoder(dim=6, depth=1, heads=2, attn_dim_head=3)
        return x_transformers.TransformerWrapper(
            num_tokens=VOCABULARY, max_seq_len=LENGTH, attn_layers=layers, **options
        )

    return _language(make, lambda tokens: tokens, lambda outputs: outputs)


def _gpt2(attention: str) -> Case:
    """The head is tied to the embedding, the linear layers are the package's own `Conv1D`, the output is an object."""
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY, n_positions=LENGTH, n_embd=6, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0,
        use_cache=False, attn_implementation=attention,
    )  # fmt: skip
    return _language(
        lambda: transformers.GPT2LMHeadModel(config),
        lambda tokens: {"input_ids": tokens},
        lambda outputs: outputs.logits,
    )


def _bert() -> Case:
    """Word 0 pads: autograd calls the gradient of its embedding zero, so it occurs in another case alone."""
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=VOCABULARY, hidden_size=6, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
        max_position_embeddings=LENGTH, num_labels=CLASSES, attn_implementation="eager",
    )  # fmt: skip
    tokens = 1 + whole(VOCABULARY - 1, EXAMPLES, LENGTH)
    mask = torch.ones_like(tokens)
    mask[1, 3:] = 0
    return _classifier(
        lambda: transformers.BertForSequenceClassification(config),
        {"input_ids": tokens, "attention_mask": mask},
        lambda outputs: outputs.logits,
    )


def _llama() -> Case:
    """Grouped queries, rotary positions and normalisation by the root mean square, the last two partly in float32."""
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
        intermediate_size=8, max_position_embeddings=LENGTH, use_cache=False, attn_implementation="eager",
    )  # fmt: skip
    return _language(
        lambda: transformers.LlamaForCausalLM(config),
        lambda tokens: {"input_ids": tokens},
        lambda outputs: outputs.logits,
    )


def _image_transformer() -> Case:
    """A class token and positions of no module that is a tap."""
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=6, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, image_size=8, patch_size=4,
        num_channels=1, num_labels=CLASSES, attn_implementation="eager",
    )  # fmt: skip
    return _classifier(
        lambda: transformers.ViTForImageClassification(config),
        {"pixel_values": normal(EXAMPLES, 1, 8, 8)},
        lambda outputs: outputs.logits,
    )


# Parameters that are used outside of their module too: what its calls give is not all of the gradient.
USED_OUTSIDE = {"x_transformers_tied": ["token_emb.emb.weight"]}

PUBLIC: dict[str, Callable[[], Case]] = {
    "vit_pytorch_vit": lambda: _vit_pytorch("vit", "ViT"),
    "vit_pytorch_simple_vit": lambda: _vit_pytorch("simple_vit", "SimpleViT"),
    "x_transformers_decoder": _x_transformers,
    "x_transformers_tied": lambda: _x_transformers(tie_embedding=True),
    "transformers_gpt2": lambda: _gpt2("eager"),
    "transformers_gpt2_fused_attention": lambda: _gpt2("sdpa"),
    "transformers_bert": _bert,
    "transformers_llama": _llama,
    "transformers_vit": _image_transformer,
}
