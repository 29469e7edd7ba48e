"""A tiny random Llama with a real tokenizer and chat template: the smallest model vLLM really serves.

Run with the worker's Python: ``python tests/tiny_model.py FOLDER``. Four heads and two key-value heads, so
that two tensor-parallel ranks can share them. The weights are seeded: every machine makes the same model.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
VOCABULARY = 2048
CONTEXT = 2048


def build(folder: Path) -> None:
    """Write the model to ``folder``."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    # Any text does; the standard library's is the same for everybody with the same Python.
    tokenizer.train_from_iterator(
        [
            Path(json.__file__).read_text(),
            Path(shutil.__file__).read_text(),
            Path(tempfile.__file__).read_text(),
        ],
        trainer,
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    described = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": SPECIAL[0],
        "bos_token": SPECIAL[1],
        "eos_token": SPECIAL[2],
        "model_max_length": CONTEXT,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(described))
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=CONTEXT,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)


def main(target: Path) -> None:
    """Make ``target`` unless it is there; a build that was interrupted leaves nothing of that name."""
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(dir=target.parent, prefix=".draft-"))
    build(draft)
    # A pod's user is another one, and safetensors writes files for their owner alone.
    draft.chmod(0o755)
    for file in draft.iterdir():
        file.chmod(0o644)
    draft.rename(target)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
