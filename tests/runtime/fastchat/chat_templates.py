"""Chat templates in the manner of twelve families of models, written for the tests."""

from __future__ import annotations

from typing import Any, NamedTuple

from jinja2.sandbox import ImmutableSandboxedEnvironment


class Family(NamedTuple):
    """A template and what a tokenizer knows of it.

    ``exact``: which chats FastChat can express: ``"all"``, those ``"without system"`` message, or ``"none"``.
    ``added``: tokens that the engine puts before every prompt; by default ``bos``.
    """

    template: str
    exact: str
    special: tuple[str, ...] = ()
    bos: str = ""
    stop: str | None = None
    added: tuple[str, ...] | None = None


def turns(user: str, assistant: str, prompt: str, system: str = "") -> str:
    """A template that goes by turns; ``@`` in the parts is the text."""
    parts = {"user": user, "assistant": assistant, "system": system}
    branches = "".join(
        f"{{% if m.role == '{role}' %}}{part.replace('@', '{{ m.content }}')}{{% endif %}}"
        for role, part in parts.items()
        if part
    )
    refuse = "" if system else "{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    generation = f"{{% if add_generation_prompt %}}{prompt}{{% endif %}}"
    return f"{{% for m in messages %}}{refuse}{branches}{{% endfor %}}{generation}"


def with_default(template: str, default: str) -> str:
    """The template, with a system message of its own where a chat has none."""
    return f"{{% if messages[0].role != 'system' %}}{default}{{% endif %}}{template}"


CHATML = turns(
    "<|im_start|>user\n@<|im_end|>\n",
    "<|im_start|>assistant\n@<|im_end|>\n",
    "<|im_start|>assistant\n",
    "<|im_start|>system\n@<|im_end|>\n",
)
CHATML_TOKENS = ("<|im_start|>", "<|im_end|>")
HEADER = "<|start_header_id|>{}<|end_header_id|>\n\n"
LLAMA3 = turns(
    HEADER.format("user") + "@<|eot_id|>",
    HEADER.format("assistant") + "@<|eot_id|>",
    HEADER.format("assistant"),
    HEADER.format("system") + "@<|eot_id|>",
)
DATED = HEADER.format("system") + "Today is a day.\n\n"
FAMILIES = {
    "qwen2.5": Family(
        with_default(CHATML, "<|im_start|>system\nYou are helpful.<|im_end|>\n"),
        "all",
        CHATML_TOKENS,
        stop="<|im_end|>",
    ),
    "qwen3": Family(CHATML, "without system", CHATML_TOKENS, stop="<|im_end|>"),
    "llama-3": Family(
        "{{ bos_token }}" + LLAMA3, "without system", ("<|eot_id|>",), "<|begin_of_text|>", "<|eot_id|>"
    ),
    "llama-3.1": Family(
        "{{ bos_token }}"
        + with_default(LLAMA3.replace(HEADER.format("system"), DATED), DATED + "<|eot_id|>"),
        "all",
        ("<|eot_id|>",),
        "<|begin_of_text|>",
        "<|eot_id|>",
    ),
    "gemma": Family(
        "{{ bos_token }}"
        + turns(
            "<start_of_turn>user\n@<end_of_turn>\n",
            "<start_of_turn>model\n@<end_of_turn>\n",
            "<start_of_turn>model\n",
        ),
        "all",
        ("<start_of_turn>", "<end_of_turn>"),
        "<bos>",
        "<end_of_turn>",
    ),
    "mistral": Family(
        "{{ bos_token }}" + turns("[INST] @ [/INST]", "@</s> ", ""), "all", ("</s>",), "<s>", "</s>"
    ),
    "phi-3": Family(
        turns(
            "<|user|>\n@<|end|>\n",
            "<|assistant|>\n@<|end|>\n",
            "<|assistant|>\n",
            "<|system|>\n@<|end|>\n",
        ),
        "without system",
        ("<|end|>",),
        stop="<|end|>",
    ),
    "zephyr": Family(
        turns("<|user|>\n@</s>\n", "<|assistant|>\n@</s>\n", "<|assistant|>\n", "<|system|>\n@</s>\n"),
        "without system",
        ("</s>",),
        stop="</s>",
    ),
    "vicuna": Family(
        with_default(turns("USER: @ ", "ASSISTANT: @</s>", "ASSISTANT: ", "@ "), "A chat. "),
        "all",
        ("</s>",),
        stop="</s>",
    ),
    "deepseek": Family(
        "{{ bos_token }}" + turns("User: @\n\n", "Assistant: @<eos>", "Assistant: ", "@\n\n"),
        "without system",
        ("<eos>",),
        "<begin>",
        "<eos>",
    ),
    "glm-4": Family(
        "[gMASK]<sop>" + turns("<|user|>\n@", "<|assistant|>\n@", "<|assistant|>", "<|system|>\n@"),
        "all",
        ("<|user|>", "<|assistant|>"),
        stop="<|user|>",
        added=("[gMASK]", "<sop>"),
    ),
    "llama-2": Family(
        "{% if messages[0].role == 'system' %}{% set s = messages[0].content %}{% set m = messages[1:] %}"
        "{% else %}{% set s = none %}{% set m = messages %}{% endif %}{% for x in m %}"
        "{% if x.role == 'user' %}{{ bos_token }}[INST] {% if loop.first and s %}<<SYS>>\n{{ s }}\n<</SYS>>"
        "{% endif %}{{ x.content }} [/INST]{% else %} {{ x.content }} </s>{% endif %}{% endfor %}",
        "all",
        ("</s>",),
        "<s>",
        "</s>",
    ),
}
OTHERS = {
    # Its first tokens stand in the system message, which a chat's own replaces.
    "glm-4 of an engine that adds nothing": FAMILIES["glm-4"]._replace(added=(), exact="without system"),
    "answers that are numbered": Family(
        "{% for m in messages %}{% if m.role == 'user' %}Q: {{ m.content }}\n{% else %}"
        "A{{ loop.index }}: {{ m.content }}\n{% endif %}{% endfor %}A: ",
        "none",
    ),
    "a summary at the end": Family(
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
        "{% if messages|length > 1 %}[long]{% endif %}<assistant>",
        "none",
    ),
}


class Tokenizer:
    """What a Hugging Face tokenizer tells of a family, rendering as ``transformers`` does."""

    def __init__(self, family: Family) -> None:
        self.chat_template: str | None = family.template
        self.bos_token = family.bos
        self.added = (*([family.bos] if family.bos else ()),) if family.added is None else family.added
        self._special = {token: 10 + number for number, token in enumerate(family.special)}
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        environment.globals["raise_exception"] = self._raise
        self._compiled = environment.from_string(family.template)

    def __call__(self, text: str, *, add_special_tokens: bool = True) -> Any:
        class Encoded(NamedTuple):
            input_ids: list[int]

        before = range(len(self.added)) if add_special_tokens else ()
        return Encoded([*before, *(1000 + ord(letter) for letter in text)])

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
        return [self.added[number] for number in ids]

    def apply_chat_template(self, messages: Any, *, tokenize: bool, add_generation_prompt: bool) -> str:
        assert not tokenize
        return self._compiled.render(
            messages=messages, add_generation_prompt=add_generation_prompt, bos_token=self.bos_token
        )

    def get_added_vocab(self) -> dict[str, int]:
        return self._special

    def convert_tokens_to_ids(self, token: str) -> int:
        return self._special[token]

    @staticmethod
    def _raise(message: str) -> None:
        raise ValueError(message)
