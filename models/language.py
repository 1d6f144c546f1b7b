"""Language models of the zoo: transformers' classes with tiny configurations, attention in plain matrix products.

Each is a subclass that returns its logits alone, so that parameter names get no prefix.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    T5Config,
    T5ForConditionalGeneration,
)

from models.common import seeded, with_affine_norms


class Bert(BertForSequenceClassification):
    """A BERT classifier."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Token ids and mask [N, T], int64 -> logits [N, classes]."""
        return super().forward(input_ids=input_ids, attention_mask=attention_mask).logits


class Gpt2(GPT2LMHeadModel):
    """A GPT-2; its head is the token embedding, one parameter that the file calls `lm_head.weight`."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Token ids and mask [N, T], int64 -> logits of the next token [N, T, vocabulary]."""
        return super().forward(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).logits


class T5(T5ForConditionalGeneration):
    """A T5; both embeddings and the head are one parameter that the file calls `lm_head.weight`."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor, decoder_input_ids: Tensor) -> Tensor:
        """Token ids and mask [N, T], the answer so far [N, S], int64 -> logits [N, S, vocabulary]."""
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "decoder_input_ids": decoder_input_ids}
        return super().forward(**inputs, use_cache=False).logits


def bert(hidden: int, layers: int, vocabulary: int, classes: int = 3) -> nn.Module:
    """A BERT with heads of 64 channels."""
    config = BertConfig(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        intermediate_size=4 * hidden,
        vocab_size=vocabulary,
        num_labels=classes,
        attn_implementation="eager",
    )
    return seeded(partial(Bert, config))


def gpt2(vocabulary: int, hidden: int = 32, layers: int = 2) -> nn.Module:
    """A GPT-2 with two heads, at most 64 places."""
    config = GPT2Config(
        vocab_size=vocabulary,
        n_positions=64,
        n_embd=hidden,
        n_layer=layers,
        n_head=2,
        bos_token_id=0,
        eos_token_id=0,
        use_cache=False,
        attn_implementation="eager",
    )
    return with_affine_norms(seeded(partial(Gpt2, config)))


def t5(vocabulary: int, hidden: int = 32, layers: int = 2) -> nn.Module:
    """A T5 with two heads, eight buckets of relative position up to a distance of 16."""
    config = T5Config(
        vocab_size=vocabulary,
        d_model=hidden,
        d_kv=hidden // 2,
        d_ff=2 * hidden,
        num_layers=layers,
        num_decoder_layers=layers,
        num_heads=2,
        relative_attention_num_buckets=8,
        relative_attention_max_distance=16,
        decoder_start_token_id=0,
        use_cache=False,
        attn_implementation="eager",
    )
    return with_affine_norms(seeded(partial(T5, config)))
