"""CLIP: the score of an image under its caption, and image embeddings as a feature space.

CLIP score: Hessel et al. 2021, arXiv:2104.08718, without their factor 2.5 and clamp: as torchmetrics and the text-to-
image papers give it, 100 cos(E_I, E_T). It is per pair and not clamped, so that two runs with the same captions can be
compared pair by pair. CMMD takes its distances between the same image embeddings (accel/metrics/cmmd.py).

Deviations from torchmetrics' CLIPScore: a mean that is negative stays so; captions beyond the context length are cut
by the tokenizer, which keeps the end token (cutting the tokens afterwards loses it, CLIP then reads the first token's
state instead, and all long captions get one embedding); cosines are float64 sums; no torchvision.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from accel.errors import ConfigError, check_int
from accel.metrics.base import BATCH, FeatureNetwork, check_images, frozen, in_batches, resolve_device
from accel.metrics.images import Preprocessing
from accel.metrics.weights import checkpoint, files_sha256, load_model, require, state_sha256

DEFAULT = "openai/clip-vit-large-patch14"
TOKENIZER = (("tokenizer.json",), ("vocab.json", "merges.txt"))  # without them transformers 5 makes an empty one


class ClipScore:
    """`ClipScore.load(path)(images, captions)`: 100 cos(E_I, E_T) of each pair, float64 (B,), in -100..100.

    `truncated` is the number of different captions so far that were longer than the model's context.
    """

    name = "clip_score"

    def __init__(self, model: nn.Module, tokenizer: Any, image_processor: Any, batch: int = BATCH) -> None:
        """From transformers' CLIPModel (in float32, on the device to use), its tokenizer and its image processor."""
        check_int("batch", batch, 1)
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.preprocessing = Preprocessing.of_processor(image_processor)
        self.batch = batch
        self.max_length = min(tokenizer.model_max_length, model.config.text_config.max_position_embeddings)
        self._cut: set[str] = set()
        self._folder: Path | None = None

    @classmethod
    def load(cls, path: str | Path | None = None, device: str | None = None, batch: int = BATCH) -> ClipScore:
        """From a local folder or hub id of a CLIPModel in safetensors; `device` None: the GPU if there is one.

        A hub id is taken from the local cache and downloaded only if it is not there. Raises ConfigError where the
        checkpoint cannot be had, is damaged, is no CLIP, or holds pickles only.
        """
        require("transformers", "the CLIP score", "transformers>=4.45")
        folder = checkpoint(path or DEFAULT, "clip", TOKENIZER)
        score = cls(*_load(folder, resolve_device(device)), batch)
        score._folder = folder
        return score

    @property
    def truncated(self) -> int:
        return len(self._cut)

    @property
    def num_features(self) -> int:
        """Length D of an embedding."""
        return self.model.config.projection_dim

    def __call__(self, images: Tensor, captions: Sequence[str]) -> Tensor:
        """Scores (B,) of images uint8 (B, 3, H, W) and their B captions. Raises ConfigError for other input."""
        check_images(images)
        _check_captions(captions)
        if len(images) != len(captions):
            raise ConfigError(f"found {len(images)} images and {len(captions)} captions; needed: one caption an image.")
        pairs = self._embed_images(images), self._embed_texts(captions)
        return 100 * torch.mul(*(normalize(e.double(), dim=1) for e in pairs)).sum(1)

    def image_features(self, images: Tensor) -> Tensor:
        """E_I / |E_I|, float32 (B, D), of images uint8 (B, 3, H, W)."""
        check_images(images)
        return normalize(self._embed_images(images), dim=1)

    def text_features(self, captions: Sequence[str]) -> Tensor:
        """E_T / |E_T|, float32 (B, D)."""
        _check_captions(captions)
        return normalize(self._embed_texts(captions), dim=1)

    def identity(self) -> dict[str, Any]:
        """What decides the scores: architecture, sha256 of the weights and the vocabulary, preprocessing. No paths."""
        config = self.model.config
        return {
            "network": _describe(config),
            "weights_sha256": files_sha256(self._folder) if self._folder else state_sha256(self.model),
            "vocabulary_sha256": _sha256(self.tokenizer.get_vocab()),
            "max_length": self.max_length,
            "preprocessing": self.preprocessing.identity(),
        }

    def tokens(self, captions: Sequence[str]) -> dict[str, Tensor]:
        """input_ids and attention_mask, (B, max_length): padded to the full context, so that no caption's embedding
        depends on its neighbours' lengths. Cut captions are noted in `truncated`; the first one is announced."""
        captions = list(captions)
        lengths = [len(ids) for ids in self.tokenizer(captions, verbose=False)["input_ids"]]
        self._note_cut([c for c, n in zip(captions, lengths, strict=True) if n > self.max_length])
        encoded = self.tokenizer(
            captions, truncation=True, max_length=self.max_length, padding="max_length", return_tensors="pt"
        )
        return {key: encoded[key] for key in ("input_ids", "attention_mask")}

    def _note_cut(self, captions: list[str]) -> None:
        if captions and not self._cut:
            warnings.warn(
                f"captions of more than {self.max_length} tokens are cut for the CLIP score, the first is "
                f"{captions[0][:60]!r}...; `truncated` counts them.",
                stacklevel=2,
            )
        self._cut.update(captions)

    def _embed_images(self, images: Tensor) -> Tensor:
        def embed(part: Tensor) -> Tensor:
            return pooled(self.model.get_image_features(pixel_values=self.preprocessing(part).to(self._device)))

        return in_batches(embed, images, self.batch)

    def _embed_texts(self, captions: Sequence[str]) -> Tensor:
        def embed(part: list[str]) -> Tensor:
            tokens = {key: value.to(self._device) for key, value in self.tokens(part).items()}
            return pooled(self.model.get_text_features(**tokens))

        return in_batches(embed, list(captions), self.batch)

    @property
    def _device(self) -> torch.device:
        return next(self.model.parameters()).device


class ClipFeatures(FeatureNetwork):
    """L2-normalised CLIP image embeddings, the space of CMMD.

    Published CMMD is that of ViT-L/14 at 336 pixels; another CLIP gives another scale.
    """

    name = "clip"
    DEFAULT = DEFAULT

    def _load(self) -> ClipScore:
        return ClipScore.load(self.path, self.device, self.batch)

    def _forward(self, images: Tensor) -> Tensor:
        return self.network.image_features(images)

    @property
    def num_features(self) -> int:
        return self.network.num_features

    def identity(self) -> dict[str, Any]:
        whole = self.network.identity()
        return {key: whole[key] for key in ("network", "weights_sha256", "preprocessing")}


class Adapter(nn.Module):
    """The model and processor that torchmetrics' CLIPScore wants, from a ClipScore; for checking one by the other.

    `CLIPScore(model_name_or_path=lambda: (adapter, adapter.processor))`. torchmetrics 1.9 expects tensors, which
    transformers 5 no longer returns; it takes local folders under certain names only; and it cuts long captions after
    the tokenizer. Images go through `image_processor`, not through our preprocessing.
    """

    def __init__(self, score: ClipScore, image_processor: Any) -> None:
        super().__init__()
        self.model = score.model
        self.config = score.model.config
        self._tokens = score.tokens
        self._image_processor = image_processor

    def get_image_features(self, *args: Any, **kwargs: Any) -> Tensor:
        return pooled(self.model.get_image_features(*args, **kwargs))

    def get_text_features(self, *args: Any, **kwargs: Any) -> Tensor:
        return pooled(self.model.get_text_features(*args, **kwargs))

    def processor(self, text: list[str] | None = None, images: list[Tensor] | None = None, **_: Any) -> dict[str, Any]:
        if text is not None:
            return self._tokens(text)
        return self._image_processor(images=images, return_tensors="pt")


def pooled(output: Any) -> Tensor:
    """The projected embedding (B, D): itself in transformers 4, `pooler_output` of the returned object in 5."""
    return output if isinstance(output, Tensor) else output.pooler_output


@lru_cache(maxsize=1)  # the score and the features of one checkpoint share it
def _load(folder: Path, device: str) -> tuple[nn.Module, Any, Any]:
    import transformers

    # transformers 5 calls the processor that does without torchvision CLIPImageProcessorPil, 4 CLIPImageProcessor.
    processor = getattr(transformers, "CLIPImageProcessorPil", None) or transformers.CLIPImageProcessor
    model = load_model(transformers.CLIPModel, folder)
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        image_processor = processor.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise ConfigError(f"clip weights: {folder} lacks its tokenizer or preprocessor: {error}") from error
    return frozen(model, device), tokenizer, image_processor


def _check_captions(captions: Sequence[str]) -> None:
    if isinstance(captions, str) or not all(isinstance(caption, str) for caption in captions):
        raise ConfigError(f"captions are {type(captions).__name__}; needed: a list of strings.")
    if len(captions) == 0:
        raise ConfigError("found no captions; needed: at least one.")


def _describe(config: Any) -> str:
    vision = config.vision_config
    size = f"{vision.num_hidden_layers}x{vision.hidden_size}"
    return f"CLIP {size}, patch {vision.patch_size}, {vision.image_size} px, D = {config.projection_dim}"


def _sha256(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
