"""A random LoRA adapter of the tiny model, in peft's format, without peft.

Run with the worker's Python: ``python tests/tiny_adapter.py TINY_MODEL FOLDER SEED``. Its weights are large
enough to change every greedy text.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

RANK = 8
MODULES = ("q_proj", "v_proj")


def build(tiny_model: str, folder: Path, seed: int) -> None:
    """Write the adapter to ``folder``."""
    import torch
    from safetensors.torch import save_file

    config = json.loads((Path(tiny_model) / "config.json").read_text())
    heads = {"q_proj": config["num_attention_heads"], "v_proj": config["num_key_value_heads"]}
    random = torch.Generator().manual_seed(seed)
    weights = {}
    for layer in range(config["num_hidden_layers"]):
        for module in MODULES:
            name = f"base_model.model.model.layers.{layer}.self_attn.{module}"
            out = heads[module] * config["head_dim"]
            weights[f"{name}.lora_A.weight"] = torch.randn(RANK, config["hidden_size"], generator=random)
            weights[f"{name}.lora_B.weight"] = torch.randn(out, RANK, generator=random)
    save_file(weights, folder / "adapter_model.safetensors")
    described = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": tiny_model,
        "r": RANK,
        "lora_alpha": RANK,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": list(MODULES),
    }
    (folder / "adapter_config.json").write_text(json.dumps(described))


if __name__ == "__main__":
    target = Path(sys.argv[2])
    target.mkdir(parents=True, exist_ok=True)
    build(sys.argv[1], target, int(sys.argv[3]))
