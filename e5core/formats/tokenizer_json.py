"""The files of a Hugging Face fast tokenizer, from a SentencePiece model.

This writes what transformers 5 saves for an XLM-R tokenizer, without transformers;
tests/formats/test_tokenizer_json.py compares the two. Format: huggingface/tokenizers, "Tokenizer"
in tokenizers/src/tokenizer/serialization.rs.
"""

import base64
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from e5core.formats.fast_tokenizer import NO_STEPS, TextStep, TextSteps
from e5core.formats.files import replacing, write_json
from e5core.formats.sentencepiece import (
    CONTROL,
    FAIRSEQ_SPECIALS,
    NORMAL,
    UNKNOWN,
    read_charsmap,
    read_pieces,
)

MASK = "<mask>"
ROLES = {
    "bos_token": "<s>",
    "cls_token": "<s>",
    "eos_token": "</s>",
    "mask_token": MASK,
    "pad_token": "<pad>",
    "sep_token": "</s>",
    "unk_token": "<unk>",
}


def tokenizer_json(content: bytes) -> dict[str, Any]:
    """What tokenizer.json holds, from the bytes of a SentencePiece model.

    Raises ValueError if the model does what such a file cannot say.
    """
    pieces = read_pieces(content)
    kinds = [piece.kind for piece in pieces]
    if kinds[:3] != [UNKNOWN, CONTROL, CONTROL] or set(kinds[3:]) - {NORMAL}:
        at = next((i for i, kind in enumerate(kinds) if i > 2 and kind != NORMAL), 0)
        raise ValueError(
            f"piece {at}, {pieces[at].text!r}, is of the kind {kinds[at]}; those of XLM-R are "
            "<unk>, <s>, </s>, then pieces of the kind 1 alone"
        )
    charsmap = base64.b64encode(read_charsmap(content)).decode()
    vocabulary = [(special, 0.0) for special in FAIRSEQ_SPECIALS]
    vocabulary += [(piece.text, piece.score) for piece in pieces[3:]]
    vocabulary.append((MASK, 0.0))
    metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
    text = {"Sequence": {"id": "A", "type_id": 0}}
    second = {"Sequence": {"id": "B", "type_id": 0}}
    start, end = ({"SpecialToken": {"id": token, "type_id": 0}} for token in ("<s>", "</s>"))
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": number,
                "content": token,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for number, token in (*enumerate(FAIRSEQ_SPECIALS), (len(vocabulary) - 1, MASK))
        ],
        "normalizer": {"type": "Precompiled", "precompiled_charsmap": charsmap}
        if charsmap
        else None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "WhitespaceSplit"}, metaspace],
        },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [start, text, end],
            "pair": [start, text, end, end, second, end],
            "special_tokens": {
                token: {"id": token, "ids": [FAIRSEQ_SPECIALS.index(token)], "tokens": [token]}
                for token in ("<s>", "</s>")
            },
        },
        "decoder": metaspace,
        "model": {"type": "Unigram", "unk_id": 3, "vocab": vocabulary, "byte_fallback": False},
    }


def with_steps(tokenizer: dict[str, Any], steps: TextSteps) -> dict[str, Any]:
    """What tokenizer.json holds, with text steps and added tokens."""
    own = [tokenizer["normalizer"]] if tokenizer["normalizer"] else []
    chain = [*map(_normalizer, steps.before), *own, *map(_normalizer, steps.after)]
    changed = {"type": "Sequence", "normalizers": chain} if len(chain) > 1 else chain[0]
    added = [{**asdict(token), "special": not token.normalized} for token in steps.added]
    return {
        **tokenizer,
        "added_tokens": [*tokenizer["added_tokens"], *added],
        "normalizer": changed,
    }


def _normalizer(step: TextStep) -> dict[str, Any]:
    if step.kind == "Replace":
        pattern = {"String": step.pattern}
        return {"type": step.kind, "pattern": pattern, "content": step.content}
    return {"type": step.kind}


def write_fast_tokenizer(
    content: bytes, folder: Path, max_length: int, steps: TextSteps = NO_STEPS
) -> None:
    """tokenizer.json, tokenizer_config.json and special_tokens_map.json.

    content     a SentencePiece model
    max_length  tokens that a text is cut at
    steps       what happens to a text beside SentencePiece
    """
    tokenizer = tokenizer_json(content)
    # transformers 5 makes an XLMRobertaTokenizer of the vocabulary alone.
    kind = "XLMRobertaTokenizer"
    if steps != NO_STEPS:
        tokenizer, kind = with_steps(tokenizer, steps), "PreTrainedTokenizerFast"
    with replacing(folder / "tokenizer.json") as temporary:
        # Indented, a vocabulary of 250,000 takes four times the lines and twice the bytes.
        temporary.write_text(json.dumps(tokenizer, ensure_ascii=False) + "\n", "utf-8")
    write_json(
        folder / "tokenizer_config.json",
        {
            **ROLES,
            "add_prefix_space": True,
            "model_max_length": max_length,
            "tokenizer_class": kind,
        },
    )
    write_json(folder / "special_tokens_map.json", ROLES)
