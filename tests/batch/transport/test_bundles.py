"""The lines of a bundle."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_arcadia.batch.openai_format import CHAT, COMPLETIONS
from airflow_arcadia.batch.transport import bundles
from airflow_arcadia.batch.transport.bundles import PATH, Answers, is_told, pack, pack_answer, unpack
from airflow_arcadia.batch.transport.http_client import BadAnswer, Response


def test_a_server_reads_the_rows_that_were_packed():
    rows = [(CHAT, '{"a": "ä \\n \u2028"}'.encode()), (COMPLETIONS, b"{}")]
    assert unpack(pack(rows)) == rows


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (Response(200, b'{"path": "%b"}' % PATH.encode(), None), True),
        (Response(404, b'{"path": "%b"}' % PATH.encode(), None), False),
        (Response(200, b'{"object": "list"}', None), False),
        (Response(200, b"[]", None), False),
        (Response(200, b"<html>", None), False),
    ],
)
def test_a_server_that_answers_everything_with_200_is_not_taken_for_one_with_bundles(answer, told):
    assert is_told(answer) is told


def test_a_line_without_json_is_refused():
    with pytest.raises(ValueError, match="line 1"):
        unpack(b"/v1/completions {}\n/v1/completions")


@given(
    st.lists(
        st.tuples(st.integers(100, 599), st.text(st.characters(codec="utf-8")), st.none() | st.just("7"))
    ),
    st.integers(1, 40),
)
def test_answers_are_read_wherever_the_chunks_end(parts, size):
    answers = [Response(status, text.replace("\n", "").encode(), after) for status, text, after in parts]
    data = b"".join(pack_answer(number, answer) for number, answer in enumerate(answers))
    reader, read = Answers(), []
    for begin in range(0, len(data), size):
        read += reader.feed(data[begin : begin + size])
    assert read == list(enumerate(answers))


def test_a_message_of_several_lines_becomes_one():
    ((number, answer),) = Answers().feed(pack_answer(3, Response(502, b"Bad\nGateway", "Wed, 21 Oct")))
    assert (number, answer) == (3, Response(502, b"Bad Gateway", "Wed, 21 Oct"))


@pytest.mark.parametrize(
    "line", [b"<html> <body> a b", b"0 200", b"-1 200 - {}", b"2 200 - {}", b"0 OK - {}"]
)
def test_a_line_that_is_not_an_answer_to_a_row_is_an_error(line):
    with pytest.raises(BadAnswer, match="wrong line"):
        list(Answers(2).feed(line + b"\n"))


def test_a_second_answer_to_a_row_is_an_error():
    with pytest.raises(BadAnswer, match="wrong line"):
        list(Answers(2).feed(b"0 200 - {}\n0 200 - {}\n"))


def test_a_line_without_an_end_is_refused_before_it_fills_the_memory(monkeypatch):
    monkeypatch.setattr(bundles, "MAX_ANSWER_BYTES", 1000)
    reader = Answers(1)
    assert list(reader.feed(b"0 200 - " + b"x" * 900)) == []
    with pytest.raises(BadAnswer, match="more than 1000 bytes"):
        list(reader.feed(b"x" * 200))
