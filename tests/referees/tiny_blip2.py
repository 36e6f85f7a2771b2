"""A BLIP-2 of transformers, of a tiny size."""

from __future__ import annotations

import torch
from transformers import Blip2Config, Blip2ForImageTextRetrieval, Blip2QFormerConfig, Blip2VisionConfig


@torch.no_grad()
def tiny_blip2(words: int) -> Blip2ForImageTextRetrieval:
    """With a vocabulary of so many words, and weights that are not all alike."""
    torch.manual_seed(0)
    vision = Blip2VisionConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=8
    )
    qformer = Blip2QFormerConfig(
        vocab_size=words,
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=12,
        encoder_hidden_size=16,
        use_qformer_text_input=True,
        pad_token_id=0,
    )
    model = Blip2ForImageTextRetrieval(
        Blip2Config(vision_config=vision, qformer_config=qformer, num_query_tokens=3, image_text_hidden_size=4)
    ).eval()
    for parameter in model.parameters():
        parameter.add_(0.2 * torch.randn(parameter.shape))
    return model
