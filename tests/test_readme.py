"""What the README shows: its commands run as they stand, its links lead somewhere."""

from __future__ import annotations

import re
import shlex
import shutil
import tomllib
from pathlib import Path

import polars as pl
import pytest

from matchwright.engine.cli import main


@pytest.fixture(scope="module")
def readme(repo_root):
    return (repo_root / "README.md").read_text("utf-8")


def _commands(readme: str) -> list[list[str]]:
    lines = re.findall(r"^    matchwright (.+)$", readme, re.MULTILINE)
    return [shlex.split(line, comments=True) for line in lines]


def test_the_two_commands_are_there(readme):
    assert "\n    make demo " in readme
    assert "\n    make test " in readme


def test_every_command_runs(readme, repo_root, tmp_path, monkeypatch, capsys):
    shutil.copytree(repo_root / "examples", tmp_path / "examples")
    monkeypatch.chdir(tmp_path)
    ran = 0
    for words in _commands(readme):
        if words[0] == "serve" or "--server" in words:
            continue
        if "RUN" in words:  # the id of the run that the README has started
            (run,) = (path.parent.name for path in Path("shop/runs").glob("*/run.json"))
            words = [run if word == "RUN" else word for word in words]
        target = None
        if ">" in words:
            words, target = words[: words.index(">")], words[-1]
        code = main(words)
        told = capsys.readouterr()
        assert code == 0, (words, told.err)
        if target is not None:
            Path(target).write_text(told.out)
        ran += 1
    assert ran >= 13
    assert pl.read_parquet("matches.parquet").height > 5


def test_the_map_in_the_readme_is_the_one_in_the_example(readme, repo_root):
    shown = re.search(r"```toml\n(.*?)```", readme, re.DOTALL)
    assert shown is not None
    text = (repo_root / "examples" / "shop" / "posts.toml").read_text("utf-8")
    assert tomllib.loads(shown[1]) == tomllib.loads(text)


def test_the_client_in_the_readme_runs(readme, repo_root, tmp_path, capsys):
    from matchwright.engine.config import ServerConfig
    from matchwright.engine.service import running

    shop = repo_root / "examples" / "shop"
    store = tmp_path / "shop"
    for kind, file, extra in (
        ("jobs", "posts.csv", ["--map", str(shop / "posts.toml")]),
        ("freelancers", "people.jsonl", []),
    ):
        assert main(["ingest", kind, str(shop / file), "--store", str(store), *extra]) == 0
    shown = re.search(r"```python\n(.*?)```", readme, re.DOTALL)
    assert shown is not None
    capsys.readouterr()
    with running(ServerConfig(stores={"default": store}, port=0)) as address:
        exec(shown[1].replace("localhost:50051", address), {})
    out = capsys.readouterr().out
    assert "are eligible, answer" in out
    assert out.splitlines()[-1] == "1"


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs"])
def test_links_lead_somewhere(page, repo_root):
    files = [repo_root / page] if page.endswith(".md") else sorted((repo_root / page).glob("*.md"))
    missing = [
        f"{file.name}: {target}"
        for file in files
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", file.read_text("utf-8"))
        if "://" not in target and not (file.parent / target).exists()
    ]
    assert missing == []
