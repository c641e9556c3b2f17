"""The start that fine-tuning objectives share: a checkpoint, its tokenizer, and how long rows may be."""

from __future__ import annotations

import torch

from llmctl.config.errors import InputError, UsageError
from llmctl.model import huggingface, nf4
from llmctl.model.config_json import CONFIG_FILE, read_config
from llmctl.model.transformer import Transformer
from llmctl.store.artifact import Artifact
from llmctl.tokens.tokenizer import Tokenizer


def open_tokenizer(given: Artifact) -> Tokenizer:
    """The checkpoint's tokenizer, with as many ids as the model has."""
    return Tokenizer.open(given.data).padded(int(given.manifest.semantic["vocab_size"]))


def open_model(given: Artifact, tokenizer: Tokenizer, base: str = "full") -> Transformer:
    """The checkpoint's model in fp32, in memory of its own, after checking that the tokenizer fits it.

    Args:
        given: the checkpoint.
        tokenizer: its own.
        base: nf4: the matrices of its blocks in 4 bits; they are read one at a time, so that all of them are never
            there in fp32.

    Raises:
        InputError: the vocabularies differ.
    """
    stored = huggingface.load(given.data, dtype=torch.float32 if base == "full" else None)
    if stored.vocab_size != tokenizer.vocab_size:
        raise InputError(
            f"{given.ref}: the model has {stored.vocab_size} ids, its tokenizer {tokenizer.vocab_size}",
            hint="the files are not of one checkpoint",
        )
    if base == "nf4":
        nf4.quantize(stored)
    copies = {name: value.to(torch.float32, copy=True) for name, value in stored.state_dict().items()}
    stored.load_state_dict(copies, assign=True)
    return stored


def fill_id(given: Artifact, tokenizer: Tokenizer) -> int:
    """The id that fills rows: that of padding, or where padding also ends a turn, one that ends nothing.

    What fills a row is neither attended to nor predicted, so which id it is changes no figure; but rows that are
    looked at should not show ends of turns that are none.

    Raises:
        InputError: every special token ends a turn.
    """
    stops = tokenizer.stop_ids
    unused = range(len(tokenizer.byte_lengths) - 1, -1, -1)
    others = [*sorted(tokenizer.special.values()), *(index for index in unused if not tokenizer.byte_lengths[index])]
    free = (index for index in (tokenizer.pad_id, *others) if index not in stops)
    found = next((index for index in free if index == tokenizer.pad_id or index != tokenizer.bos_id), None)
    if found is None:
        raise InputError(
            f"{given.ref}: the padding id {tokenizer.pad_id} also ends a turn, and no special token ends nothing",
            hint="give the tokenizer a pad token of its own",
        )
    return found


def context_of(given: Artifact) -> int:
    """The most tokens that the checkpoint reads."""
    return read_config(given.data / CONFIG_FILE).config.context


def longest(given: Artifact, max_tokens: int | None) -> int:
    """How many tokens a text may have: what was asked for, or the checkpoint's row length or context.

    Raises:
        UsageError: more than the context was asked for.
    """
    context = context_of(given)
    length = max_tokens or int(given.manifest.semantic.get("seq_len", context))
    if length > context:
        raise UsageError(
            f"max_tokens ({length}) exceeds the model's context of {context}", hint=f"give at most {context}"
        )
    return length


def check_same_tokens(
    policy: Artifact,
    reference: Artifact,
    *,
    templates: bool = True,
    hint: str = "policy and reference must read the same ids; take the checkpoint that the policy was trained from",
) -> None:
    """Refuse a reference whose ids or chat template differ from the policy's: their figures would not compare.

    Args:
        policy: a checkpoint.
        reference: another.
        templates: whether their chat templates are looked at.
        hint: what to do about it.

    Raises:
        InputError: naming the first difference.
    """
    if policy.manifest.semantic.get("tokenizer") == reference.manifest.semantic.get("tokenizer"):
        return
    ours, theirs = open_tokenizer(policy), open_tokenizer(reference)
    if ours.vocab_size != theirs.vocab_size:
        fault = f"has {theirs.vocab_size} ids, not {ours.vocab_size}"
    elif ours.special != theirs.special or any(
        ours.piece_bytes(index) != theirs.piece_bytes(index) for index in range(ours.vocab_size)
    ):
        fault = "has other tokens for the same ids"
    elif templates and ours.chat_template != theirs.chat_template:
        fault = "has another chat template"
    else:
        return
    raise InputError(
        f"{reference.ref}: its tokenizer {fault} than that of {policy.ref}",
        hint=hint,
    )
