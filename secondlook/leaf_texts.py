"""The sentences that the text tower of leaf-tiny is trained on, and its tokenizer."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np

CLASSES: tuple[str, ...] = ("black-rot", "healthy", "rust", "scab", "other-plant", "non-leaf")
"""The four labels, then the two kinds of strangers."""


@dataclass(frozen=True, kw_only=True)
class LeafTexts:
    """Sentences of every class of `CLASSES`."""

    sentences: tuple[tuple[str, ...], ...]
    """To train on: every phrase of a class in every template, one tuple for each class."""
    prompts: tuple[tuple[str, ...], ...]
    """To judge with: the phrase of a class in the templates for photographs, one tuple for each class."""

    @classmethod
    def load(cls) -> LeafTexts:
        """Read the sentences that ship with the package.

        Examples
        --------
        >>> texts = LeafTexts.load()
        >>> texts.prompts[0][0]
        'a photo of an apple leaf with black rot.'
        """
        source = resources.files("secondlook") / "assets" / "leaf_tiny_texts.json"
        raw = json.loads(source.read_text(encoding="utf-8"))
        sentences = []
        for name in CLASSES:
            filled = [t.replace("{}", phrase) for phrase in raw["classes"][name] for t in raw["templates"]]
            filled += [t.replace("{}", bare) for bare in raw["bare"].get(name, ()) for t in raw["label_templates"]]
            sentences.append(tuple(filled))
        prompts = tuple(
            tuple(t.replace("{}", phrase) for phrase in raw["prompts"][name] for t in raw["photo_templates"])
            for name in CLASSES
        )
        return cls(sentences=tuple(sentences), prompts=prompts)

    def draw(self, count: int, rng: np.random.Generator) -> list[str]:
        """Draw so many sentences of every class, class by class; now and then a word is left out.

        Examples
        --------
        >>> len(LeafTexts.load().draw(2, np.random.default_rng(0))) == 2 * len(CLASSES)
        True
        """
        drawn = []
        for group in self.sentences:
            for index in rng.integers(len(group), size=count):
                words = group[index].split()
                if len(words) > 5 and rng.uniform() < 0.15:
                    # Only a word of the template's beginning: the end holds what tells the classes apart.
                    del words[rng.integers(2)]
                drawn.append(" ".join(words))
        return drawn


def save_tokenizer(texts: LeafTexts, folder: Path, context_length: int) -> int:
    """Train a small byte-pair tokenizer on the sentences and save it in the Hugging Face layout.

    Parameters
    ----------
    texts : LeafTexts
        What it is trained on; other words are spelt out in characters.
    folder : Path
        Gets `tokenizer.json` and `tokenizer_config.json`.
    context_length : int
        Longest input in tokens.

    Returns
    -------
    int
        The size of the vocabulary. The end token has the highest id, because the text tower pools there.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Lowercase(), normalizers.Replace("-", " "), normalizers.Replace("_", " ")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
    tokenizer.decoder = decoders.BPEDecoder(suffix="</w>")
    trainer = trainers.BpeTrainer(
        vocab_size=1500,
        special_tokens=["<pad>", "<unk>", "<start_of_text>"],
        end_of_word_suffix="</w>",
        initial_alphabet=list("abcdefghijklmnopqrstuvwxyz0123456789.,:;()'\"/"),
        show_progress=False,
    )
    tokenizer.train_from_iterator([s for group in texts.sentences for s in group], trainer)
    tokenizer.add_special_tokens(["<end_of_text>"])
    start, end = tokenizer.token_to_id("<start_of_text>"), tokenizer.token_to_id("<end_of_text>")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<start_of_text> $A <end_of_text>",
        special_tokens=[("<start_of_text>", start), ("<end_of_text>", end)],
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<start_of_text>",
        eos_token="<end_of_text>",
        model_max_length=context_length,
    ).save_pretrained(folder)
    return int(tokenizer.get_vocab_size())
