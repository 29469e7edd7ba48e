"""Every example of the documentation works, or says that no test runs it and why."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from airflow.dag_processing.dagbag import DagBag

from airflow_arcadia import strict_yaml
from airflow_arcadia.config import ArcadiaConfig
from tests.batch.fake_engine import serving
from tests.conftest import ROOT
from tests.docs.pages import Block, blocks, blocks_of, pages

SHELL, LANGUAGES = ("sh", "bash"), {"python", "sh", "bash", "json", "yaml", "text"}
RUN = {"cat", "export", "make", ".venv/bin/python", ".venv-worker/bin/python"}
"""Commands that the tests run: all as they are, but make, which only says what it would do."""
SERVER = "http://127.0.0.1:21002"


def unmarked(*languages: str) -> list[Block]:
    return [block for block in blocks(*languages) if block.reason_not_run is None]


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_every_block_names_its_language_and_why_it_is_not_run(page: Path):
    for block in blocks_of(page):
        assert block.language in LANGUAGES, f"{block}: {block.language or 'no language'}"
        assert block.reason_not_run is None or len(block.reason_not_run) > 10, f"{block}: no reason"


@pytest.mark.parametrize("block", unmarked("python"), ids=str)
def test_a_dag_can_be_loaded(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    path = tmp_path / "example.py"
    path.write_text(block.text, encoding="utf-8")
    loaded = DagBag(dag_folder=path)
    assert loaded.import_errors == {}
    dags = [dag for dag in loaded.dags.values() if dag.fileloc == str(path)]
    assert dags, "the example defines no DAG"
    assert all(dag.tasks for dag in dags)


@pytest.mark.parametrize("block", blocks("json"), ids=str)
def test_json_is_valid(block: Block):
    # "…" stands for what is left out.
    text = re.sub(r"([\[{])…([\]}])", r"\1\2", block.text)
    try:
        json.loads(text)
    except ValueError:
        for line in filter(None, text.splitlines()):
            json.loads(line)


@pytest.mark.parametrize("block", blocks("yaml"), ids=str)
def test_yaml_is_valid_and_arcadia_config_is_taken(block: Block):
    (document,) = strict_yaml.load_all(block.text)
    if "rayClusters" in document:
        assert ArcadiaConfig.from_yaml(block.text).ray_clusters


@pytest.mark.parametrize("block", unmarked(*SHELL), ids=str)
def test_a_command_is_one_that_the_tests_run(block: Block):
    assert {words[0] for words in commands(block.text)} <= RUN, f"{block}: run it, or say why not"


@pytest.mark.parametrize(
    "page", sorted({block.page for block in unmarked(*SHELL)}), ids=lambda page: str(page.relative_to(ROOT))
)
async def test_the_commands_of_a_page_can_be_run_one_after_the_other(page: Path, tmp_path: Path):
    for name in (".venv", ".venv-worker"):
        python = tmp_path / name / "bin" / "python"
        python.parent.mkdir(parents=True)
        python.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n')
        python.chmod(0o755)
    script = ["set -eu", f'make() {{ command make --dry-run --directory {shlex.quote(str(ROOT))} "$@"; }}']
    script += [block.text for block in unmarked(*SHELL) if block.page == page]
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "p0"}\n')
    async with serving() as engine:
        engine.models = ["qwen"]
        text = "\n".join(script).replace(SERVER, engine.url)
        process = await asyncio.create_subprocess_exec(
            "bash",
            "-c",
            text,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        said, _ = await process.communicate()
    assert process.returncode == 0, said.decode()


def commands(text: str) -> list[list[str]]:
    """The words of each command of a block, without here-documents."""
    text = re.sub(r"<<'(\w+)'\n.*?^\1$", "", text, flags=re.MULTILINE | re.DOTALL).replace("\\\n", " ")
    lexer = shlex.shlex(text, posix=True, punctuation_chars=True)
    lexer.whitespace = " \t"  # a line's end separates commands
    lexer.whitespace_split = True
    found: list[list[str]] = [[]]
    for token in lexer:
        if set(token) <= set("\n;&|"):
            found.append([])
        else:
            found[-1] += token.split("\n") if "\n" in token else [token]
    return [words for words in found if words]
