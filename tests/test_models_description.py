"""One description of each model: every config.pbtxt is read by Triton's own types and compared."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

pytest.importorskip("tritonclient.grpc", reason="needs the extra [triton]")

from google.protobuf import json_format, text_format
from tritonclient.grpc import model_config_pb2 as triton

from matchwright.engine.errors import InvalidData
from matchwright.engine.models import description
from matchwright.engine.models.description import VARIANTS

SPECS = {"encoder": description.encoder(384), "ranker": description.ranker(32)}
EVERY = [(name, variant) for name in SPECS for variant in VARIANTS]
# What the contract with the engine says, written here once more.
TENSORS = {
    "encoder": (
        [("input_ids", "TYPE_INT64", [-1]), ("attention_mask", "TYPE_INT64", [-1])],
        [("embedding", "TYPE_FP32", [384])],
    ),
    "ranker": ([("input__0", "TYPE_FP32", [32])], [("output__0", "TYPE_FP32", [1])]),
}
BACKENDS = {
    ("encoder", "production"): ("onnxruntime", "KIND_AUTO"),
    ("encoder", "python"): ("python", "KIND_CPU"),
    ("ranker", "production"): ("fil", "KIND_AUTO"),
    ("ranker", "python"): ("python", "KIND_CPU"),
}


def _parsed(name, variant):
    text = description.config_text(SPECS[name], variant)
    return text_format.Parse(text, triton.ModelConfig())


def _tensors(values):
    return [(one.name, triton.DataType.Name(one.data_type), list(one.dims)) for one in values]


@pytest.mark.parametrize(("name", "variant"), EVERY)
def test_a_config_says_what_the_description_says(name, variant):
    spec, config = SPECS[name], _parsed(name, variant)
    assert config.name == name
    assert (_tensors(config.input), _tensors(config.output)) == TENSORS[name]
    assert config.max_batch_size == spec.batch_max
    assert config.version_policy.WhichOneof("policy_choice") == "all"
    backend, kind = BACKENDS[name, variant]
    assert (config.backend, config.platform) == (backend, "")
    (group,) = config.instance_group
    assert triton.ModelInstanceGroup.Kind.Name(group.kind) == kind
    assert group.count == spec.backends[variant].instances
    said = {key: value.string_value for key, value in config.parameters.items()}
    assert said == dict(spec.backends[variant].parameters)


@pytest.mark.parametrize(("name", "variant"), EVERY)
def test_batching_and_queues(name, variant):
    spec, batching = SPECS[name], _parsed(name, variant).dynamic_batching
    assert tuple(batching.preferred_batch_size) == spec.batching.preferred
    assert list(spec.batching.preferred) == sorted(spec.batching.preferred)
    assert spec.batching.preferred[-1] <= spec.batch_max
    assert batching.max_queue_delay_microseconds == spec.batching.delay_us
    queue = batching.default_queue_policy
    assert queue.allow_timeout_override
    assert queue.timeout_action == triton.ModelQueuePolicy.REJECT
    assert queue.max_queue_size == spec.batching.queue_max > 0


@pytest.mark.parametrize(("name", "variant"), EVERY)
def test_warm_up_fits_the_inputs(name, variant):
    spec, config = SPECS[name], _parsed(name, variant)
    assert len(config.model_warmup) == len(spec.warmups) >= 2
    for one in config.model_warmup:
        assert 1 <= one.batch_size <= spec.batch_max
        assert set(one.inputs) == {tensor.name for tensor in config.input}
        for tensor in config.input:
            sample = one.inputs[tensor.name]
            assert sample.data_type == tensor.data_type
            assert sample.zero_data
            for wanted, got in zip(tensor.dims, sample.dims, strict=True):
                assert got == wanted if wanted >= 0 else got > 0


@pytest.mark.parametrize("name", SPECS)
def test_variants_differ_only_in_who_runs_the_model(name):
    production, python = (_parsed(name, variant) for variant in VARIANTS)
    assert production != python
    for config in (production, python):
        for field in ("backend", "instance_group", "parameters", "optimization"):
            config.ClearField(field)
    assert production == python


@pytest.mark.parametrize(("name", "variant"), EVERY)
def test_json_and_text_are_one_config(name, variant):
    told = json.dumps(description.config(SPECS[name], variant))
    assert json_format.Parse(told, triton.ModelConfig()) == _parsed(name, variant)


def test_what_decides_the_answers_on_production_backends():
    ranker = _parsed("ranker", "production").parameters
    told = {key: value.string_value for key, value in ranker.items()}
    assert told["model_type"] == "lightgbm"
    # The backend's name for it, from release 25.09 on and before.
    assert (told["is_classifier"], told["output_class"]) == ("false", "false")
    (accelerator,) = _parsed(
        "encoder", "production"
    ).optimization.execution_accelerators.gpu_execution_accelerator
    assert (accelerator.name, dict(accelerator.parameters)) == ("cuda", {"use_tf32": "0"})


def test_every_committed_config_parses_and_is_current(repo_root):
    done = subprocess.run(
        [sys.executable, str(repo_root / "models" / "generate.py"), "--check"],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    committed = sorted((repo_root / "models").rglob("*.pbtxt"))
    assert len(committed) == len(EVERY)
    for path in committed:
        config = text_format.Parse(path.read_text("utf-8"), triton.ModelConfig())
        assert path.is_relative_to(repo_root / "models" / config.name)


def test_the_readme_names_every_tensor(repo_root):
    readme = (repo_root / "models" / "README.md").read_text("utf-8")
    for spec in SPECS.values():
        for tensor in (*spec.inputs, *spec.outputs):
            assert f"`{tensor.name}`" in readme


def test_drift_is_seen(repo_root, tmp_path):
    """The check that the test above relies on can fail."""
    for path in (repo_root / "models").rglob("*"):
        if path.is_file():
            target = tmp_path / path.relative_to(repo_root / "models")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    stale = tmp_path / "ranker" / "config.pbtxt"
    stale.write_text(stale.read_text("utf-8").replace("KIND_AUTO", "KIND_CPU"))
    (tmp_path / "encoder" / "configs" / "python.pbtxt").unlink()
    done = subprocess.run(
        [sys.executable, str(tmp_path / "generate.py"), "--check"],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert "ranker/config.pbtxt" in done.stderr
    assert "encoder/configs/python.pbtxt" in done.stderr
    assert "encoder/config.pbtxt" not in done.stderr


# ── what an operator may change, and what not ─────────────────────────────────────────────────


@pytest.mark.parametrize(("name", "variant"), EVERY)
def test_a_fresh_config_has_no_differences(name, variant):
    text = description.config_text(SPECS[name], variant)
    assert description.differences(text, SPECS[name], variant, "c") == []


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("KIND_AUTO", "KIND_GPU"),
        ("count: 1", "count: 4"),
        ("max_queue_delay_microseconds: 100", "max_queue_delay_microseconds: 5000"),
        ("max_batch_size: 32768", "max_batch_size: 65536"),
        ('string_value: "-1"', 'string_value: "8"'),
        ("dims: [32]", "dims: 32"),
        ("\ninput {\n", "\ninput: <\n# the features\n"),
    ],
)
def test_tuning_is_no_difference(before, after):
    text = description.config_text(SPECS["ranker"], "production")
    assert before in text
    tuned = text.replace(before, after, 1)
    if after.endswith("features\n"):
        tuned = tuned.replace("dims: [32]\n}", "dims: [32]\n>", 1)
    text_format.Parse(tuned, triton.ModelConfig())
    assert description.differences(tuned, SPECS["ranker"], "production", "c") == []


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ('backend: "fil"', 'backend: "python"', "backend is python, expected fil"),
        ("dims: [32]", "dims: [31]", "input is input__0 TYPE_FP32 [31], expected input__0"),
        ("TYPE_FP32", "TYPE_FP64", "TYPE_FP64"),
        ('name: "output__0"', 'name: "scores"', "output is scores"),
        ("max_batch_size: 32768", "max_batch_size: 64", "max_batch_size is 64"),
        ("max_batch_size: 32768\n", "", "max_batch_size is 0"),
        ('string_value: "lightgbm"', 'string_value: "xgboost"', "model_type is 'xgboost'"),
        ('key: "output_class"', 'key: "other"', "output_class is None"),
    ],
)
def test_what_the_engine_relies_on_is_told(before, after, told):
    text = description.config_text(SPECS["ranker"], "production")
    assert before in text
    found = description.differences(
        text.replace(before, after, 1), SPECS["ranker"], "production", "c"
    )
    assert len(found) == 1
    assert told in found[0]


def test_a_config_that_is_none_names_the_line():
    with pytest.raises(InvalidData, match=r"here/config\.pbtxt, line 2"):
        description.differences(
            'name: "x"\ninput: }', SPECS["ranker"], "production", "here/config.pbtxt"
        )
