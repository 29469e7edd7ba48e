"""From llama.cpp's layout of a Llama's weights to that of transformers, with heads to spare.

Shapes: ``hidden`` is the width of the residual stream; a projection's weight is (out, in), and an attention
projection's rows come head by head, ``size`` rows a head.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Weight = npt.NDArray[np.float32]

_WHOLE = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_OF_A_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


@dataclass(frozen=True)
class Heads:
    """Attention heads of a layer.

    :param query: number of query heads, a multiple of ``key_value``.
    :param key_value: number of key and value heads, each shared by ``query / key_value`` query heads.
    :param size: rows a head.
    """

    query: int
    key_value: int
    size: int

    def padded(self, parts: int) -> Heads:
        """With as many more as it takes for ``parts`` tensor-parallel ranks to share them evenly."""
        key_value = -(-self.key_value // parts) * parts
        # As many query heads a key-value head as before: those there are keep theirs.
        return Heads(key_value * (self.query // self.key_value), key_value, self.size)


def transformers_name(name: str) -> str:
    """Name of llama.cpp's tensor ``name`` in transformers' Llama. Raises KeyError for any other."""
    if name in _WHOLE:
        return _WHOLE[name]
    block, layer, part, kind = name.split(".")
    if (block, kind) != ("blk", "weight"):
        raise KeyError(name)
    return f"model.layers.{layer}.{_OF_A_LAYER[part]}.weight"


def convert(name: str, weight: Weight, heads: Heads, wanted: Heads) -> Weight:
    """The weight of llama.cpp's tensor ``name``, in transformers' layout, with ``wanted`` heads.

    The heads added are all zero: their scores are equal, their values nothing, and the output projection
    ignores them. The function computed stays exactly the same.
    """
    part = name.split(".")[2] if name.startswith("blk.") else name
    if part == "attn_q":
        return pad(unpermute(weight, heads.query), 0, wanted.query * wanted.size)
    if part == "attn_k":
        return pad(unpermute(weight, heads.key_value), 0, wanted.key_value * wanted.size)
    if part == "attn_v":
        return pad(weight, 0, wanted.key_value * wanted.size)
    if part == "attn_output":
        return pad(weight, 1, wanted.query * wanted.size)
    return weight


def unpermute(weight: Weight, heads: int) -> Weight:
    """Rows of each head with the two halves that rotate together apart again.

    llama.cpp interleaves them (rows 0, size/2, 1, size/2 + 1, …); transformers has half after half.
    """
    rows, columns = weight.shape
    pairs = weight.reshape(heads, rows // heads // 2, 2, columns)
    return pairs.swapaxes(1, 2).reshape(rows, columns)


def pad(weight: Weight, axis: int, length: int) -> Weight:
    """``weight`` with zeros behind it along ``axis`` up to ``length``."""
    widths = [(0, 0), (0, 0)]
    widths[axis] = (0, length - weight.shape[axis])
    return np.pad(weight, widths)
