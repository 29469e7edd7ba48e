"""A server without a GPU looks at its model's class itself: no second import of vLLM at a cold start."""

import os
import subprocess
from pathlib import Path

import pytest

from airflow_arcadia.runtime.vllm_patches.gate import SERVER_VARIABLE

TELL = """
import os, subprocess, sys
started = []
run = subprocess.run
def counted(words, *more, **fields):
    started.extend(word for word in words if "registry" in word)
    return run(words, *more, **fields)
subprocess.run = counted
from vllm.plugins import load_general_plugins
load_general_plugins()
from vllm.model_executor.models import registry
look = registry._LazyRegisteredModel("vllm.model_executor.models.llama", "LlamaForCausalLM")
found = look.inspect_model_cls()
print(found.architecture, found.is_text_generation_model, started)
"""


@pytest.mark.engine
@pytest.mark.parametrize(("env", "asked_another"), [({SERVER_VARIABLE: "w"}, False), ({}, True)])
def test_with_an_empty_cache_no_other_process_is_asked(
    worker_python: str, tmp_path: Path, env: dict[str, str], asked_another: bool
):
    told = subprocess.run(
        [worker_python, "-c", TELL],
        env={**os.environ, "VLLM_CACHE_ROOT": str(tmp_path), **env},
        capture_output=True,
        text=True,
        check=False,
    )
    assert told.returncode == 0, told.stderr[-2000:]
    last = told.stdout.splitlines()[-1]
    assert last.startswith("LlamaForCausalLM True")
    assert ("vllm.model_executor.models.registry" in last) is asked_another
