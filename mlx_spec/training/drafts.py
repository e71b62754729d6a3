"""The drafts that can be made: their first weights, and the files that they become."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from mlx_spec.model.context import context_length
from mlx_spec.model.heads.head import DraftHead, HeadConfig
from mlx_spec.model.heads.mark import mark_of
from mlx_spec.model.heads.parts import TargetParts
from mlx_spec.training.head_learner import HeadLearner
from mlx_spec.training.model_learner import ModelLearner, squeezed
from mlx_spec.training.recipe import Recipe
from mlx_spec.training.vocabulary import Vocabulary

_HEAD_SIZE = 64
# Of a small model: one head for so many dimensions, and how wide its MLPs are.
_SMALL_HEAD, _SMALL_MLP = 32, 2.75
# The size that embeddings begin with beside hidden states, and what models call their last norm.
_EMBEDDED, _LAST_NORMS = 0.4, ("model.norm", "norm", "language_model.model.norm")


@dataclass(frozen=True)
class Trainee:
    """One that is to be trained.

    Attributes:
        learner: how it learns.
        config: its config.json.
        tokenizer: whether its folder needs the target's tokenizer.
    """

    learner: Any
    config: dict[str, Any]
    tokenizer: bool

    @property
    def weights(self) -> dict[str, mx.array]:
        """What model.safetensors holds: numbers in 16 bits."""
        return {
            name: array.astype(mx.float16) if array.dtype == mx.float32 else array
            for name, array in tree_flatten(self.learner.module.parameters())
        }

    @property
    def parameters(self) -> int:
        """Numbers that are trained."""
        flat = tree_flatten(self.learner.module.trainable_parameters())
        return sum(array.size for _, array in flat)


def make_draft(target: Any, recipe: Recipe, vocabulary: Vocabulary) -> Trainee:
    """An untrained draft of the kind that the recipe says.

    Raises:
        UnsupportedModel: a head is wanted, and the target's parts cannot be found.
    """
    mx.random.seed(recipe.seed)
    make = _make_head if recipe.kind == "head" else _make_model
    return make(target, recipe, vocabulary)


def _make_head(target: Any, recipe: Recipe, vocabulary: Vocabulary) -> Trainee:
    """A head in the shape of the target's own last layer where that is a Llama's, which it then
    begins as; else of a usual shape."""
    parts = TargetParts(target)
    tokens, width = vocabulary.ids, parts.width
    args = getattr(target, "args", None)
    heads = int(getattr(args, "num_attention_heads", 0) or max(1, width // _HEAD_SIZE))
    config = HeadConfig(
        hidden_size=width,
        intermediate_size=_mlp_width(args, width),
        num_attention_heads=heads,
        num_key_value_heads=int(getattr(args, "num_key_value_heads", 0) or heads),
        head_dim=int(getattr(args, "head_dim", 0) or width // heads),
        vocab_size=vocabulary.size,
        draft_vocab_size=len(vocabulary),
        rms_norm_eps=float(getattr(args, "rms_norm_eps", 0) or 1e-5),
        rope_theta=float(getattr(args, "rope_theta", 0) or 10000.0),
        target=mark_of(parts),
    )
    head = DraftHead(config)
    head.tokens = tokens
    _begin_as(head, target, parts.embed(tokens))
    mx.eval(head.parameters())
    learner = HeadLearner(head, parts, recipe.depths)
    return Trainee(learner, config.as_dict(), tokenizer=False)


def _mlp_width(args: Any, width: int) -> int:
    given = getattr(args, "intermediate_size", None)
    return given if isinstance(given, int) else int(_SMALL_MLP * width)


def _begin_as(head: DraftHead, target: Any, embedded: mx.array) -> None:
    """Where they fit, the weights of the target's last layer and last norm; embedding and hidden
    state pass through ``fc``, in sizes that go together."""
    layers = list(getattr(target, "layers", ()))
    last = dict(tree_flatten(layers[-1].parameters())) if layers else {}
    _load_if_alike(head.layer, last)
    for name, module in target.named_modules():
        if name in _LAST_NORMS:
            _load_if_alike(head.norm, dict(tree_flatten(module.parameters())))
    same = mx.eye(head.config.hidden_size)
    size = mx.sqrt(mx.mean(embedded.astype(mx.float32) ** 2))
    head.fc.weight = mx.concatenate([same * (_EMBEDDED / size), same], axis=1)


def _load_if_alike(module: nn.Module, weights: dict[str, mx.array]) -> None:
    known = dict(tree_flatten(module.parameters()))
    if {n: a.shape for n, a in weights.items()} == {n: a.shape for n, a in known.items()}:
        module.load_weights([(name, array.astype(mx.float32)) for name, array in weights.items()])


def _make_model(target: Any, recipe: Recipe, vocabulary: Vocabulary) -> Trainee:
    """A small Llama whose embedding begins as the target's, squeezed."""
    from mlx_lm.models.llama import Model, ModelArgs

    heads = max(1, recipe.width // _SMALL_HEAD)
    args = getattr(target, "args", None)
    config: dict[str, Any] = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": recipe.width,
        "num_hidden_layers": recipe.layers,
        "intermediate_size": int(_SMALL_MLP * recipe.width),
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "head_dim": recipe.width // heads,
        "rms_norm_eps": 1e-5,
        "rope_theta": float(getattr(args, "rope_theta", 0) or 10000.0),
        "vocab_size": vocabulary.size,
        "max_position_embeddings": context_length(target) or 4096,
        "tie_word_embeddings": True,
    }
    model = Model(ModelArgs.from_dict(config))
    whole = TargetParts(target).embed(mx.arange(vocabulary.size))
    model.model.embed_tokens.weight = squeezed(whole, recipe.width)
    mx.eval(model.parameters())
    return Trainee(ModelLearner(model, vocabulary), config, tokenizer=True)
