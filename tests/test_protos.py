"""The .proto files: stubs are current, names follow the rules, everything is described."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import google.rpc.status_pb2
import pytest
from google.protobuf import descriptor_pb2
from grpc_tools import protoc

PROTOS = Path(__file__).resolve().parent.parent / "protos"
FILES = sorted(path.relative_to(PROTOS).as_posix() for path in PROTOS.rglob("*.proto"))
MESSAGE, ENUM, SERVICE = 4, 5, 6


@pytest.fixture(scope="module")
def described(tmp_path_factory):
    """The descriptors of every file, with their comments."""
    out = tmp_path_factory.mktemp("protos") / "descriptors"
    well_known = Path(protoc.__file__).parent / "_proto"
    googleapis = Path(google.rpc.status_pb2.__file__).parents[2]
    code = protoc.main(
        [
            "protoc",
            f"--proto_path={PROTOS}",
            f"--proto_path={well_known}",
            f"--proto_path={googleapis}",
            "--include_source_info",
            f"--descriptor_set_out={out}",
            *FILES,
        ]
    )
    assert code == 0
    return descriptor_pb2.FileDescriptorSet.FromString(out.read_bytes()).file


def things(file):
    """(path, kind, name) of everything in a file that needs a comment."""
    for m, message in enumerate(file.message_type):
        yield from in_message((MESSAGE, m), message, message.name)
    for e, enum in enumerate(file.enum_type):
        yield (ENUM, e), "enum", enum.name
        for v, value in enumerate(enum.value):
            yield (ENUM, e, 2, v), "value", value.name
    for s, service in enumerate(file.service):
        yield (SERVICE, s), "service", service.name
        for r, method in enumerate(service.method):
            yield (SERVICE, s, 2, r), "rpc", method.name


def in_message(path, message, name):
    if message.options.map_entry:
        return
    yield path, "message", name
    for f, field in enumerate(message.field):
        yield (*path, 2, f), "field", f"{name}.{field.name}"
    synthetic = {field.oneof_index for field in message.field if field.proto3_optional}
    for o, oneof in enumerate(message.oneof_decl):
        if o not in synthetic:
            yield (*path, 8, o), "oneof", f"{name}.{oneof.name}"
    for n, nested in enumerate(message.nested_type):
        yield from in_message((*path, 3, n), nested, f"{name}.{nested.name}")


def test_committed_stubs_are_what_the_protos_give():
    done = subprocess.run(
        [sys.executable, str(PROTOS / "generate.py"), "--check"],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_everything_is_described_in_sentences(described):
    for file in described:
        comments = {tuple(one.path): one.leading_comments for one in file.source_code_info.location}
        for path, kind, name in things(file):
            comment = " ".join(comments.get(path, "").split())
            assert comment, f"{kind} {name} has no comment"
            assert comment[0].isupper() or comment[0].isdigit(), f"{kind} {name}: {comment}"
            assert comment.endswith("."), f"{kind} {name}: {comment}"


def test_a_package_lies_in_its_own_folder(described):
    for file in described:
        assert file.name.rpartition("/")[0] == file.package.replace(".", "/")
        assert re.fullmatch(r"[a-z]+\.v\d+", file.package)


def test_names_follow_the_rules(described):
    for file in described:
        for _, kind, name in things(file):
            last = name.rpartition(".")[2]
            pattern = {
                "field": r"[a-z][a-z0-9]*(_[a-z0-9]+)*",
                "oneof": r"[a-z][a-z0-9]*(_[a-z0-9]+)*",
                "value": r"[A-Z][A-Z0-9]*(_[A-Z0-9]+)*",
            }.get(kind, r"([A-Z][a-z0-9]+)+")
            assert re.fullmatch(pattern, last), f"{kind} {name}"


def test_enums_begin_with_unspecified_and_values_carry_their_prefix(described):
    for file in described:
        for enum in file.enum_type:
            prefix = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", enum.name).upper() + "_"
            assert enum.value[0].name == f"{prefix}UNSPECIFIED"
            assert enum.value[0].number == 0
            assert all(value.name.startswith(prefix) for value in enum.value)


def test_calls_have_requests_and_responses_of_their_own(described):
    services = [service for file in described for service in file.service]
    used = []
    for service in services:
        assert service.name.endswith("Service")
        for method in service.method:
            names = [method.input_type, method.output_type]
            assert [name.rpartition(".")[2] for name in names] == [
                f"{method.name}Request",
                f"{method.name}Response",
            ]
            used += names
    assert len(used) == len(set(used)) > 0


def test_numbers_of_fields_are_dense_so_that_none_was_lost(described):
    for file in described:
        for message in file.message_type:
            numbers = sorted(field.number for field in message.field)
            assert numbers == list(range(1, len(numbers) + 1)), message.name


def test_stubs_import_without_a_warning():
    done = subprocess.run(
        [
            sys.executable, "-W", "error", "-c",
            "from matchwright.v1 import match_service_pb2, match_service_pb2_grpc, records_pb2",
        ],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
