"""Tokenizers without a vocabulary of their own: the ids mean nothing, their number and places are those of the model.

A word, a sign or a line's end is one token. Begin, end and padding are where the tokenizer of that class puts them, and
a prompt is padded and cut by the pipeline to the length of its model, so text encoders see the shapes that they see in
use. Where nothing is padded (language models of Qwen's sort) the length is that of the prompt in words, of which real
tokenizers make some 1.3 tokens each.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

PIECE = r"\n|\w+|[^\w\s]"
UNKNOWN, PAD, CHAT = "<unk>", "<pad>", "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"
LIMIT = 512  # tokens, where a text encoder has no last place


class Form(NamedTuple):
    """The tokens around a text, and others that are one token each; the end's id is the vocabulary's last, which CLIP's
    text encoder takes for the end."""

    begin: str | None
    end: str
    padded_by_end: bool = False
    further: tuple[str, ...] = ()
    closed: bool = True  # whether the end is put there


FORMS = {  # by what the name of the class begins with
    "CLIP": Form("<|startoftext|>", "<|endoftext|>", padded_by_end=True),
    "Gemma": Form("<bos>", "<eos>", closed=False),
    "Llama": Form("<s>", "</s>", closed=False),
    "Qwen": Form(None, "<|endoftext|>", True, ("<|im_start|>", "<|im_end|>"), closed=False),
}
OTHERS = Form(None, "</s>")  # T5 and its kin


def stub(cls: str, encoder: Mapping[str, Any], texts: Iterable[str]) -> Any:
    """A tokenizer in the place of one of class `cls`, whose ids are within the vocabulary of the text encoder of that
    config; words that are in `texts` have ids of their own as far as there are any."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    form = next((form for name, form in FORMS.items() if cls.startswith(name)), OTHERS)
    encoder = {**encoder, **(encoder.get("text_config") or {})}
    ids = vocabulary(form, int(encoder["vocab_size"]), texts)
    made = Tokenizer(models.WordLevel(ids, unk_token=UNKNOWN))
    made.pre_tokenizer = pre_tokenizers.Split(Regex(PIECE), "removed", invert=True)
    around = [form.begin or "", "$A", form.end if form.closed else ""]
    made.post_processor = processors.TemplateProcessing(
        single=" ".join(filter(None, around)),
        special_tokens=[(token, ids[token]) for token in (form.begin, form.end) if token],
    )
    begin = {"bos_token": form.begin} if form.begin else {}
    return PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token=UNKNOWN, eos_token=form.end, pad_token=form.end if form.padded_by_end else PAD,
        extra_special_tokens=list(form.further), model_max_length=int(encoder.get("max_position_embeddings") or LIMIT),
        model_input_names=["input_ids", "attention_mask"], chat_template=CHAT, **begin,
    )  # fmt: skip


def vocabulary(form: Form, size: int, texts: Iterable[str]) -> dict[str, int]:
    """{token: id below `size`}: special tokens from the last id downwards, words in their order as far as there are
    ids, each of which is one token's."""
    special = [token for token in (form.end, form.begin, *form.further, PAD) if token]
    words = sorted({piece for text in texts for piece in re.findall(PIECE, text)} - {*special})
    own = {word: 1 + i for i, word in enumerate(words[: max(0, size - len(special) - 1)])}
    return own | {UNKNOWN: 0} | {token: max(0, size - 1 - i) for i, token in enumerate(special)}
