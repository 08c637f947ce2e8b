"""Models of real shapes whose steps finish on a slow core: for benchmarks of whole plans.

Random weights, fixed seeds. Each factory gives the module and example inputs, as apportion takes
them: ``benchmarks.models:resnet50``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tests.support.zoo import ResNet50

Made = tuple[nn.Module, Any]

TOKENS = 64


def resnet50() -> Made:
    """ResNet-50 at full width; images of 96 x 96, 1.5 GFLOP each."""
    torch.manual_seed(0)
    return ResNet50(width=64, classes=1000).eval(), torch.randn(2, 3, 96, 96)


def bert() -> Made:
    """BERT-base at half its width: 12 layers of 384, 64 tokens."""
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=8192, hidden_size=384, num_hidden_layers=12, num_attention_heads=6,
        intermediate_size=1536, max_position_embeddings=128,
    )  # fmt: skip
    ids = torch.randint(0, 8192, (2, TOKENS))
    return BertModel(config).eval(), {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def vit() -> Made:
    """ViT-base at half its width, 12 layers of 384; images of 112 x 112 in 50 patches."""
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=384, num_hidden_layers=12, num_attention_heads=6, intermediate_size=1536,
        image_size=112, patch_size=16, num_labels=100,
    )  # fmt: skip
    return ViTForImageClassification(config).eval(), {"pixel_values": torch.randn(2, 3, 112, 112)}


def llama() -> Made:
    """A small Llama: 8 layers of 384 with grouped queries, 64 tokens, and its head."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=4096, hidden_size=384, num_hidden_layers=8, num_attention_heads=6,
        num_key_value_heads=2, intermediate_size=1024, max_position_embeddings=128,
    )  # fmt: skip
    ids = torch.randint(0, 4096, (2, TOKENS))
    return LlamaForCausalLM(config).eval(), {"input_ids": ids, "use_cache": False}


def bert_base() -> Made:
    """BERT-base's layers, four of them, on 256 tokens."""
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    ids = torch.randint(0, 30000, (2, 4 * TOKENS))
    module = BertModel(BertConfig(num_hidden_layers=4)).eval()
    return module, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def llama_wide() -> Made:
    """Four layers of a Llama of width 1024 with grouped queries, 256 tokens, and its head."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=8192, hidden_size=1024, num_hidden_layers=4, num_attention_heads=16,
        num_key_value_heads=8, intermediate_size=2816, max_position_embeddings=256,
    )  # fmt: skip
    ids = torch.randint(0, 8192, (2, 4 * TOKENS))
    return LlamaForCausalLM(config).eval(), {"input_ids": ids, "use_cache": False}


def clip() -> Made:
    """CLIP with towers of eight layers: images of 112 x 112 in 50 patches, 64 tokens."""
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(0)
    tower = {"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 8,
             "num_attention_heads": 6, "projection_dim": 256}  # fmt: skip
    config = CLIPConfig(
        text_config={**tower, "vocab_size": 8192, "max_position_embeddings": TOKENS,
                     "bos_token_id": 1, "eos_token_id": 8191, "pad_token_id": 0},
        vision_config={**tower, "image_size": 112, "patch_size": 16},
        projection_dim=256,
    )  # fmt: skip
    ids = torch.randint(2, 8190, (2, TOKENS))
    return CLIPModel(config).eval(), {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": torch.randn(2, 3, 112, 112),
    }


MODELS = {"resnet50": resnet50, "bert": bert, "vit": vit, "llama": llama}
