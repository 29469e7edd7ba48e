"""Run with the worker's Python: pad a small random Llama's heads, and print how far its logits moved.

Prints a JSON object: ``padded``, the largest difference after padding with zero heads, and ``control``, the
same with the output projection's new columns set to one and values that are not zero.
"""

# ruff: noqa: TID253 - only ever run in the worker's environment
import json
from dataclasses import replace

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from demo.weights import Heads, convert, unpermute

HEADS = Heads(query=9, key_value=3, size=16)
GGUF = {"q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output"}


def config(heads: Heads) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=64,
        hidden_size=HEADS.query * HEADS.size,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=heads.query,
        num_key_value_heads=heads.key_value,
        head_dim=heads.size,
        attn_implementation="eager",
    )


def interleave(weight: np.ndarray, heads: int) -> np.ndarray:
    """What llama.cpp's converter does to query and key rows."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def converted(name: str, weight: torch.Tensor, wanted: Heads) -> torch.Tensor:
    part = next((gguf for ours, gguf in GGUF.items() if ours in name), None)
    if part is None:
        return weight
    array = weight.numpy()
    heads = {"attn_q": HEADS.query, "attn_k": HEADS.key_value}.get(part)
    if heads:
        array = interleave(array, heads)
        assert np.array_equal(unpermute(array, heads), weight.numpy())
    return torch.from_numpy(np.ascontiguousarray(convert(f"blk.0.{part}.weight", array, HEADS, wanted)))


def main() -> None:
    torch.manual_seed(0)
    tokens = torch.randint(0, 64, (2, 12))
    original = LlamaForCausalLM(config(HEADS)).eval()
    wanted = HEADS.padded(2)
    padded = LlamaForCausalLM(config(wanted)).eval()
    state = {name: converted(name, w, wanted) for name, w in original.state_dict().items()}
    padded.load_state_dict(state)
    with torch.no_grad():
        expected = original(tokens).logits
        moved = (padded(tokens).logits - expected).abs().max().item()
        for name, weight in state.items():
            if "v_proj" in name:
                weight[HEADS.key_value * HEADS.size :] = 1.0
            if "o_proj" in name:
                weight[:, HEADS.query * HEADS.size :] = 1.0
        padded.load_state_dict(state)
        control = (padded(tokens).logits - expected).abs().max().item()
    rows = replace(wanted).query * wanted.size
    shape = list(state["model.layers.0.self_attn.q_proj.weight"].shape)
    print(json.dumps({"padded": moved, "control": control, "rows": rows, "shape": shape}))


if __name__ == "__main__":
    main()
