"""The model's chat format as FastChat describes it (``fastchat.conversation.Conversation``).

FastChat's API server builds chat prompts itself, from what the worker says of its model. ChatML models are
described from their own chat template; others by FastChat's template of the same markers.
"""

from __future__ import annotations

import dataclasses
from typing import Any

_BY_MARKER = (
    ("<|start_header_id|>", "llama-3"),
    ("<start_of_turn>", "gemma"),
    ("[INST]", "mistral"),
)
_DEFAULT_SYSTEM = "You are a helpful assistant."


def describe(tokenizer: Any) -> dict[str, Any]:
    """``/worker_get_conv_template``'s ``conv``: the fields of a ``Conversation`` as JSON."""
    from fastchat.conversation import Conversation, SeparatorStyle, conv_templates

    template = str(getattr(tokenizer, "chat_template", None) or "")
    for marker, name in _BY_MARKER:
        if marker in template and name in conv_templates:
            return dataclasses.asdict(conv_templates[name])
    end = tokenizer.convert_tokens_to_ids("<|im_end|>") if "<|im_end|>" in tokenizer.get_vocab() else None
    return dataclasses.asdict(
        Conversation(
            name="chatml",
            system_template="<|im_start|>system\n{system_message}",
            system_message=_default_system(tokenizer),
            roles=("<|im_start|>user", "<|im_start|>assistant"),
            sep_style=SeparatorStyle.CHATML,
            sep="<|im_end|>",
            stop_str="<|im_end|>",
            stop_token_ids=[end] if end is not None else [],
        )
    )


def _default_system(tokenizer: Any) -> str:
    """The system message the model's own template adds when a chat has none."""
    if not getattr(tokenizer, "chat_template", None):
        return _DEFAULT_SYSTEM
    rendered = tokenizer.apply_chat_template([{"role": "user", "content": "?"}], tokenize=False)
    _, found, rest = rendered.partition("<|im_start|>system\n")
    return rest.partition("<|im_end|>")[0] if found else _DEFAULT_SYSTEM
