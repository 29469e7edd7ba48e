"""YAML whose mistakes are errors."""

import pytest
import yaml

from airflow_arcadia.strict_yaml import MAX_NODES, load_all


def test_documents_are_read_and_empty_ones_left_out():
    assert load_all("a: 1\n---\n---\n- b\n") == [{"a": 1}, ["b"]]


def test_an_anchor_may_be_used_and_merged():
    text = "base: &base {cpu: 1, memory: 2}\nlimits: *base\nmore: {<<: *base, cpu: 3}"
    assert load_all(text)[0]["more"] == {"cpu": 3, "memory": 2}


def test_a_duplicate_key_is_an_error_with_its_line():
    with pytest.raises(yaml.YAMLError, match=r"(?s)the key 'b' is there twice.*line 3"):
        load_all("a:\n  b: 1\n  b: 2\n")


def test_aliases_that_stand_for_gigabytes_are_refused():
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    with pytest.raises(yaml.YAMLError, match=f"more than {MAX_NODES} values"):
        load_all("\n".join(lines))


def test_a_document_that_contains_itself_is_refused():
    with pytest.raises(yaml.YAMLError, match="levels deep"):
        load_all("a: &a [*a]")


def test_a_number_too_long_to_convert_is_an_error_of_the_file():
    with pytest.raises(yaml.YAMLError, match="digits"):
        load_all(f"a: {'9' * 5000}")


def test_no_python_object_is_made():
    with pytest.raises(yaml.YAMLError, match="python/object"):
        load_all("!!python/object/apply:os.system ['true']")
