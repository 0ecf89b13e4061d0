"""A server that speaks Triton's protocol and lies: each answer is the right one, or an error."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

pytest.importorskip("tritonclient.grpc", reason="needs the extra [triton]")

import grpc
from tritonclient.grpc import service_pb2 as pb

from matchwright.engine.errors import ModelWrong
from matchwright.engine.models.refs import ModelRef, TritonConfig
from matchwright.engine.models.triton import Triton

REF = ModelRef("model", 1)
ROWS, WIDTH = 3, 4
TRUTH = np.arange(ROWS * WIDTH, dtype=np.float32).reshape(ROWS, WIDTH)
RAW = TRUTH.tobytes()
GARBAGE = b"\xff\xff\xff\xff\x01garbage"


def infer(shape=(ROWS, WIDTH), datatype="FP32", raw=(RAW,), outputs=1):
    """An answer of the model."""
    one = {"name": "y", "datatype": datatype, "shape": shape}
    told = pb.ModelInferResponse(model_name="model", model_version="1", outputs=[one] * outputs)
    told.raw_output_contents.extend(raw)
    return told.SerializeToString()


def metadata(*shape):
    """What the server says that the model's output is."""
    one = {"name": "y", "datatype": "FP32", "shape": shape}
    return pb.ModelMetadataResponse(outputs=[one]).SerializeToString()


class Liar(grpc.GenericRpcHandler):
    """Answers each call with bytes, whatever they are."""

    def __init__(self):
        self.answers = {}
        self.tell_the_truth()

    def tell_the_truth(self):
        self.answers = {"ModelMetadata": metadata(-1, WIDTH), "ModelInfer": infer()}

    def service(self, details):
        name = details.method.rpartition("/")[2]
        if name not in self.answers:
            return None
        return grpc.unary_unary_rpc_method_handler(lambda _request, _context: self.answers[name])


@pytest.fixture(scope="module")
def serving():
    liar = Liar()
    with ThreadPoolExecutor(2) as threads:
        server = grpc.server(threads, handlers=[liar])
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        try:
            with Triton(TritonConfig(url=f"127.0.0.1:{port}", shared_memory="off")) as client:
                yield liar, client
        finally:
            server.stop(None).wait()


@pytest.fixture
def liar(serving):
    serving[0].tell_the_truth()
    return serving[0]


@pytest.fixture
def client(serving, liar):
    with Triton(serving[1].config) as client:
        yield client


def ask(client):
    inputs = {"x": np.zeros((ROWS, WIDTH), np.float32)}
    return client.infer_blocking(REF, inputs, ["y"], deadline=time.monotonic() + 60)["y"]


def test_the_truth_is_taken(client):
    np.testing.assert_array_equal(ask(client), TRUTH)


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (GARBAGE, "cannot be read"),
        (b"", "left out y"),
        (infer(shape=(-ROWS, -WIDTH)), "48 bytes"),
        (infer(shape=(2**62, 2**62)), "48 bytes"),
        (infer(shape=(-(2**63), WIDTH)), "48 bytes"),
        (infer(shape=(ROWS, WIDTH, *[1] * 100)), "a shape that cannot be"),
        (infer(shape=()), "48 bytes"),
        (infer(shape=(0, WIDTH), raw=[b""]), "expected"),
        (infer(raw=[RAW[:-1]]), "47 bytes"),
        (infer(raw=[]), "0 bytes"),
        (infer(raw=[RAW, bytes(48)], outputs=2), "y twice"),
        (infer(datatype="BYTES"), "of BYTES"),
        (infer(datatype="INT32"), "of int32"),
        (infer(raw=[np.full_like(TRUTH, np.nan).tobytes()]), "NaN"),
    ],
    ids=lambda one: one if isinstance(one, str) else "",
)
def test_a_wrong_answer_is_an_error(client, liar, answer, why):
    liar.answers["ModelInfer"] = answer
    with pytest.raises(ModelWrong, match=why):
        ask(client)
    liar.answers["ModelInfer"] = infer()
    np.testing.assert_array_equal(ask(client), TRUTH)


@pytest.mark.parametrize(
    ("told", "why"),
    [
        (GARBAGE, "cannot be read"),
        (b"", "no output y"),
        (metadata(), "expected"),
        (metadata(-1, 2**40), "expected"),
    ],
    ids=lambda one: one if isinstance(one, str) else "",
)
def test_a_wrong_declaration_is_an_error(client, liar, told, why):
    liar.answers["ModelMetadata"] = told
    with pytest.raises(ModelWrong, match=why):
        ask(client)


def _index(version):
    models = [{"name": "model", "version": version, "state": "READY"}]
    return pb.RepositoryIndexResponse(models=models).SerializeToString()


@pytest.mark.parametrize(
    ("name", "answer", "question"),
    [
        ("RepositoryIndex", GARBAGE, lambda client: client.index()),
        ("RepositoryIndex", _index("latest"), lambda client: client.versions("model")),
        ("ModelConfig", GARBAGE, lambda client: client.config_of(REF)),
        ("ModelStatistics", GARBAGE, lambda client: client.statistics(REF)),
        ("ModelStatistics", b"", lambda client: client.statistics(REF)),
    ],
    ids=range(5),
)
def test_what_a_server_says_of_itself_is_read_or_wrong(client, liar, name, answer, question):
    liar.answers[name] = answer
    with pytest.raises(ModelWrong, match="cannot be read"):
        question(client)


def test_a_server_that_says_nothing_readable_is_not_ready(client, liar):
    liar.answers["ServerReady"] = liar.answers["ModelReady"] = GARBAGE
    assert not client.ready()
    assert not client.ready(REF)
