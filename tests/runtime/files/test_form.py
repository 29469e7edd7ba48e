"""The form of an upload, in whatever pieces it comes."""

import pytest

from airflow_arcadia.runtime.files.form import FormError, UploadForm

TYPE = b"multipart/form-data; boundary=edge"


def part(name: str, content: bytes, filename: str | None = None) -> bytes:
    named = f'; filename="{filename}"' if filename is not None else ""
    return (
        f'--edge\r\nContent-Disposition: form-data; name="{name}"{named}\r\n\r\n'.encode() + content + b"\r\n"
    )


def form_of(*parts: bytes) -> bytes:
    return b"".join(parts) + b"--edge--\r\n"


def read(data: bytes, step: int) -> tuple[UploadForm, bytes]:
    form = UploadForm(TYPE)
    content = b"".join(form.feed(data[at : at + step]) for at in range(0, len(data), step))
    form.finish()
    return form, content


@pytest.mark.parametrize("step", [1, 2, 7, 64, 10_000])
def test_a_form_is_the_same_in_pieces_of_any_size(step: int):
    content = b'{"a": 1}\r\n--edg\r\n\r\n--edge' + bytes(range(256)) + b"\n"
    form, found = read(
        form_of(part("purpose", b"batch"), part("file", content, "rows ü.jsonl"), part("x", b"y")), step
    )
    assert found == content
    assert form.filename == "rows ü.jsonl"
    assert form.fields == {"purpose": "batch", "x": "y"}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no form",
        part("file", b"rows", "a")[:-2],
        form_of(part("purpose", b"batch")),
        form_of(part("file", b"1", "a"), part("file", b"2", "b")),
        form_of(part("purpose", b"x" * 5000)),
        form_of(part("purpose", b"\xff")),
        form_of(*[part("a", b"b")] * 40),
        b"--edge\r\n" + b"A: " + b"b" * 100_000 + b"\r\n\r\n",
        b"--other\r\n\r\n",
    ],
)
def test_what_is_not_the_form_of_an_upload_says_so(data: bytes):
    with pytest.raises(FormError):
        read(data, 1000)


@pytest.mark.parametrize(
    "kind", [b"", b"application/json", b"multipart/form-data", b"multipart/form-data; boundary=", b"\xff"]
)
def test_a_request_that_is_no_form_is_refused(kind: bytes):
    with pytest.raises(FormError, match="multipart/form-data"):
        UploadForm(kind)
