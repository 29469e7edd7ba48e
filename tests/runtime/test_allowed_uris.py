"""Which URIs a client may name."""

from pathlib import Path

import pytest

from airflow_arcadia.exceptions import ArcadiaConfigError, BatchInputError
from airflow_arcadia.runtime.allowed_uris import AllowedUris

ALLOWED = AllowedUris(["s3://bucket/prompts", "https://data.example.com/sets/", "memory://in"])


@pytest.mark.parametrize(
    "uri",
    [
        "s3://bucket/prompts/a.jsonl",
        "s3://bucket/prompts/b/[1]*.jsonl",
        "https://data.example.com/sets/a?b=c",
    ],
)
def test_what_is_below_a_prefix_may_be_read(uri: str):
    ALLOWED.check_input(uri)


@pytest.mark.parametrize(
    "uri",
    [
        "s3://bucket/prompts-2/a.jsonl",
        "s3://bucket/prompts",
        "s3://bucket/prompts/",
        "s3://bucket/prompts/../secrets/a.jsonl",
        "s3://bucket/prompts/%2e%2e/secrets/a.jsonl",
        "s3://bucket/prompts/a\\..\\b",
        "s3://user@bucket/prompts/a.jsonl",
        "S3://bucket/prompts/a.jsonl",
        "s3:///bucket/prompts/a",
        "gs://bucket/prompts/a.jsonl",
        "simplecache::s3://bucket/prompts/a.jsonl",
        "zip://x::s3://bucket/prompts/a.zip",
        "https://data.example.com.evil.org/sets/a",
        "https://data.example.com:444/sets/a",
        "http://data.example.com/sets/a",
        "https://169.254.169.254/latest/meta-data",
        "/etc/passwd",
        "file:///etc/passwd",
        "file:/etc/passwd",
        "local:/etc/passwd",
        "~/a.jsonl",
        "data:,abc",
        "prompts/a.jsonl",
        "",
        "s3://bucket/prompts/a\n.jsonl",
        "s3://bucket/prompts/" + "a" * 5000,
    ],
)
def test_everything_else_is_refused_without_a_word_of_what_is_there(uri: str):
    for check in (ALLOWED.check_input, ALLOWED.check_output):
        with pytest.raises(BatchInputError):
            check(uri)


def test_without_prefixes_nothing_is_allowed():
    with pytest.raises(BatchInputError):
        AllowedUris([]).check_input("s3://bucket/a")


def test_local_paths_are_compared_after_their_links(tmp_path: Path):
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    inside.mkdir()
    outside.mkdir()
    (outside / "secret.jsonl").write_text("{}")
    (inside / "link.jsonl").symlink_to(outside / "secret.jsonl")
    (inside / "folder").symlink_to(outside)
    (tmp_path / "alias").symlink_to(inside)
    for prefix in (str(inside), f"file://{inside}", str(tmp_path / "alias")):
        allowed = AllowedUris([prefix])
        allowed.check_input(str(inside / "a.jsonl"))
        allowed.check_output(f"file://{inside}/new/a.jsonl")
        for path in ("link.jsonl", "folder/secret.jsonl", "../outside/secret.jsonl", "folder/new.jsonl", ""):
            with pytest.raises(BatchInputError):
                allowed.check_output(f"{inside}/{path}")


def test_an_http_url_is_never_an_output():
    with pytest.raises(BatchInputError, match="cannot be written"):
        ALLOWED.check_output("https://data.example.com/sets/a")


@pytest.mark.parametrize("prefix", ["", "prompts", "~/prompts", "a::s3://b", "s3://bucket/../b"])
def test_a_prefix_that_is_not_a_folder_is_an_error_of_the_launch(prefix: str):
    with pytest.raises(ArcadiaConfigError, match="allowed_uris"):
        AllowedUris([prefix])
