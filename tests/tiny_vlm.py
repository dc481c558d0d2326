"""Tiny vision-language models of random weights, complete folders as on the Hugging Face hub: made in seconds."""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

FAMILIES = ("llava", "llava_next", "idefics3", "gemma3", "qwen2_5_vl")

#: Side of an image that the models see, and of a patch, pixels.
IMAGE, PATCH = 28, 14
HIDDEN = 32

#: Sizes (height, width) that LLaVA-NeXT cuts into tiles: a square of four and two strips.
PINPOINTS = [[2 * IMAGE, 2 * IMAGE], [IMAGE, 2 * IMAGE], [2 * IMAGE, IMAGE]]

#: What stands for an image in a prompt, and the other tokens that a family's processor or model looks for.
IMAGE_TEXT = {
    "llava": "<image>",
    "llava_next": "<image>",
    "idefics3": "<image>",
    "gemma3": "<start_of_image>",
    "qwen2_5_vl": "<|vision_start|><|image_pad|><|vision_end|>",
}
NAMED = {
    "llava": {"image_token": "<image>"},
    "llava_next": {"image_token": "<image>"},
    "idefics3": {"image_token": "<image>"},
    "gemma3": {
        "image_token": "<image_soft_token>",
        "boi_token": "<start_of_image>",
        "eoi_token": "<end_of_image>",
    },
    "qwen2_5_vl": {
        "image_token": "<|image_pad|>",
        "video_token": "<|video_pad|>",
        "vision_start_token": "<|vision_start|>",
        "vision_end_token": "<|vision_end|>",
    },
}
CELLS = tuple(f"<row_{row + 1}_col_{col + 1}>" for row in range(6) for col in range(6))
UNNAMED = {"idefics3": ("<fake_token_around_image>", "<end_of_utterance>", "<global-img>", *CELLS)}

TEMPLATE = """{{ bos_token }}{% for message in messages %}{{ message['role'] | upper }}: \
{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}\
{% if part['type'] == 'image' %}IMAGE_TEXT{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}
{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"""


def build(family: str, folder: Path, *, seed: int = 0, chat_template: bool = True) -> Path:
    """Write a model of random weights: config, weights, tokenizer, image processor and, where it has one, processor.

    Args:
        family: one of `FAMILIES`.
        folder: created if it does not exist.
        seed: of the weights.
        chat_template: whether the tokenizer and the processor have one.

    Returns:
        The folder, which AutoModelForImageTextToText loads; so does AutoProcessor, except for Qwen2.5-VL, whose video
        processor needs torchvision.
    """
    tokenizer = _tokenizer(family)
    template = TEMPLATE.replace("IMAGE_TEXT", IMAGE_TEXT[family]) if chat_template else None
    tokenizer.chat_template = template
    config = _config(family, tokenizer)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = transformers.AutoModelForImageTextToText.from_config(config)
        for parameter in model.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.2)
    model.generation_config = transformers.GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    _save_processor(family, tokenizer, template, folder)
    return folder


def _tokenizer(family: str) -> PreTrainedTokenizerFast:
    """Bytes, and each letter or digit after a space: "A" and " A" are two tokens, a word or "10" several."""
    vocabulary = {char: i for i, char in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    merges = [("Ġ", char) for char in string.ascii_letters + string.digits]
    vocabulary |= {"".join(merge): len(vocabulary) + i for i, merge in enumerate(merges)}
    tokenizer = Tokenizer(BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        padding_side="left",
        extra_special_tokens=NAMED[family] | {f"extra_{i}": token for i, token in enumerate(UNNAMED.get(family, ()))},
    )


def _config(family: str, tokenizer: PreTrainedTokenizerFast) -> transformers.PreTrainedConfig:
    ids = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": HIDDEN,
        "intermediate_size": 2 * HIDDEN,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": 8192,
        **ids,
    }
    vision = {
        "hidden_size": HIDDEN,
        "intermediate_size": 2 * HIDDEN,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": IMAGE,
        "patch_size": PATCH,
    }
    image_id = tokenizer.convert_tokens_to_ids(NAMED[family]["image_token"])
    models: Any = transformers  # whose types lack some entries of these configurations
    if family == "llava":
        return models.LlavaConfig(
            text_config=transformers.LlamaConfig(**text),
            vision_config=transformers.CLIPVisionConfig(**vision),
            image_token_id=image_id,
            image_seq_length=(IMAGE // PATCH) ** 2,
        )
    if family == "llava_next":
        return models.LlavaNextConfig(
            text_config=transformers.LlamaConfig(**text),
            vision_config=transformers.CLIPVisionConfig(**vision),
            image_token_id=image_id,
            image_grid_pinpoints=PINPOINTS,
            image_seq_length=(IMAGE // PATCH) ** 2,
        )
    if family == "idefics3":
        return models.Idefics3Config(
            text_config=transformers.LlamaConfig(**text),
            vision_config=vision,
            image_token_id=image_id,
            scale_factor=2,
            pad_token_id=tokenizer.pad_token_id,
        )
    if family == "gemma3":
        return transformers.Gemma3Config(
            text_config=transformers.Gemma3TextConfig(**text, head_dim=16, query_pre_attn_scalar=16),
            vision_config=transformers.SiglipVisionConfig(**vision),
            mm_tokens_per_image=4,
            image_token_index=image_id,
            boi_token_index=tokenizer.convert_tokens_to_ids("<start_of_image>"),
            eoi_token_index=tokenizer.convert_tokens_to_ids("<end_of_image>"),
        )
    return transformers.Qwen2_5_VLConfig(
        text_config=text | {"rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3]}},
        vision_config={
            "depth": 2,
            "hidden_size": HIDDEN,
            "intermediate_size": 2 * HIDDEN,
            "num_heads": 2,
            "patch_size": PATCH,
            "out_hidden_size": HIDDEN,
            "window_size": 4 * PATCH,
            "fullatt_block_indexes": [1],
        },
        image_token_id=image_id,
        video_token_id=tokenizer.convert_tokens_to_ids("<|video_pad|>"),
        vision_start_token_id=tokenizer.convert_tokens_to_ids("<|vision_start|>"),
        vision_end_token_id=tokenizer.convert_tokens_to_ids("<|vision_end|>"),
    )


def _save_processor(family: str, tokenizer: PreTrainedTokenizerFast, template: str | None, folder: Path) -> None:
    square = {"height": IMAGE, "width": IMAGE}
    if family == "llava":
        images = transformers.CLIPImageProcessorPil(size={"shortest_edge": IMAGE}, crop_size=square)
        transformers.LlavaProcessor(
            images,
            tokenizer,
            patch_size=PATCH,
            vision_feature_select_strategy="default",
            num_additional_image_tokens=1,
            chat_template=template,
        ).save_pretrained(folder)
    elif family == "llava_next":
        images = transformers.LlavaNextImageProcessorPil(
            size={"shortest_edge": IMAGE}, crop_size=square, image_grid_pinpoints=PINPOINTS
        )
        transformers.LlavaNextProcessor(
            images,
            tokenizer,
            patch_size=PATCH,
            vision_feature_select_strategy="default",
            num_additional_image_tokens=1,
            chat_template=template,
        ).save_pretrained(folder)
    elif family == "idefics3":
        images = transformers.Idefics3ImageProcessorPil(
            size={"longest_edge": 2 * IMAGE}, max_image_size={"longest_edge": IMAGE}
        )
        transformers.Idefics3Processor(images, tokenizer, image_seq_len=1, chat_template=template).save_pretrained(
            folder
        )
    elif family == "gemma3":
        images = transformers.Gemma3ImageProcessorPil(size=square)
        transformers.Gemma3Processor(images, tokenizer, chat_template=template, image_seq_length=4).save_pretrained(
            folder
        )
    else:
        transformers.Qwen2VLImageProcessorPil(
            patch_size=PATCH, size={"shortest_edge": (2 * PATCH) ** 2, "longest_edge": (4 * PATCH) ** 2}
        ).save_pretrained(folder)
