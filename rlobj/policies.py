"""The policy M_θ: made from scratch, loaded, saved. Every directory is an ordinary Hugging Face one."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    BertPreTrainedModel,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from reward_models.hub import require_model
from rlobj.chat_format import CHAT_TEMPLATE, END_TOKEN, PAD_TOKEN, ROLE_TOKENS


def make_tokenizer(texts: Iterable[str], vocab_size: int, max_length: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE trained on `texts`: any Unicode has tokens, nothing is unknown.

    Chinese and Japanese characters stand alone: without spaces between words, whole sentences would become tokens, and
    no value in them could be read or copied.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.ByteLevel(add_prefix_space=True),
            # in bytes: three that begin with E3 to E9, U+3000 to U+9FFF
            pre_tokenizers.Split(Regex("[ã-é].."), "isolated"),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD_TOKEN, END_TOKEN, *ROLE_TOKENS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return with_chat_format(tokenizer, max_length)


def with_chat_format(tokenizer: Tokenizer, max_length: int) -> PreTrainedTokenizerFast:
    """A tokenizer whose vocabulary holds the special tokens, with the chat template of those made from scratch."""
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END_TOKEN,
        pad_token=PAD_TOKEN,
        additional_special_tokens=list(ROLE_TOKENS),
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
        padding_side="left",
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def make_encoder_tokenizer(texts: Iterable[str], vocab_size: int, max_length: int) -> PreTrainedTokenizerFast:
    """`make_tokenizer` as encoders have it: a first token whose state stands for the text, one between two texts, and
    one that masks; padded on the right, where no position counts."""
    tokenizer = make_tokenizer(texts, vocab_size, max_length)
    tokenizer.add_special_tokens({"cls_token": "<|text|>", "sep_token": END_TOKEN, "mask_token": "<|mask|>"})
    first, between = (f"{token}" for token in (tokenizer.cls_token, tokenizer.sep_token))
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{first} $A",
        pair=f"{first} $A {between} $B:1",
        special_tokens=[(token, tokenizer.convert_tokens_to_ids(token)) for token in (first, between)],
    )
    tokenizer.padding_side = "right"
    return tokenizer


def make_causal(
    tokenizer: PreTrainedTokenizerBase, *, hidden_size: int, layers: int, heads: int, max_length: int, seed: int
) -> LlamaForCausalLM:
    """A small Llama with random weights, for runs that start from nothing."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=3 * hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=max_length,
        tie_word_embeddings=True,
        # not the 0.02 of large models: at this width it hides a word's identity from attention for hundreds of steps,
        # and a policy that cannot copy a name from the screen cannot serve anybody
        initializer_range=hidden_size**-0.5,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def make_encoder(
    tokenizer: PreTrainedTokenizerBase,
    label_names: list[str],
    *,
    hidden_size: int,
    layers: int,
    heads: int,
    max_length: int,
    seed: int,
    head: type[BertPreTrainedModel] = BertForSequenceClassification,
) -> BertPreTrainedModel:
    """A small BERT with random weights, by default a classifier of texts."""
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=4 * hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=max_length,
        pad_token_id=tokenizer.pad_token_id,
        num_labels=len(label_names),
        id2label=dict(enumerate(label_names)),
        label2id={name: i for i, name in enumerate(label_names)},
    )
    return head(config)


def load_tokenizer(path: str | os.PathLike[str]) -> PreTrainedTokenizerBase:
    """The tokenizer saved beside a model, with a pad token.

    Raises:
        ValueError: there is no such model, or its tokenizer has neither a pad nor an eos token.
    """
    require_model("policy", path)
    tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise ValueError(f"tokenizer of {str(path)!r} has neither pad_token nor eos_token: set one and save it")
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_causal(path: str | os.PathLike[str]) -> PreTrainedModel:
    """A causal language model from a directory or the Hub, safetensors only.

    Raises:
        ValueError: weights of the model are missing from the checkpoint, so that parts would be random.
    """
    return _load(AutoModelForCausalLM, path)


def load_encoder(
    path: str | os.PathLike[str], label_names: list[str], auto_class: Any = AutoModelForSequenceClassification
) -> PreTrainedModel:
    """A classifier over `label_names`, of texts or with AutoModelForTokenClassification of tokens. An encoder without a
    label head gets a new one; a label head of another size is an error.
    """
    require_model("policy", path)
    config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    is_classifier = any(auto_class.__name__.removeprefix("AutoModel") in name for name in config.architectures or [])
    if is_classifier and config.num_labels != len(label_names):
        raise ValueError(
            f"policy {str(path)!r} decides between {config.num_labels} labels, the data between {len(label_names)}: "
            "give data with the policy's labels, or an encoder without a label head"
        )
    labels = dict(enumerate(label_names))
    kwargs = {} if is_classifier else {"num_labels": len(labels), "id2label": labels}
    if not is_classifier:
        kwargs["label2id"] = {name: i for i, name in labels.items()}
    return _load(auto_class, path, new_head=not is_classifier, **kwargs)


def load_masked(path: str | os.PathLike[str]) -> PreTrainedModel:
    """An encoder with a head that says what was masked; one without such a head gets a new one."""
    return _load(AutoModelForMaskedLM, path, new_head=True)


def _load(auto_class: Any, path: str | os.PathLike[str], new_head: bool = False, **kwargs: object) -> PreTrainedModel:
    require_model("policy", path)
    # float32 whatever the checkpoint's type: small updates vanish in half-precision weights
    model, info = auto_class.from_pretrained(
        path, use_safetensors=True, trust_remote_code=False, dtype=torch.float32, output_loading_info=True, **kwargs
    )
    missing = sorted(info["missing_keys"])
    if new_head:  # all that is not the encoder itself
        encoder = f"{model.base_model_prefix}."
        missing = [key for key in missing if key.startswith(encoder) and ".pooler." not in key]
    if missing:
        raise ValueError(f"policy {str(path)!r} lacks the weights {missing[:5]}: is it a checkpoint of another model?")
    return model


def save_policy(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    directory: Path,
    weights: dict[str, torch.Tensor] | None = None,
) -> None:
    """Write weights (safetensors), configuration and tokenizer; the directory loads with `from_pretrained`.

    Args:
        weights: in place of the model's own, which may be split over processes.
    """
    if model.can_generate():
        model.generation_config = GenerationConfig(
            eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
        )
    model.save_pretrained(directory, state_dict=weights)
    tokenizer.save_pretrained(directory)


def take_out_dropout(model: torch.nn.Module) -> None:
    """Make training passes equal those of sampling: no dropout in any layer, nor in attention, in place."""
    module: Any
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "attention_dropout", None), float):  # Llama and its kin call a function for it
            module.attention_dropout = 0.0
