"""What FastChat's API server makes of a chat template: exact prompts, or the worker says otherwise."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from airflow_arcadia.runtime.fastchat import conversation
from airflow_arcadia.runtime.fastchat.conversation import Described, describe
from tests.conftest import ROOT
from tests.runtime.fastchat.chat_templates import FAMILIES, OTHERS, Tokenizer

SYSTEM = {"role": "system", "content": "Answer {briefly}."}
OF_THE_NAME = {"name": "of the name"}
ALL = FAMILIES | OTHERS


def chat(turns: int) -> list[dict[str, str]]:
    messages = []
    for number in range(turns):
        messages.append({"role": "user", "content": f"Question {number}?"})
        messages.append({"role": "assistant", "content": f"Answer {number}."})
    return messages[:-1]


def fastchats_prompt(conv: dict[str, Any], messages: list[dict[str, str]]) -> str:
    """As ``Conversation.get_prompt`` builds it for these styles of separators."""
    style, separators = conv["sep_style"], (conv["sep"], conv["sep2"])
    system = next((m["content"] for m in messages if m["role"] == "system"), conv["system_message"])
    text = conv["system_template"].format(system_message=system)
    if style != 5 and not system:
        text = {7: "[INST] ", 16: ""}[style]
    for number, message in enumerate(m for m in messages if m["role"] != "system"):
        role = conv["roles"][message["role"] == "assistant"]
        if style == 5:
            text += role + message["content"] + separators[number % 2]
        elif style == 16:
            text += f"{role}\n{message['content']}"
        elif number == 0:
            text += f"{message['content']} "
        else:
            text += f"{role} {message['content']}{separators[number % 2]}"
    return text + conv["roles"][1]


@pytest.fixture
def described(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Described:
    monkeypatch.setattr(conversation, "_by_name", lambda model: OF_THE_NAME)
    return describe(Tokenizer(ALL[request.param]), request.param)


@pytest.mark.parametrize(("family", "described"), [(name, name) for name in ALL], indirect=["described"])
def test_the_prompts_of_a_family_are_exact_or_it_is_said_that_they_are_not(family: str, described: Described):
    exact, tokenizer = ALL[family].exact, Tokenizer(ALL[family])
    assert (described.caveat == "") is (exact == "all")
    if exact == "none":
        assert described.conversation == OF_THE_NAME
        assert "of the name" in described.caveat
        return
    for turns in (1, 2, 3, 4):
        for system in ([], [SYSTEM]) if exact == "all" else ([],):
            messages = [*system, *chat(turns)]
            try:
                wanted = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            except ValueError:
                continue  # the template takes no system message
            found = fastchats_prompt(described.conversation, messages)
            assert "".join(tokenizer.added) + found == wanted
    assert described.conversation["stop_str"] == ALL[family].stop


FASTCHAT_ITSELF = """
from fastchat.conversation import Conversation, SeparatorStyle
from airflow_arcadia.runtime.fastchat.conversation import describe
from chat_templates import FAMILIES, Tokenizer
for name, family in FAMILIES.items():
    tokenizer = Tokenizer(family)
    fields = describe(tokenizer, name).conversation
    for turns in (1, 2, 3):
        chat = [{"role": "user", "content": "one"}]
        for number in range(1, turns):
            chat += [{"role": "assistant", "content": "yes"}, {"role": "user", "content": f"and {number}"}]
        made = Conversation(**{**fields, "messages": [], "sep_style": SeparatorStyle(fields["sep_style"])})
        for message in chat:
            made.append_message(made.roles[message["role"] == "assistant"], message["content"])
        made.append_message(made.roles[1], None)
        wanted = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        assert "".join(tokenizer.added) + made.get_prompt() == wanted, (name, made.get_prompt(), wanted)
print("all of them")
"""


def test_fastchat_itself_builds_the_prompts_of_every_family(worker_python: str):
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), str(ROOT)])}
    told = subprocess.run(
        [worker_python, "-c", FASTCHAT_ITSELF], env=env, capture_output=True, text=True, check=False
    )
    assert told.stdout == "all of them\n", told.stderr


def test_twelve_families_are_in_the_table_and_most_are_exact():
    assert len(FAMILIES) == 12
    assert [family.exact for family in FAMILIES.values()].count("none") == 0


def test_a_token_that_the_engine_puts_before_prompts_and_the_template_does_not_is_told():
    described = describe(Tokenizer(FAMILIES["zephyr"]._replace(added=("<s>",))), "zephyr")
    assert described.conversation["name"] == "chat_template"
    assert described.caveat.startswith("the engine puts '<s>' before prompts")


def test_a_model_without_a_chat_template_gets_fastchats_own_and_it_is_said(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(conversation, "_by_name", lambda model: {"name": model})
    tokenizer = Tokenizer(FAMILIES["qwen3"])
    tokenizer.chat_template = None
    described = describe(tokenizer, "base")
    assert described.conversation == {"name": "base"}
    assert "no chat template" in described.caveat
