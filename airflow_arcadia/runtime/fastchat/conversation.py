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

_NO_COLON_TWO, _LLAMA2, _CHATGLM3 = 5, 7, 16
"""``SeparatorStyle``: how FastChat puts roles, texts and separators together, see :class:`Format`."""
_INST = "[INST]"
"""What FastChat's style of Llama 2 itself writes before the first text."""
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


class Turns(NamedTuple):
    """What a chat template puts around the texts of a chat.

    ``start`` stands before the first text of the user, ``reply`` between a text and its answer, ``turn``
    between an answer and the next text, ``end`` after the last text. A system message stands between
    ``before_system`` and ``after_system``, in the place of ``start``; ``takes_system`` is False where the
    template takes none, and None where it cannot be said what it does with one.
    """

    start: str
    reply: str
    turn: str
    end: str
    takes_system: bool | None
    before_system: str = ""
    after_system: str = ""


class Format(NamedTuple):
    """A chat format in FastChat's terms: fields of its ``Conversation``.

    :param style: its separator style.
    :param before_system: together with ``after_system`` its system template.
    :param system: the system message of a chat that has none.
    :param user: the role's word before the user's texts.
    :param after_answer: what ends an answer.
    """

    style: int
    before_system: str
    system: str
    after_system: str
    user: str
    assistant: str
    after_answer: str

    def prompt(self, messages: Sequence[Message]) -> str:
        """The prompt that FastChat's API server builds of a chat."""
        system = next((m["content"] for m in messages if m["role"] == "system"), self.system)
        rest = [m for m in messages if m["role"] != "system"]
        text = self._start(system)
        for number, message in enumerate(rest):
            if message["role"] == "assistant":
                text += self.assistant + self._gap + message["content"] + self.after_answer
            elif self.style == _LLAMA2:
                text += ("" if number == 0 else f"{self.user} ") + message["content"] + " "
            else:
                text += self.user + self._gap + message["content"]
        return text + self.assistant

    def _start(self, system: str) -> str:
        if system or self.style == _NO_COLON_TWO:
            return self.before_system + system + self.after_system
        return f"{_INST} " if self.style == _LLAMA2 else ""

    @property
    def _gap(self) -> str:
        """What stands between a role's word and its text, but not after the last role's word."""
        return {_CHATGLM3: "\n", _LLAMA2: " "}.get(self.style, "")


class Unreadable(Exception):
    """FastChat's form cannot express the template."""


def describe(tokenizer: Any, model: str) -> Described:
    """The chat format of a model.

    :param tokenizer: Hugging Face's.
    :param model: its name or folder, for FastChat's own template.
    """
    try:
        render, added = _renderer(tokenizer)
        turns = read_turns(render)
        form = fitting_format(turns, render)
    except Unreadable as error:
        found = _by_name(model)
        name = found["name"]
        return Described(found, f"{error}; FastChat's own template {name!r} is used, as its stock worker did")
    caveats = []
    if added:
        caveats.append(f"the engine puts {added!r} before prompts, which the model's chat template does not")
    if not _is_exact(form, render, with_system=True):
        caveats.append(
            "FastChat's form cannot say that a system message is optional; chats without one are exact"
        )
    return Described(_conversation(form, turns, tokenizer), "; ".join(caveats))


def read_turns(render: Render) -> Turns:
    """What a template puts around texts. Raises :class:`Unreadable` where that differs from turn to turn."""
    start, first, turn, second, again, end = _split(render(_chat(3)), _interleaved(3))
    if first != second or turn != again:
        raise Unreadable("the model's chat template treats turns differently")
    text = _rendered(render, [_message("system", _SYSTEM), *_chat(1)])
    if text is None:
        return Turns(start, first, turn, end, takes_system=False)
    try:
        before, after, _ = _split(text, [_SYSTEM, _USERS[0]])
    except Unreadable:
        return Turns(start, first, turn, end, takes_system=None)
    return Turns(start, first, turn, end, True, before, after)


def fitting_format(turns: Turns, render: Render) -> Format:
    """The format whose prompts are the template's own, best with a system message, too.

    Raises :class:`Unreadable` where there is none for chats without a system message.
    """
    formats = [form for make in (_roles, _chatglm3, _llama2) if (form := make(turns)) is not None]
    exact = [form for form in formats if _is_exact(form, render, with_system=False)]
    if not exact:
        raise Unreadable("FastChat's form cannot express the model's chat template")
    return next((form for form in exact if _is_exact(form, render, with_system=True)), exact[0])


def _roles(turns: Turns) -> Format | None:
    """Each role's word, its text, and what ends an answer."""
    if turns.reply != turns.end:
        return None
    user = _common_end(turns.start, turns.turn)
    system = _system(turns, user, optional=False)
    return Format(_NO_COLON_TWO, *system, user, turns.end, turns.turn.removesuffix(user))


def _chatglm3(turns: Turns) -> Format | None:
    """Each role's word on a line of its own before its text; without a text it has no line end."""
    if turns.reply != f"{turns.end}\n" or not turns.turn.endswith("\n"):
        return None
    return Format(_CHATGLM3, *_system(turns, turns.turn, optional=True), turns.turn[:-1], turns.end, "")


def _llama2(turns: Turns) -> Format | None:
    """As Llama 2: the first text and the system message are in one instruction."""
    if turns.start != f"{_INST} " or turns.reply != f"{turns.end} " or not turns.end.startswith(" "):
        return None
    ends = turns.turn.removesuffix(f"{_INST} ")
    return Format(_LLAMA2, turns.before_system, "", turns.after_system, _INST, turns.end[1:], ends)


def _system(turns: Turns, user: str, *, optional: bool) -> tuple[str, str, str]:
    """What stands before a system message, the message of a chat without one, and what stands after it.

    :param user: the end of ``start``, which belongs to the user's role.
    :param optional: whether FastChat leaves all of it out where there is no message.
    """
    default = turns.start.removesuffix(user)
    if turns.takes_system is False:
        return default, "", ""
    before, after = turns.before_system, turns.after_system.removesuffix(user)
    inner = default[len(before) : len(default) - len(after)]
    expressed = default == before + inner + after or (optional and not default)
    if turns.takes_system and turns.after_system.endswith(user) and expressed:
        return before, inner, after
    return "", default, ""


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


def _renderer(tokenizer: Any) -> tuple[Render, str]:
    """What renders chats without the tokens that the engine puts before prompts; and the rest of these.

    The rest is not in the template, so a prompt through FastChat has more than the model's own.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise Unreadable("the model has no chat template")

    def whole(messages: Sequence[Message]) -> str:
        return str(tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True))

    try:
        text = whole(_chat(1))
    except Exception as error:
        raise Unreadable(f"the model's chat template fails: {error}") from error
    prefix, rest = "", _put_before(tokenizer)
    while rest and text.startswith(prefix + rest[0]):
        prefix += rest.pop(0)
    return lambda messages: whole(messages).removeprefix(prefix), "".join(rest)


def _put_before(tokenizer: Any) -> list[str]:
    """The tokens that the engine's tokenizer puts before a prompt, as it does before any text."""
    text = "a"
    with_them, alone = (
        list(tokenizer(text).input_ids),
        list(tokenizer(text, add_special_tokens=False).input_ids),
    )
    for count in range(len(with_them)):
        if with_them[count : count + len(alone)] == alone:
            return [str(token) for token in tokenizer.convert_ids_to_tokens(with_them[:count])]
    return []


def _conversation(form: Format, turns: Turns, tokenizer: Any) -> dict[str, Any]:
    """The fields of FastChat's ``Conversation``."""
    stop, stop_ids = _stop(turns, tokenizer)
    return {
        "name": "chat_template",
        "system_template": f"{_escaped(form.before_system)}{{system_message}}{_escaped(form.after_system)}",
        "system_message": form.system,
        "roles": [form.user, form.assistant],
        "messages": [],
        "offset": 0,
        "sep_style": form.style,
        "sep": " " if form.style == _LLAMA2 else "",
        "sep2": form.after_answer,
        "stop_str": stop,
        "stop_token_ids": stop_ids,
    }


def _stop(turns: Turns, tokenizer: Any) -> tuple[str | None, list[int]]:
    """The special token that ends an answer, as text and as id."""
    end = turns.turn.lstrip()
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
