"""Templates that would take the server's processor, memory or secrets."""

import os

import psutil
import pytest

from airflow_arcadia.batch.input.template_process import TemplateError, TemplateProcess


def test_a_template_renders_over_a_row():
    template = TemplateProcess("{% for w in words %}{{ w | upper }} {% endfor %}{{ text }}")
    assert template.render({"words": ["a", "b"], "text": "ü"}) == "A B ü"
    with pytest.raises(TemplateError, match="undefined"):
        template.render({"words": []})
    assert template.render({"words": [], "text": "c"}) == "c"


@pytest.mark.parametrize("text", ["{{ open", "{{ a | no_such_filter }}"])
def test_a_template_that_is_not_valid_is_told_at_once(text: str):
    with pytest.raises(TemplateError):
        TemplateProcess(text)


@pytest.mark.parametrize(
    "text",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}{{ x }}",
        "{% set n = namespace(t=x) %}{% for a in range(99) %}{% set n.t = n.t ~ n.t %}{% endfor %}{{ n.t }}",
        "{{ x * 1500000000 }}",
        "{{ x.ljust(1500000000) }}",
        "{{ (9 + (x | length)) ** (10 ** 9) }}",
        "{% macro f(n) %}{{ f(n - 1) }}{{ f(n - 1) }}{% endmacro %}{{ f(x) }}",
    ],
)
def test_one_that_takes_too_much_is_an_error_and_the_next_row_is_rendered(text: str):
    template = TemplateProcess("{% if x %}" + text + "{% else %}ok{% endif %}", seconds=0.3)
    before = psutil.Process().memory_info().rss
    with pytest.raises(TemplateError):
        template.render({"x": "a"})
    assert template.render({"x": ""}) == "ok"
    assert psutil.Process().memory_info().rss - before < 50 * 2**20


@pytest.mark.parametrize("text", ["{{ 'a' * 1500000000 }}", "{{ 9 ** (10 ** 9) }}"])
def test_a_constant_that_takes_too_much_is_an_error(text: str):
    """Jinja computes constants while it compiles."""
    with pytest.raises(TemplateError):
        TemplateProcess(text, seconds=0.3).render({})


def test_the_process_has_no_secrets_and_ends_with_its_template(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    before = set(psutil.Process().children())
    template = TemplateProcess("{{ x }}")
    (child,) = set(psutil.Process().children()) - before
    assert "HF_TOKEN" not in child.environ()
    del template
    assert not child.is_running()
    assert os.getpid() != child.pid
