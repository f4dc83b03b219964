"""Conversations around prompts and packed text encoders, for tests."""

from __future__ import annotations

from datetime import date, datetime
from logging.handlers import BufferingHandler
from types import SimpleNamespace
from typing import Any

import pytest
import torch

#: Layers that microsoft/Lens reads, counted from 0.
LAYERS = (5, 11, 17, 23)
PREFIX, SUFFIX = 97, 22
DAY = date(2026, 5, 23)
#: Values of the sixteen codes of E2M1, from the definition of the format.
E2M1 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0]
KEPT = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]
MXFP4: dict[str, Any] = {"quant_method": "mxfp4", "modules_to_not_convert": KEPT}

#: The text encoder of microsoft/Lens, which is openai/gpt-oss-20b.
REAL_CONFIG: dict[str, Any] = {"architectures": ["GptOssForCausalLM"], "model_type": "gpt_oss", "attention_bias": True}
REAL_CONFIG |= {"hidden_size": 2880, "intermediate_size": 2880, "vocab_size": 201088, "tie_word_embeddings": False}
REAL_CONFIG |= {"head_dim": 64, "num_attention_heads": 64, "num_key_value_heads": 8}
REAL_CONFIG |= {"num_hidden_layers": 24, "layer_types": ["sliding_attention", "full_attention"] * 12}
REAL_CONFIG |= {"num_experts_per_tok": 4, "num_local_experts": 32}


def conversation(prompt: str, day: date) -> str:
    """All that the text encoder reads, as the facts spell it: up to where the answer would begin."""
    return (
        "<|start|>system<|message|>You are ChatGPT, a large language model trained by OpenAI.\n"
        f"Knowledge cutoff: 2024-06\nCurrent date: {day.isoformat()}\n\nReasoning: medium\n\n"
        "# Valid channels: analysis, commentary, final. Channel must be included for every message.<|end|>"
        "<|start|>developer<|message|># Instructions\n\nDescribe the image by detailing the color, shape, size, "
        "texture, quantity, text, spatial relationships of the objects and background.\n\n<|end|>"
        f"<|start|>user<|message|>{prompt}<|end|>"
        "<|start|>assistant<|channel|>analysis<|message|>"
        "Need to generate one image according to the description.<|end|>"
        "<|start|>assistant<|channel|>final<|message|>"
    )


def stop_the_clock(monkeypatch: pytest.MonkeyPatch, day: date) -> None:
    """Let the chat template believe that it is this day."""
    clock = SimpleNamespace(now=lambda: datetime(day.year, day.month, day.day))
    monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", clock)


def pack_experts(state: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """A state dict of GPT-OSS with random MXFP4 experts in place of its own, and the numbers that they stand for.

    Blocks and scales have their outputs first, dense experts their inputs: ``[experts, inputs, outputs]``.
    """
    generator = torch.Generator().manual_seed(7)
    packed, dense = {}, {}
    for name, tensor in state.items():
        if not name.endswith(("gate_up_proj", "down_proj")):
            packed[name] = dense[name] = tensor.bfloat16()
            continue
        experts, inputs, outputs = tensor.shape
        shape = experts, outputs, inputs // 32
        blocks = torch.randint(0, 256, (*shape, 16), dtype=torch.uint8, generator=generator)
        scales = torch.randint(110, 126, shape, dtype=torch.uint8, generator=generator)
        packed[f"{name}_blocks"], packed[f"{name}_scales"] = blocks, scales
        # The low nibble comes first; a scale is the exponent of a power of two, 127 above it.
        codes = torch.stack((blocks % 16, blocks // 16), dim=-1).flatten(-2).long()
        values = torch.tensor(E2M1)[codes] * torch.ldexp(torch.ones(shape), scales.int() - 127)[..., None]
        dense[name] = values.flatten(-2).transpose(1, 2).bfloat16()
    return packed, dense


def notices(log: BufferingHandler) -> list[str]:
    """What this project logged."""
    return [record.getMessage() for record in log.buffer if record.name.startswith("converter.")]
