"""The text format of config.pbtxt: what is written and read agrees with protobuf's own library."""

from __future__ import annotations

import pytest

pytest.importorskip("tritonclient.grpc", reason="needs the extra [triton]")

from google.protobuf import text_format
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import model_config_pb2 as triton

from matchwright.engine.errors import InvalidData
from matchwright.engine.models import pbtxt
from matchwright.engine.models.pbtxt import Entries, EnumName

TEXTS = st.text(max_size=30)
CONFIGS = st.fixed_dictionaries(
    {
        "name": TEXTS,
        "max_batch_size": st.integers(0, 2**31 - 1),
        "input": st.lists(
            st.fixed_dictionaries(
                {
                    "name": TEXTS,
                    "data_type": st.sampled_from(["TYPE_FP32", "TYPE_INT64"]).map(EnumName),
                    "dims": st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=3),
                    "optional": st.booleans(),
                }
            ),
            max_size=3,
        ),
        "version_policy": st.just({"all": {}}),
        "parameters": st.dictionaries(TEXTS, st.builds(lambda t: {"string_value": t}, TEXTS)).map(
            Entries
        ),
    }
)


@given(CONFIGS)
def test_what_is_written_is_what_protobuf_reads(config):
    read = text_format.Parse(pbtxt.render(config), triton.ModelConfig())
    assert read.name == config["name"]
    assert read.max_batch_size == config["max_batch_size"]
    assert read.HasField("version_policy")
    for one, wanted in zip(read.input, config["input"], strict=True):
        assert (one.name, list(one.dims)) == (wanted["name"], wanted["dims"])
        assert triton.DataType.Name(one.data_type) == wanted["data_type"]
        assert one.optional == wanted["optional"]
    told = {key: {"string_value": value.string_value} for key, value in read.parameters.items()}
    assert told == config["parameters"]


def _lists(message):
    """What was rendered, in the form in which it is read: every field a list."""
    found = {}
    for name, value in message.items():
        if isinstance(value, Entries):
            value = [{"key": key, "value": item} for key, item in value.items()]
        values = value if isinstance(value, list) else [value]
        read = [_lists(one) if isinstance(one, dict) else one for one in values]
        if read:
            found[name] = read
    return found


@given(CONFIGS)
def test_what_is_written_is_read_back(config):
    assert pbtxt.parse(pbtxt.render(config)) == _lists(config)


@given(CONFIGS)
def test_what_protobuf_writes_is_read(config):
    """Another writer of the format: protobuf's own, in its long and its short form."""
    message = text_format.Parse(pbtxt.render(config), triton.ModelConfig())
    for one_line in (False, True):
        read = pbtxt.parse(text_format.MessageToString(message, as_one_line=one_line))
        assert read.get("name", [""]) == [config["name"]]
        inputs = [one.get("name", [""])[0] for one in read.get("input", [])]
        assert inputs == [one["name"] for one in config["input"]]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("", {}),
        ("# only a comment", {}),
        ("name: 'a' max_batch_size: 8", {"name": ["a"], "max_batch_size": [8]}),
        ('name: "a" "b"\n  "c"', {"name": ["abc"]}),
        (r'name: "\x41\102\n\"\\"', {"name": ['AB\n"\\']}),
        (r'name: "\303\244"', {"name": ["ä"]}),
        (
            "input < name: 'x'; dims: [1, 2], dims: 3 >",
            {"input": [{"name": ["x"], "dims": [1, 2, 3]}]},
        ),
        ("input: [{name: 'x'}, {name: 'y'}]", {"input": [{"name": ["x"]}, {"name": ["y"]}]}),
        ("max_batch_size: 0x10", {"max_batch_size": [16]}),
        ("max_batch_size: 010", {"max_batch_size": [8]}),
        ("input { dims: -1 optional: true }", {"input": [{"dims": [-1], "optional": [True]}]}),
        ("output {}", {"output": [{}]}),
    ],
)
def test_forms_that_operators_write(text, wanted):
    text_format.Parse(text, triton.ModelConfig())  # protobuf takes them too
    assert pbtxt.parse(text) == wanted


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("}", 1),
        ("name", 1),
        ("name: ", 1),
        ("\n\ninput {", 3),
        ("input {\n name: 'x'\n>", 3),
        ("name: 'a", 1),
        ("input: [1, 2", 1),
        ("name 'a'", 1),
        ("\n§", 2),
        ('"name": "a"', 1),
        ("\nmax_batch_size: " + "9" * 5_000, 2),
    ],
)
def test_what_is_no_text_format_names_the_line(text, line):
    with pytest.raises(text_format.ParseError):
        text_format.Parse(text, triton.ModelConfig())
    with pytest.raises(InvalidData, match=f"c.pbtxt, line {line}:"):
        pbtxt.parse(text, "c.pbtxt")


@given(st.text(st.sampled_from("{}[]<>:,;#\"'\\ \nab1-.x0")) | st.text())
def test_any_text_is_read_or_refused(text):
    try:
        read = pbtxt.parse(text)
    except InvalidData:
        return
    assert isinstance(read, dict)


def test_depth_is_bounded():
    with pytest.raises(InvalidData, match="this deep"):
        pbtxt.parse("a {" * 10_000)


def test_only_what_a_config_holds_is_written():
    with pytest.raises(TypeError, match="whole numbers"):
        pbtxt.render({"delay": 0.5})
