"""The model's chat format as FastChat describes it (``fastchat.conversation.Conversation``).

FastChat's API server builds chat prompts itself, from what the worker says of its model. That is read off
the model's own chat template: chats of marked texts are rendered, and what stands between the marks is the
format. The result is proven on further chats. Where FastChat's form cannot express the template, the worker
says so, and FastChat's own template for the model's name is used, as its stock worker did.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

Message = dict[str, str]
Render = Callable[[Sequence[Message]], str]
"""The prompt of a chat, by the model's own template. Raises whatever the template does."""

_NO_COLON_TWO = 5
"""``SeparatorStyle.NO_COLON_TWO``: each role, its text and one of two separators, one after the other."""
_SYSTEM = "q7systemq7"
_USERS = ("q7user0q7", "q7user1q7", "q7user2q7")
_ASSISTANTS = ("q7answer0q7", "q7answer1q7")
_BY_NAME = (
    ("baichuan2", "baichuan2-chat"),
    ("baichuan", "baichuan-chat"),
    ("chatglm3", "chatglm3"),
    ("chatglm2", "chatglm2"),
    ("chatglm", "chatglm"),
    ("codellama", "llama-2"),
    ("deepseek-coder", "deepseek-coder"),
    ("deepseek", "deepseek-chat"),
    ("falcon", "falcon"),
    ("internlm", "internlm-chat"),
    ("llama-2", "llama-2"),
    ("llama2", "llama-2"),
    ("mistral", "mistral"),
    ("mixtral", "mistral"),
    ("openchat", "openchat_3.5"),
    ("qwen", "qwen-7b-chat"),
    ("solar", "solar"),
    ("starling", "openchat_3.5"),
    ("vicuna", "vicuna_v1.1"),
    ("yi-", "Yi-34b-chat"),
    ("zephyr", "zephyr"),
)
"""Part of a model's name, in lower case → FastChat's template of that family."""
_OTHERWISE = "one_shot"


class Described(NamedTuple):
    """``conv`` for FastChat, and what is not exact about it; empty when every chat is."""

    conversation: dict[str, Any]
    caveat: str


class Format(NamedTuple):
    """A chat format in FastChat's terms.

    ``user`` and ``assistant`` come before a text of theirs, ``after_answer`` after one of the assistant's.
    The system message stands between ``before_system`` and ``after_system``; it is ``system`` unless a chat
    has one.
    """

    before_system: str
    system: str
    after_system: str
    user: str
    assistant: str
    after_answer: str

    def prompt(self, messages: Sequence[Message]) -> str:
        """The prompt that FastChat's API server builds of a chat."""
        system = next((m["content"] for m in messages if m["role"] == "system"), self.system)
        text = self.before_system + system + self.after_system
        for message in messages:
            if message["role"] == "user":
                text += self.user + message["content"]
            elif message["role"] == "assistant":
                text += self.assistant + message["content"] + self.after_answer
        return text + self.assistant


class Unreadable(Exception):
    """FastChat's form cannot express the template."""


def describe(tokenizer: Any, model: str) -> Described:
    """The chat format of a model.

    :param tokenizer: Hugging Face's.
    :param model: its name or folder, for FastChat's own template.
    """
    try:
        render = _renderer(tokenizer)
        form = read_format(render)
    except Unreadable as error:
        found = _by_name(model)
        name = found["name"]
        return Described(found, f"{error}; FastChat's own template {name!r} is used, as its stock worker did")
    caveat = ""
    if not _is_exact(form, render, with_system=True):
        caveat = "FastChat's form cannot say that a system message is optional; chats without one are exact"
    return Described(_conversation(form, tokenizer), caveat)


def read_format(render: Render) -> Format:
    """The format of a template. Raises :class:`Unreadable` where chats without a system message differ."""
    begin, first, after, second, again, last = _split(render(_chat(3)), _interleaved(3))
    if not first == second == last or after != again:
        raise Unreadable("the model's chat template treats turns differently")
    user = _common_end(begin, after)
    form = Format("", begin.removesuffix(user), "", user, first, after.removesuffix(user))
    if not _is_exact(form, render, with_system=False):
        raise Unreadable("the model's chat template is not made of turns")
    return _with_system(form, render)


def _with_system(form: Format, render: Render) -> Format:
    """The format with the place of a system message, where the template has one that FastChat can express."""
    text = _rendered(render, [_message("system", _SYSTEM), *_chat(1)])
    if text is None:
        return form._replace(before_system=form.system, system="")
    try:
        begin, rest, _ = _split(text, [_SYSTEM, _USERS[0]])
    except Unreadable:
        return form
    before, after = begin, rest.removesuffix(form.user)
    inner = form.system[len(before) : len(form.system) - len(after)]
    whole = form._replace(before_system=before, system=inner, after_system=after)
    return whole if before + inner + after == form.system and rest.endswith(form.user) else form


def _is_exact(form: Format, render: Render, *, with_system: bool) -> bool:
    """Whether FastChat's prompts are the template's own, for chats that the template takes."""
    for turns in (1, 2, 3):
        chat = _chat(turns)
        if form.prompt(chat) != render(chat):
            return False
        if with_system:
            chat = [_message("system", _SYSTEM), *chat]
            if _rendered(render, chat) not in {None, form.prompt(chat)}:
                return False
    return True


def _rendered(render: Render, chat: Sequence[Message]) -> str | None:
    """The template's prompt; None for a chat that it refuses, which it may do by any error."""
    try:
        return render(chat)
    except Exception:  # noqa: BLE001
        return None


def _renderer(tokenizer: Any) -> Render:
    if not getattr(tokenizer, "chat_template", None):
        raise Unreadable("the model has no chat template")
    # The engine's tokenizer puts it before the prompt itself, where it does that at all.
    bos = str(getattr(tokenizer, "bos_token", None) or "")
    added = bool(bos) and list(tokenizer("").input_ids)[:1] == [tokenizer.bos_token_id]

    def render(messages: Sequence[Message]) -> str:
        text = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
        return str(text).removeprefix(bos) if added else str(text)

    try:
        render(_chat(1))
    except Exception as error:
        raise Unreadable(f"the model's chat template fails: {error}") from error
    return render


def _conversation(form: Format, tokenizer: Any) -> dict[str, Any]:
    """The fields of FastChat's ``Conversation``."""
    stop, stop_ids = _stop(form, tokenizer)
    return {
        "name": "chat_template",
        "system_template": f"{_escaped(form.before_system)}{{system_message}}{_escaped(form.after_system)}",
        "system_message": form.system,
        "roles": [form.user, form.assistant],
        "messages": [],
        "offset": 0,
        "sep_style": _NO_COLON_TWO,
        "sep": "",
        "sep2": form.after_answer,
        "stop_str": stop,
        "stop_token_ids": stop_ids,
    }


def _stop(form: Format, tokenizer: Any) -> tuple[str | None, list[int]]:
    """The special token that ends an answer, as text and as id."""
    end = (form.after_answer + form.user).lstrip()
    special = sorted(map(str, tokenizer.get_added_vocab()), key=len, reverse=True)
    token = next((token for token in special if token and end.startswith(token)), None)
    return (None, []) if token is None else (token, [int(tokenizer.convert_tokens_to_ids(token))])


def _by_name(model: str) -> dict[str, Any]:
    """FastChat's own template for a model's name."""
    from fastchat.conversation import conv_templates

    name = model.rstrip("/").rsplit("/", 1)[-1].lower()
    chosen = next((template for part, template in _BY_NAME if part in name), _OTHERWISE)
    return dataclasses.asdict(conv_templates[chosen])


def _chat(turns: int) -> list[Message]:
    """A chat of so many marked texts of the user, with answers between them."""
    chat = [_message("user", _USERS[0])]
    for number in range(1, turns):
        chat += [_message("assistant", _ASSISTANTS[number - 1]), _message("user", _USERS[number])]
    return chat


def _interleaved(turns: int) -> list[str]:
    return [message["content"] for message in _chat(turns)]


def _message(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def _split(text: str, marks: Sequence[str]) -> list[str]:
    """What stands before, between and after the marks. Raises :class:`Unreadable` when one is missing."""
    parts = []
    for mark in marks:
        part, found, text = text.partition(mark)
        if not found:
            raise Unreadable("the model's chat template leaves out or changes texts of a chat")
        parts.append(part)
    return [*parts, text]


def _common_end(one: str, other: str) -> str:
    length = 0
    while length < min(len(one), len(other)) and one[-1 - length] == other[-1 - length]:
        length += 1
    return one[len(one) - length :]


def _escaped(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")
