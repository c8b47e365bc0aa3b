"""Tiny random checkpoints as save_pretrained writes them, and images of several shapes."""

from __future__ import annotations

import json
import string

import pytest
import torch

CONTEXT = 12  # tokens, start and end included
SIZE = 32


def write_tokenizer(folder) -> int:
    """A byte-level vocabulary of letters and two merges, by hand; its size. The end token is last, as in CLIP."""
    letters = [*string.ascii_lowercase, *string.digits]
    entries = [*letters, *(x + "</w>" for x in letters), "ca", "cat</w>", "<|startoftext|>", "<|endoftext|>"]
    vocab = {entry: index for index, entry in enumerate(entries)}
    (folder / "vocab.json").write_text(json.dumps(vocab))
    (folder / "merges.txt").write_text("#version: 0.2\nc a\nca t</w>\n")
    names = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>",
             "unk_token": "<|endoftext|>"}  # fmt: skip
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": CONTEXT, **names}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return len(vocab)


def tiny_clip(vocabulary: int, seed: int = 0):
    from transformers import CLIPConfig, CLIPModel

    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    ids = {"bos_token_id": vocabulary - 2, "eos_token_id": vocabulary - 1, "pad_token_id": vocabulary - 1}
    text = {"vocab_size": vocabulary, "max_position_embeddings": CONTEXT, "initializer_factor": 30.0, **ids, **shape}
    vision = {"image_size": SIZE, "patch_size": 8, "initializer_factor": 30.0, **shape}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).eval()


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory):
    import transformers

    folder = tmp_path_factory.mktemp("clip")
    tiny_clip(write_tokenizer(folder)).save_pretrained(folder)
    processor = getattr(transformers, "CLIPImageProcessorPil", transformers.CLIPImageProcessor)
    processor(size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def dino_folder(tmp_path_factory):
    from transformers import Dinov2Config, Dinov2Model

    folder = tmp_path_factory.mktemp("dinov2")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = Dinov2Config(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=70, patch_size=14)
        Dinov2Model(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def images():
    """images(count, height, width) -> uint8 noise, the harshest test of a resize; image i is always the same."""

    def images(count: int = 4, height: int = SIZE, width: int = SIZE) -> torch.Tensor:
        generators = [torch.Generator().manual_seed(i) for i in range(count)]
        return torch.stack([torch.randint(0, 256, (3, height, width), generator=g) for g in generators]).byte()

    return images
