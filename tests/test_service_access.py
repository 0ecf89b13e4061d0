"""Health, reflection, tokens and TLS."""

from __future__ import annotations

import hashlib
import subprocess

import grpc
import pytest
import service_cases
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from service_cases import AS_OF, SERVICE, job_id, person_id

from matchwright import clients
from matchwright.clients import Client
from matchwright.engine.config import ServerConfig
from matchwright.engine.service import running

client = service_cases.client
folder = service_cases.folder
server = service_cases.server


# ── Health, reflection, tokens, TLS ───────────────────────────────────────────────────────────


def test_health_is_told_for_each_service(server):
    with grpc.insecure_channel(server) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for name in ("", SERVICE):
            reply = health.Check(health_pb2.HealthCheckRequest(service=name), timeout=10.0)
            assert reply.status == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(grpc.RpcError) as caught:
            health.Check(health_pb2.HealthCheckRequest(service="nothing"), timeout=10.0)
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def reflected(channel, metadata=()):
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    replies = stub.ServerReflectionInfo(iter([request]), timeout=10.0, metadata=metadata)
    return {one.name for one in next(replies).list_services_response.service}


def test_reflection_lists_the_services(server):
    with grpc.insecure_channel(server) as channel:
        assert {SERVICE, "grpc.health.v1.Health"} <= reflected(channel)


TOKENS = """
[[token]]
name = "search"
sha256 = "{search}"
scopes = ["match"]

[[token]]
name = "desk"
sha256 = "{desk}"
scopes = ["match", "explain", "explain.operator"]
marketplaces = ["other"]

[[token]]
name = "page"
sha256 = "{page}"
scopes = ["explain"]
"""


def test_tokens_open_what_their_scopes_say(folder, tmp_path):
    digests = {
        name: hashlib.sha256(f"{name}-secret".encode()).hexdigest()
        for name in ("search", "desk", "page")
    }
    tokens = tmp_path / "tokens.toml"
    tokens.write_text(TOKENS.format(**digests))
    config = ServerConfig(stores={"default": folder, "other": folder}, port=0, tokens=tokens)

    def ask(address, token, call):
        with Client(address, token=token) as client:
            return call(client)

    def find(client):
        return client.find_freelancers(job_id(1), as_of=AS_OF)

    def find_other(client):
        return client.find_freelancers(job_id(1), as_of=AS_OF, marketplace="other")

    def explain(audience, marketplace=""):
        return lambda client: client.explain(
            job_id(1), person_id(1), audience=audience, marketplace=marketplace, as_of=AS_OF
        )

    with running(config) as address:
        for token in (None, "wrong", ""):
            with pytest.raises(clients.Unauthenticated):
                ask(address, token, find)
        assert ask(address, "search-secret", find).k == 10
        assert ask(address, "desk-secret", find_other).k == 10
        assert ask(address, "desk-secret", explain("operator", "other")).rank is not None
        assert ask(address, "page-secret", explain("client")).rank is None
        for token, call in (
            ("search-secret", explain("client")),
            ("desk-secret", find),
            ("page-secret", find),
            ("page-secret", explain("operator")),
        ):
            with pytest.raises(clients.PermissionDenied):
                ask(address, token, call)
        with grpc.insecure_channel(address) as channel:
            health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10.0)
            with pytest.raises(grpc.RpcError) as caught:
                reflected(channel)
            assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
            assert SERVICE in reflected(channel, (("authorization", "Bearer page-secret"),))


def make_certificates(folder):
    """An authority, and a server's and a client's certificate that it signed."""

    def openssl(*arguments):
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    openssl("req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.pem", "-days", "2",
            "-subj", "/CN=test authority")  # fmt: skip
    (folder / "names").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
    for name in ("server", "client"):
        openssl(
            "req", *key, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}"
        )
        signer = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-extfile", "names")
        openssl("x509", "-req", "-in", f"{name}.csr", *signer, "-days", "2", "-out", f"{name}.pem")


def test_tls_and_client_certificates(folder, tmp_path):
    try:
        make_certificates(tmp_path)
    except FileNotFoundError:
        pytest.skip("needs the openssl command to make certificates")
    config = ServerConfig(
        stores={"default": folder},
        port=0,
        tls_cert=tmp_path / "server.pem",
        tls_key=tmp_path / "server.key",
        tls_client_ca=tmp_path / "ca.pem",
    )
    known = clients.Tls(
        ca=tmp_path / "ca.pem", cert=tmp_path / "client.pem", key=tmp_path / "client.key"
    )
    with running(config) as address:
        with Client(address, tls=known, token="over TLS only") as client:
            assert client.find_freelancers(job_id(1), as_of=AS_OF).k == 10
        for tls in (None, clients.Tls(ca=tmp_path / "ca.pem"), clients.Tls()):
            with Client(address, tls=tls, attempts_max=1) as client:
                with pytest.raises(clients.Unavailable):
                    client.find_freelancers(job_id(1), as_of=AS_OF)
