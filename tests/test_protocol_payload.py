"""What goes through the server as it is."""

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

from chatserver.errors import BadRequest
from chatserver.protocol.payload import DEPTH, body_of, payload, with_body
from tests.centrifuge import JSON, TEXT
from tests.fakes import PATIENT

GOOD = {
    "object": ('{"body":"hi"}', '{"body":"hi"}'),
    "space between tokens": (' \r\n{\t"a" : [ 1 , 2 ] ,\n"b":{ } }\n', '{"a":[1,2],"b":{}}'),
    "space in a text": ('" a  b "', '" a  b "'),
    "escapes stay": (r'"\u00e9\n\/"', r'"\u00e9\n\/"'),
    "escaped NUL stays": (r'"\u0000"', r'"\u0000"'),
    "surrogate pair": (r'"\ud83d\ude00"', r'"\ud83d\ude00"'),
    "null": ("null", "null"),
    "false": ("false", "false"),
    "text": ('"é😀"', '"é😀"'),
    "line separators of JavaScript": ('"\u2028\u2029"', '"\u2028\u2029"'),
    "number": ("0", "0"),
    "minus zero": ("-0", "-0"),
    "zeros behind the point": ("1.00", "1.00"),
    "exponent": ("1E+05", "1E+05"),
    "beyond a double": ("[1e999,-1e999]", "[1e999,-1e999]"),
    "long": ("12345678901234567890.12345678901234567890", "12345678901234567890.12345678901234567890"),
    "5000 digits": ("9" * 5000, "9" * 5000),
    "the same key twice": ('{"a":1,"a":2}', '{"a":1,"a":2}'),
    "brackets in a text": (json.dumps('"[{\\' * 100), json.dumps('"[{\\' * 100)),
    "brackets one behind the other": ("[" + "[]," * 100 + "{}]", "[" + "[]," * 100 + "{}]"),
}

BAD = {
    "nothing": b"",
    "space": b" ",
    "word": b"hello",
    "cut off": b'{"a":',
    "two": b"1 2",
    "trailing comma": b"[1,]",
    "comment": b"1//",
    "NaN": b"NaN",
    "Infinity": b'{"a":Infinity}',
    "minus Infinity": b"-Infinity",
    "leading zero": b"01",
    "raw NUL": b'"\0"',
    "raw line break": b'"a\nb"',
    "high surrogate": rb'"\ud800"',
    "high surrogate and a letter": rb'"\ud800abcdef"',
    "low surrogate": rb'"\udc00"',
    "surrogate in a key": rb'{"\ud800":1}',
    "surrogate as bytes": b'"\xed\xa0\x80"',
    "not UTF-8": b'"\xff"',
    "key not UTF-8": b'{"\xff":1}',
    "byte order mark": b"\xef\xbb\xbf1",
    "binary": b"\x08\x01",
}


@pytest.mark.parametrize(("raw", "line"), GOOD.values(), ids=GOOD.keys())
def test_json_of_any_kind_is_put_on_one_line(raw: str, line: str) -> None:
    assert payload(raw.encode()) == line
    assert payload(Raw(raw)) == line


@pytest.mark.parametrize("raw", BAD.values(), ids=BAD.keys())
def test_anything_else_is_a_bad_request(raw: bytes) -> None:
    with pytest.raises(BadRequest, match=r"^data is not valid JSON$"):
        payload(raw)


@pytest.mark.parametrize(("opening", "end", "levels"), [("[", "]", 1), ('{"a":', "}", 1), ('[{"[":', "}]", 2)])
@pytest.mark.parametrize("inside", ["1", '"]]]]}}}}"', '"[[[[{{{{\\""'])
def test_a_payload_is_so_deep_and_no_deeper(opening: str, end: str, levels: int, inside: str) -> None:
    good = opening * (DEPTH // levels) + inside + end * (DEPTH // levels)
    assert payload(good.encode()) == good
    for bad in (f"[{good}]", f'{{"a":{good}}}', f'{{"a":{good},"a":1}}', f"[[],{good}]"):
        with pytest.raises(BadRequest, match=rf"^data has more than {DEPTH} levels$"):
            payload(bad.encode())


@pytest.mark.parametrize("raw", [b"[" * 60_000, b"[" * 30_000 + b"]" * 30_000, b'{"a":' * 10_000])
def test_no_depth_is_too_much_to_be_refused(raw: bytes) -> None:
    with pytest.raises(BadRequest):
        payload(raw)


@PATIENT
@given(JSON, st.sampled_from([None, 0, 2, "\t"]), st.booleans())
def test_a_payload_says_the_same_in_one_line(value: Any, indent: int | str | None, escaped: bool) -> None:
    text = json.dumps(value, indent=indent, ensure_ascii=escaped)
    assert payload(text.encode()) == json.dumps(value, separators=(",", ":"), ensure_ascii=escaped)


@PATIENT
@given(st.binary() | TEXT.map(str.encode))
def test_bytes_are_a_payload_or_a_bad_request(raw: bytes) -> None:
    with contextlib.suppress(BadRequest):
        line = payload(raw)
        json.loads(line)
        assert "\n" not in line
        assert payload(line.encode()) == line


@pytest.mark.parametrize(
    ("line", "body"),
    [
        ('{"body":"hi"}', "hi"),
        ('{"body":""}', ""),
        ('{"a":1e999,"body":"hi","b":["body"]}', "hi"),
        ('{"body":"a","body":"b"}', "b"),
        ('{"body":1,"body":"b"}', "b"),
        (r'{"b\u006fdy":"\u00e9\ud83d\ude00"}', "é😀"),
        ('{"body":"a","body":1}', None),
        ('{"body":null}', None),
        ('{"body":["a"]}', None),
        ('{"Body":"a"}', None),
        ('{"a":{"body":"b"}}', None),
        ("{}", None),
        ('[{"body":"a"}]', None),
        ('"body"', None),
        ("null", None),
        ("1e999", None),
        ("", None),
    ],
)
def test_the_body_of_a_payload_is_its_text_of_that_name(line: str, body: str | None) -> None:
    assert body_of(line) == body


@pytest.mark.parametrize(
    ("line", "other"),
    [
        ('{"body":"hi"}', '{"body":"é\\n"}'),
        ('{"a":1.00,"body":"hi","b":1e999}', '{"a":1.00,"body":"é\\n","b":1e999}'),
        ('{"body":1,"a":2,"body":"b"}', '{"body":"é\\n","a":2}'),
        ('{"a":[1,{"body":"b"}]}', '{"a":[1,{"body":"b"}],"body":"é\\n"}'),
        ("{}", '{"body":"é\\n"}'),
        ("[1]", '{"body":"é\\n"}'),
        ('"hi"', '{"body":"é\\n"}'),
        ("", '{"body":"é\\n"}'),
    ],
)
def test_a_payload_with_another_body_keeps_the_rest(line: str, other: str) -> None:
    assert with_body(line, "é\n") == other


@PATIENT
@given(JSON, TEXT)
def test_the_body_that_was_put_in_is_the_body(value: Any, body: str) -> None:
    line = with_body(payload(json.dumps(value).encode()), body)
    assert body_of(line) == body
    assert payload(line.encode()) == line
    assert json.loads(line) == ({**value, "body": body} if isinstance(value, dict) else {"body": body})
