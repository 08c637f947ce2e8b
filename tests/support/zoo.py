"""Models to try everything on, as factories: ``tests.support.zoo:NAME`` returns (module, example).

Small, random weights from a fixed seed. Three families: ``NETWORKS`` and ``HUGGING_FACE`` are
architectures as people run them, ``AWKWARD`` are those that break tools.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from profiler.sources import Example

Made = tuple[nn.Module, Any]
Factory = Callable[..., Made]

NETWORKS: dict[str, Factory] = {}
HUGGING_FACE: dict[str, Factory] = {}
AWKWARD: dict[str, Factory] = {}
UNCAPTURABLE: dict[str, Factory] = {}
"""Models that no attempt can capture; the error must say why."""


def _seeded(family: dict[str, Factory]) -> Callable[[Factory], Factory]:
    """Put a factory into a family; it draws from a seed and leaves the global generator alone."""

    def register(factory: Factory) -> Factory:
        @functools.wraps(factory)
        def made(*args: Any, **options: Any) -> Made:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                module, example = factory(*args, **options)
            return module.eval(), example

        family[factory.__name__] = made
        return made

    return register


# --- networks ----------------------------------------------------------------------------------


@_seeded(NETWORKS)
def mlp(width: int = 16, depth: int = 4) -> Made:
    layers: list[nn.Module] = [nn.Linear(8, width), nn.ReLU()]
    for _ in range(depth - 2):
        layers += [nn.Linear(width, width), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.Linear(width, 4)), torch.randn(2, 8)


class Bottleneck(nn.Module):
    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        out = 4 * width
        self.conv1 = nn.Conv2d(channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out)
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = None
        if stride != 1 or channels != out:
            self.downsample = nn.Sequential(
                nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        skip = x if self.downsample is None else self.downsample(x)
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        y += skip
        return self.relu(y)


class ResNet50(nn.Module):
    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        channels = width
        for i, depth in enumerate((3, 4, 6, 3)):
            blocks = []
            for j in range(depth):
                stride = 2 if i and not j else 1
                blocks.append(Bottleneck(channels, width * 2**i, stride))
                channels = 4 * width * 2**i
            self.add_module(f"layer{i + 1}", nn.Sequential(*blocks))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for i in range(1, 5):
            x = getattr(self, f"layer{i}")(x)
        return self.fc(torch.flatten(self.avgpool(x), 1))


@_seeded(NETWORKS)
def resnet50(width: int = 8, size: int = 32, classes: int = 10) -> Made:
    """All 53 convolutions; ``width=64, size=224, classes=1000`` is the published network."""
    module = ResNet50(width, classes)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            # Statistics as after training: with zero mean and unit variance BN would do nothing.
            nn.init.uniform_(layer.running_mean, -0.5, 0.5)
            nn.init.uniform_(layer.running_var, 0.5, 2.0)
    return module, torch.randn(2, 3, size, size)


@_seeded(NETWORKS)
def transformer() -> Made:
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
    return nn.TransformerEncoder(layer, 3, enable_nested_tensor=False), torch.randn(2, 6, 32)


@_seeded(NETWORKS)
def transformer_sequence_first() -> Made:
    layer = nn.TransformerEncoderLayer(32, 4, 64)
    module = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
    return module, Example(args=(torch.randn(6, 2, 32),), batch_dims={"src": 1})


# --- Hugging Face ------------------------------------------------------------------------------

LENGTH = 12


def _ids(vocabulary: int = 99, *, items: int = 2, length: int = LENGTH) -> torch.Tensor:
    return torch.randint(3, vocabulary, (items, length))


def _text(**extra: Any) -> dict[str, Any]:
    return {
        "input_ids": _ids(),
        "attention_mask": torch.ones(2, LENGTH, dtype=torch.long),
        "use_cache": False,
        **extra,
    }


@_seeded(HUGGING_FACE)
def bert() -> Made:
    from transformers import BertConfig, BertForMaskedLM

    config = BertConfig(
        vocab_size=99,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=32,
    )
    mask = torch.ones(2, LENGTH, dtype=torch.long)
    mask[1, 8:] = 0
    return BertForMaskedLM(config), {"input_ids": _ids(), "attention_mask": mask}


@_seeded(HUGGING_FACE)
def gpt2() -> Made:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=99, n_positions=32, n_embd=32, n_layer=3, n_head=4)
    return GPT2LMHeadModel(config), _text()


def _decoder(**extra: Any) -> dict[str, Any]:
    return {
        "vocab_size": 99,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        **extra,
    }


@_seeded(HUGGING_FACE)
def llama() -> Made:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(**_decoder())), _text()


@_seeded(HUGGING_FACE)
def qwen3() -> Made:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(**_decoder(head_dim=8, tie_word_embeddings=True))
    return Qwen3ForCausalLM(config), _text()


@_seeded(HUGGING_FACE)
def mixtral() -> Made:
    from transformers import MixtralConfig, MixtralForCausalLM

    config = MixtralConfig(**_decoder(num_local_experts=4, num_experts_per_tok=2))
    return MixtralForCausalLM(config), _text()


@_seeded(HUGGING_FACE)
def t5() -> Made:
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        vocab_size=99,
        d_model=32,
        d_kv=8,
        d_ff=48,
        num_layers=2,
        num_decoder_layers=2,
        num_heads=4,
        decoder_start_token_id=0,
    )
    return T5ForConditionalGeneration(config), {
        "input_ids": _ids(),
        "attention_mask": torch.ones(2, LENGTH, dtype=torch.long),
        "decoder_input_ids": _ids(length=7),
        "use_cache": False,
    }


@_seeded(HUGGING_FACE)
def vit() -> Made:
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=48,
        image_size=16,
        patch_size=4,
        num_labels=5,
    )
    return ViTForImageClassification(config), {"pixel_values": torch.randn(2, 3, 16, 16)}


@_seeded(HUGGING_FACE)
def clip() -> Made:
    from transformers import CLIPConfig, CLIPModel

    small = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "projection_dim": 16,
    }
    config = CLIPConfig(
        text_config={
            **small,
            "vocab_size": 99,
            "max_position_embeddings": 16,
            "bos_token_id": 1,
            "eos_token_id": 98,
            "pad_token_id": 0,
        },
        vision_config={**small, "image_size": 16, "patch_size": 4},
        projection_dim=16,
    )
    return CLIPModel(config), {
        "input_ids": _ids(),
        "attention_mask": torch.ones(2, LENGTH, dtype=torch.long),
        "pixel_values": torch.randn(2, 3, 16, 16),
    }


@_seeded(HUGGING_FACE)
def whisper() -> Made:
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    config = WhisperConfig(
        vocab_size=99,
        num_mel_bins=8,
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        max_source_positions=10,
        max_target_positions=16,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )
    return WhisperForConditionalGeneration(config), {
        "input_features": torch.randn(2, 8, 20),
        "decoder_input_ids": _ids(length=6),
        "use_cache": False,
    }


# --- awkward: what goes in and comes out ---------------------------------------------------------


class Blocks(nn.Module):
    """Three linear layers with an activation each; the trunk of many models below."""

    def __init__(self, width: int = 8, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.a = nn.Linear(width, width, dtype=dtype)
        self.b = nn.Linear(width, width, dtype=dtype)
        self.c = nn.Linear(width, width, dtype=dtype)

    def parts(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        a = torch.tanh(self.a(x))
        b = torch.tanh(self.b(a))
        return a, b, torch.tanh(self.c(b))

    def forward(self, x: torch.Tensor) -> Any:
        return self.parts(x)[2]


def _eight(items: int = 2) -> torch.Tensor:
    return torch.randn(items, 8)


@_seeded(AWKWARD)
def tuple_output() -> Made:
    class TupleOutput(Blocks):
        def forward(self, x: torch.Tensor) -> Any:
            return self.parts(x)

    return TupleOutput(), _eight()


@_seeded(AWKWARD)
def nested_output() -> Made:
    class NestedOutput(Blocks):
        def forward(self, x: torch.Tensor) -> Any:
            a, b, c = self.parts(x)
            return {"last": c, "inner": [a, (b, {"sum": a + c})]}

    return NestedOutput(), _eight()


@dataclass
class Answer:
    """What ``dataclass_output`` returns."""

    score: torch.Tensor
    hidden: torch.Tensor


torch.export.register_dataclass(Answer, serialized_type_name="tests.support.zoo.Answer")


@_seeded(AWKWARD)
def dataclass_output() -> Made:
    class DataclassOutput(Blocks):
        def forward(self, x: torch.Tensor) -> Any:
            a, _, c = self.parts(x)
            return Answer(score=c, hidden=a)

    return DataclassOutput(), _eight()


@_seeded(AWKWARD)
def constants_in_output() -> Made:
    class ConstantsInOutput(Blocks):
        def forward(self, x: torch.Tensor) -> Any:
            out = {"none": None, "three": 3, "text": "kept", "half": 0.5, "true": True}
            return {**out, "value": super().forward(x), "items": x.shape[0]}

    return ConstantsInOutput(), _eight()


@_seeded(AWKWARD)
def input_returned() -> Made:
    class InputReturned(Blocks):
        def forward(self, x: torch.Tensor) -> Any:
            return x, super().forward(x)

    return InputReturned(), _eight()


@_seeded(AWKWARD)
def same_output_twice() -> Made:
    class SameOutputTwice(Blocks):
        def forward(self, x: torch.Tensor) -> Any:
            a, _, c = self.parts(x)
            return a, c, a

    return SameOutputTwice(), _eight()


@_seeded(AWKWARD)
def views_returned() -> Made:
    class ViewsReturned(Blocks):
        """Three outputs of different shapes in one piece of memory."""

        def forward(self, x: torch.Tensor) -> Any:
            y = super().forward(x)
            return y, y.unsqueeze(1), y.view(-1, 2, y.shape[-1] // 2)

    return ViewsReturned(), _eight()


@_seeded(AWKWARD)
def parameter_returned() -> Made:
    class ParameterReturned(Blocks):
        def forward(self, x: torch.Tensor) -> Any:
            return super().forward(x), self.a.bias

    return ParameterReturned(), _eight()


@_seeded(AWKWARD)
def shared_output() -> Made:
    class SharedOutput(Blocks):
        """One output belongs to no item: the weights' norm."""

        def forward(self, x: torch.Tensor) -> Any:
            return super().forward(x), self.b.weight.norm(dim=1)

    return SharedOutput(), _eight()


@_seeded(AWKWARD)
def keyword_only() -> Made:
    class KeywordOnly(Blocks):
        def forward(self, *, x: torch.Tensor, gain: torch.Tensor | None = None) -> Any:
            y = super().forward(x)
            return y if gain is None else y * gain

    return KeywordOnly(), {"x": _eight(), "gain": _eight()}


@_seeded(AWKWARD)
def keywords_in_other_order() -> Made:
    class KeywordsInOtherOrder(Blocks):
        def forward(self, x: torch.Tensor, gain: torch.Tensor) -> Any:
            return super().forward(x) - gain

    return KeywordsInOtherOrder(), {"gain": 3 * _eight(), "x": _eight()}


@_seeded(AWKWARD)
def dict_input() -> Made:
    class DictInput(Blocks):
        def forward(self, batch: dict[str, torch.Tensor], gains: list[torch.Tensor]) -> Any:
            return super().forward(batch["x"]) * gains[0] + batch["y"] * gains[1]

    batch = {"x": _eight(), "y": _eight()}
    return DictInput(), (batch, [_eight(), _eight()])


@_seeded(AWKWARD)
def variable_keywords() -> Made:
    class VariableKeywords(Blocks):
        def forward(self, x: torch.Tensor, **more: torch.Tensor) -> Any:
            return super().forward(x) + more["extra"]

    return VariableKeywords(), {"x": _eight(), "extra": _eight()}


@_seeded(AWKWARD)
def variable_arguments() -> Made:
    class VariableArguments(Blocks):
        def forward(self, x: torch.Tensor, *more: torch.Tensor) -> Any:
            return super().forward(x) + more[0] * more[1]

    return VariableArguments(), (_eight(), _eight(), _eight())


@_seeded(AWKWARD)
def shared_input() -> Made:
    class SharedInput(Blocks):
        """``scale`` and ``table`` belong to all items."""

        def forward(self, x: torch.Tensor, scale: torch.Tensor, table: torch.Tensor) -> Any:
            return super().forward(x * scale) @ table

    return SharedInput(), (_eight(3), torch.randn(8), torch.randn(8, 5))


@_seeded(AWKWARD)
def integer_inputs() -> Made:
    class IntegerInputs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(50, 8)
            self.body = Blocks()

        def forward(self, ids: torch.Tensor, keep: torch.Tensor) -> Any:
            y = self.body(self.table(ids)) * keep.unsqueeze(-1)
            return y.sum(1), (y > 0).sum((1, 2)), y.argmax(-1).to(torch.int32)

    return IntegerInputs(), (torch.randint(0, 50, (2, 6)), torch.rand(2, 6) > 0.3)


@_seeded(AWKWARD)
def dynamic_length() -> Made:
    class DynamicLength(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(50, 16)
            self.layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
            self.head = nn.Linear(16, 3)

        def forward(self, ids: torch.Tensor) -> Any:
            return self.head(self.layer(self.table(ids)))

    example = Example(args=(torch.randint(0, 50, (2, 6)),), dynamic_dims={"ids": {1: "length"}})
    return DynamicLength(), example


@_seeded(AWKWARD)
def one_item_example() -> Made:
    return Blocks(), _eight(1)


# --- awkward: weights ----------------------------------------------------------------------------


@_seeded(AWKWARD)
def tied_weights() -> Made:
    class TiedWeights(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(40, 8)
            self.body = Blocks()
            self.head = nn.Linear(8, 40, bias=False)
            self.head.weight = self.table.weight

        def forward(self, ids: torch.Tensor) -> Any:
            return self.head(self.body(self.table(ids)))

    return TiedWeights(), torch.randint(0, 40, (2, 5))


@_seeded(AWKWARD)
def called_twice() -> Made:
    class CalledTwice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shared = nn.Linear(8, 8)
            self.between = nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> Any:
            return self.shared(torch.tanh(self.between(torch.tanh(self.shared(x)))))

    return CalledTwice(), _eight()


@_seeded(AWKWARD)
def loose_parameter() -> Made:
    class LooseParameter(Blocks):
        def __init__(self) -> None:
            super().__init__()
            self.token = nn.Parameter(torch.randn(1, 8))
            self.mixing = nn.Parameter(torch.randn(8, 8))

        def forward(self, x: torch.Tensor) -> Any:
            return super().forward((x + self.token) @ self.mixing)

    return LooseParameter(), _eight()


@_seeded(AWKWARD)
def no_parameters() -> Made:
    class NoParameters(nn.Module):
        def forward(self, x: torch.Tensor) -> Any:
            return F.softmax(x, dim=-1).cumsum(-1)

    return NoParameters(), _eight()


@_seeded(AWKWARD)
def float64() -> Made:
    return Blocks(dtype=torch.float64), torch.randn(2, 8, dtype=torch.float64)


@_seeded(AWKWARD)
def bfloat16() -> Made:
    return Blocks(dtype=torch.bfloat16), torch.randn(2, 8, dtype=torch.bfloat16)


@_seeded(AWKWARD)
def complex64() -> Made:
    class Spectrum(Blocks):
        def forward(self, x: torch.Tensor) -> Any:
            return torch.fft.fft(super().forward(x), dim=-1) * (1 + 0.5j)

    return Spectrum(), _eight()


# --- awkward: memory -----------------------------------------------------------------------------


@_seeded(AWKWARD)
def in_place_residual() -> Made:
    class InPlaceResidual(Blocks):
        def forward(self, x: torch.Tensor) -> Any:
            skip = self.a(x)
            y = F.relu(self.b(skip), inplace=True)
            y += skip
            y.mul_(0.5)
            return self.c(y).clamp_(min=-1.0)

    return InPlaceResidual(), _eight()


@_seeded(AWKWARD)
def view_before_change() -> Made:
    class ViewBeforeChange(Blocks):
        """``flat`` is made in one layer and seen to change by work in another."""

        def forward(self, x: torch.Tensor) -> Any:
            y = self.a(x)
            flat = y.view(-1, 2, 4)
            z = self.b(y)
            y.add_(torch.tanh(z))
            return self.c(flat.reshape(-1, 8))

    return ViewBeforeChange(), _eight()


@_seeded(AWKWARD)
def returned_then_changed() -> Made:
    class ReturnedThenChanged(Blocks):
        """The first output is changed by a later layer, after it was computed."""

        def forward(self, x: torch.Tensor) -> Any:
            first = self.a(x)
            second = self.b(first)
            first.sub_(second)
            return first.detach(), second, self.c(second)

    return ReturnedThenChanged(), _eight()


@_seeded(AWKWARD)
def alias_returned_then_changed() -> Made:
    class AliasReturnedThenChanged(Blocks):
        def forward(self, x: torch.Tensor) -> Any:
            first = self.a(x)
            kept = first[:, :4]
            second = self.b(first)
            first.mul_(2.0)
            return kept, self.c(second)

    return AliasReturnedThenChanged(), _eight()


@_seeded(AWKWARD)
def input_changed() -> Made:
    class InputChanged(Blocks):
        def forward(self, x: torch.Tensor) -> Any:
            y = self.a(x)
            x.mul_(2.0)
            return self.c(self.b(y) + x)

    return InputChanged(), _eight()


@_seeded(AWKWARD)
def written_slices() -> Made:
    class WrittenSlices(Blocks):
        def forward(self, x: torch.Tensor) -> Any:
            out = torch.zeros(x.shape[0], 24)
            for i, part in enumerate(self.parts(x)):
                out[:, 8 * i : 8 * i + 8] = part
            return out

    return WrittenSlices(), _eight()


# --- awkward: state ------------------------------------------------------------------------------


@_seeded(AWKWARD)
def counter() -> Made:
    class Counter(Blocks):
        """Counts its calls and adds the count."""

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: torch.Tensor) -> Any:
            y = self.a(x)
            self.calls.add_(1.0)
            return self.c(self.b(y) + self.calls)

    return Counter(), _eight()


@_seeded(AWKWARD)
def cache() -> Made:
    class Cache(Blocks):
        """Writes items to a buffer and answers with a view of it."""

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("held", torch.zeros(64, 8), persistent=False)

        def forward(self, x: torch.Tensor) -> Any:
            y = self.b(self.a(x))
            self.held[: x.shape[0]].copy_(y)
            return self.held[: x.shape[0]], self.c(y)

    return Cache(), _eight()


# --- awkward: items ------------------------------------------------------------------------------


@_seeded(AWKWARD)
def batch_statistics() -> Made:
    class BatchStatistics(Blocks):
        def forward(self, x: torch.Tensor) -> Any:
            y = self.a(x)
            y = (y - y.mean(0)) / (y.std(0, correction=0) + 1e-3)
            return self.c(self.b(y))

    return BatchStatistics(), _eight()


@_seeded(AWKWARD)
def batch_share() -> Made:
    class BatchShare(Blocks):
        def forward(self, x: torch.Tensor) -> Any:
            y = self.a(x) / x.shape[0]
            return self.c(self.b(y))

    return BatchShare(), _eight()


@_seeded(AWKWARD)
def batch_similarity() -> Made:
    class BatchSimilarity(Blocks):
        """Compares all items with all, and returns a mean over them."""

        def forward(self, x: torch.Tensor) -> Any:
            a, _, c = self.parts(x)
            return a @ c.t(), c.mean(0)

    return BatchSimilarity(), _eight()


@_seeded(AWKWARD)
def items_merged() -> Made:
    class ItemsMerged(Blocks):
        """Tokens of all items in one row of rows, as mixtures of experts have them."""

        def forward(self, x: torch.Tensor) -> Any:
            rows = x.reshape(-1, 8)
            return self.c(self.b(self.a(rows))).view(x.shape)

    return ItemsMerged(), torch.randn(2, 3, 8)


@_seeded(AWKWARD)
def data_dependent() -> Made:
    class Chosen(nn.Module):
        """How many rows it works on is known only from the data."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            rows = torch.nonzero(x[:, 0] > 0).squeeze(1)
            return x.index_add(0, rows, self.inner(x.index_select(0, rows)))

    class DataDependent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.before = nn.Linear(8, 8)
            self.chosen = Chosen()
            self.after = nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> Any:
            return self.after(self.chosen(self.before(x)))

    return DataDependent(), _eight()


@_seeded(AWKWARD)
def fixed_batch() -> Made:
    class FixedBatch(Blocks):
        def forward(self, x: torch.Tensor) -> Any:
            y = self.a(x.view(3, -1))
            return self.c(self.b(y))

    return FixedBatch(), _eight(3)


@_seeded(AWKWARD)
def batch_of_one_only() -> Made:
    class BatchOfOneOnly(Blocks):
        def forward(self, x: torch.Tensor) -> Any:
            return self.c(self.b(self.a(x.view(1, 8))))

    return BatchOfOneOnly(), _eight(1)


@_seeded(AWKWARD)
def no_batch() -> Made:
    example = Example(args=(torch.randn(8),), batch_dims={"x": None})
    return Blocks(), example


@_seeded(AWKWARD)
def split_lists() -> Made:
    class SplitLists(nn.Module):
        """Lists made by one layer and used by others."""

        def __init__(self) -> None:
            super().__init__()
            self.wide = nn.Linear(8, 24)
            self.left, self.middle, self.right = (nn.Linear(8, 8) for _ in range(3))

        def forward(self, x: torch.Tensor) -> Any:
            a, b, c = self.wide(x).split(8, dim=-1)
            low, high = self.middle(b).chunk(2, dim=-1)
            values, places = self.right(c).topk(4, dim=-1)
            return self.left(a), low * high + values, places

    return SplitLists(), _eight()


@_seeded(AWKWARD)
def branches() -> Made:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Linear(8, 8)
            self.left, self.right = Blocks(), Blocks()
            self.head = nn.Linear(16, 4)

        def forward(self, x: torch.Tensor) -> Any:
            x = self.stem(x)
            return self.head(
                torch.cat(
                    [
                        self.left(x),
                        self.right(x),
                    ],
                    dim=-1,
                )
            )

    return Branches(), _eight()


@_seeded(AWKWARD)
def scanned() -> Made:
    class Scanned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.into = nn.Linear(8, 8)
            self.cell = nn.GRU(8, 8, batch_first=True)
            self.out = nn.Linear(8, 3)

        def forward(self, x: torch.Tensor) -> Any:
            seen, last = self.cell(self.into(x))
            return self.out(seen), last

    return Scanned(), torch.randn(2, 5, 8)


@_seeded(AWKWARD)
def conditional() -> Made:
    class Conditional(Blocks):
        """Control flow that torch.export keeps as an operator with nested programs."""

        def forward(self, x: torch.Tensor) -> Any:
            y = self.a(x)
            y = torch.cond(y.sum() > 0, lambda v: torch.tanh(self.b(v)), lambda v: v * 0.5, (y,))
            return self.c(y)

    return Conditional(), _eight()


@_seeded(UNCAPTURABLE)
def control_flow() -> Made:
    class ControlFlow(Blocks):
        def forward(self, x: torch.Tensor) -> Any:
            y = self.a(x)
            if float(y.sum()) > 0:
                return self.b(y)
            return self.c(y)

    return ControlFlow(), _eight()


@_seeded(UNCAPTURABLE)
def number_returned() -> Made:
    class NumberReturned(Blocks):
        def forward(self, x: torch.Tensor) -> Any:
            y = super().forward(x)
            return y, y.sum().item()

    return NumberReturned(), _eight()


CAPTURABLE: Mapping[str, Factory] = {**NETWORKS, **HUGGING_FACE, **AWKWARD}
