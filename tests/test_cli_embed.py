"""``matchwright embed``, refits and imports with a served encoder; checks of what is stored."""

# ruff: noqa: F401, F811 (fixtures come by import)
from __future__ import annotations

import json

import encoder_cases as cases
from encoder_cases import client, made, repo, shop

from matchwright.engine.cli import main
from matchwright.engine.errors import StoreDamaged
from matchwright.engine.store import Store, embeddings
from matchwright.engine.store import embeddings_ahead as ahead
from matchwright.engine.store.embeddings_sweep import opened


def generation(path):
    with Store.open(path) as store:
        return store.generation.manifest.text


def cli(capsys, *argv):
    code = main([str(word) for word in argv])
    said = capsys.readouterr()
    assert "Traceback" not in said.err
    return code, said.out, said.err


def test_embed_without_a_server_ends_with_five_and_says_how_to_go_on(shop, repo, capsys):
    argv = ("--store", shop, "--models", repo, "--triton", "127.0.0.1:1")
    code, _, err = cli(capsys, "embed", *argv, "--wait", "0", "--format", "json")
    assert code == 5, err
    assert f"matchwright embed --store {shop} --models {repo} --triton 127.0.0.1:1" in err
    assert json.loads(err.splitlines()[0])["event"] == "embed"
    assert json.loads(err.splitlines()[-1])["error"]["reason"] == "MODEL_UNAVAILABLE"
    code, _, err = cli(capsys, "embed", "--store", shop)
    assert code == 2
    code, _, _ = cli(capsys, "store", "refit", "--encoder", "served", *argv, "--wait", "0")
    assert code == 5
    assert generation(shop).served.version == 1
    code, _, err = cli(capsys, "store", "refit", "--store", shop, "--models", repo)
    assert (code, "--encoder served goes with" in err) == (2, True)
    code, _, err = cli(capsys, "store", "refit", "--encoder", "served", "--store", shop)
    assert code == 2
    assert "--models" in err


def test_the_command_line_with_a_server(shop, repo, client, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("matchwright.engine.models.opened._triton", lambda config, watch: client)
    argv = ("--models", repo, "--triton", "127.0.0.1:1")
    code, out, err = cli(capsys, "embed", "--store", shop, *argv, "--format", "json")
    assert code == 0, err
    told = json.loads(out)
    assert (told["version"], told["records"], told["sent"]) == (2, 180, len(client.sent))
    lines = [json.loads(line) for line in err.splitlines() if line.startswith("{")]
    assert lines[-1]["done"] == lines[-1]["of"] == 180
    sent = len(client.sent)
    code, out, err = cli(
        capsys, "store", "refit", "--store", shop, "--encoder", "served", *argv, "--format", "json"
    )
    assert code == 0, err
    assert json.loads(out)["encoder"] == "served"
    assert len(client.sent) == sent
    people = tmp_path / "people.jsonl"
    people.write_text('{"id": "p-1", "title": "A tailor", "text": "suits"}\n')
    code, out, err = cli(
        capsys, "ingest", "freelancers", people, "--store", shop, *argv, "--format", "json"
    )
    assert code == 0, err
    assert json.loads(out)["waited_s"] > 0
    client.away = True
    people.write_text('{"id": "p-2", "title": "A baker", "text": "bread"}\n')
    code, _, err = cli(
        capsys, "ingest", "freelancers", people, "--store", shop, *argv, "--wait", "0"
    )
    assert code == 5, err
    with Store.open(shop) as store:
        assert store.snapshot().rows_of("freelancer", ["p-1", "p-2"]).tolist()[1] < 0
        assert store.verify() == []


def test_verify_names_missing_and_damaged_embeddings(shop):
    (path,) = embeddings.paths(shop)
    with opened(path, write=True) as file, file.change() as connection:
        connection.execute("DELETE FROM embedding WHERE n = 3")
    with Store.open(shop) as store:
        (found,) = store.verify()
        assert isinstance(found, StoreDamaged)
        assert "lacks 1 embeddings" in str(found)
        assert str(path) in str(found)
    path.unlink()
    for end in ("-wal", "-shm"):
        path.with_name(path.name + end).unlink(missing_ok=True)
    with Store.open(shop) as store:
        assert "lacks 180" in str(store.verify()[0])


def test_a_lost_file_is_made_again(shop, repo, client):
    (path,) = embeddings.paths(shop)
    path.unlink()
    done = ahead.embed(shop, cases.models(repo, client), 1)
    assert done.sent == 180
    with Store.open(shop) as store:
        assert store.verify() == []
