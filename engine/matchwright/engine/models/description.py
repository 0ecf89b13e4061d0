"""What the engine asks of each served model, said once; every ``config.pbtxt`` is made from it.

The production variant (backends ``onnxruntime`` and ``fil``) and the one for Triton's Python
backend differ in who runs the model and on what. Tensors, batch sizes, queues, versions and warm-up
requests come from the same ``ModelSpec``, so that the two cannot drift.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from matchwright.engine.models import pbtxt
from matchwright.engine.models.pbtxt import Entries, EnumName

Variant = Literal["production", "python"]
VARIANTS: tuple[Variant, ...] = ("production", "python")

ENCODER, RANKER = "encoder", "ranker"
ENCODER_BATCH_MAX = 256
"""Texts in one call. Who calls forms batches of one token length, so that nothing is padded."""
RANKER_ROWS_MAX = 32_768
"""Rows in one batch: 64 requests that rerank 200 candidates each come to 12,800."""

# Names that the FIL backend dictates.
RANKER_INPUT, RANKER_OUTPUT = "input__0", "output__0"
INPUT_IDS, ATTENTION_MASK, EMBEDDING = "input_ids", "attention_mask", "embedding"

_HEADER = """\
# The {variant} variant of {name!r}, made by `matchwright models build`. What may be tuned here:
# instance_group, dynamic_batching, model_warmup, optimization and parameters. Tensors, backend and
# what decides the output are checked by `matchwright models check`.
"""


@dataclass(frozen=True)
class Tensor:
    """An input or output; ``dims`` leave out the batch, -1 is any length."""

    name: str
    data_type: str
    dims: tuple[int, ...]


@dataclass(frozen=True)
class Warmup:
    """A batch that Triton runs before it calls a model ready: zeros of realistic shapes.

    Zero is the id of a token in every tokenizer, and a feature value like any other.
    """

    name: str
    requests: int
    dims: tuple[int, ...]


@dataclass(frozen=True)
class Batching:
    """How Triton forms batches of what waits.

    Attributes:
        preferred: sizes that leave at once.
        delay_us: how long the first of a batch waits for others.
        queue_max: requests that may wait; more are refused with UNAVAILABLE.
    """

    preferred: tuple[int, ...]
    delay_us: int
    queue_max: int


@dataclass(frozen=True)
class Backend:
    """Who runs a model, in one variant.

    Attributes:
        name: Triton's name of the backend.
        kind: KIND_AUTO is a GPU where there is one, KIND_CPU never.
        instances: how many copies run beside each other (on each GPU).
        parameters: the backend's own, as texts.
        cuda: options of ONNX Runtime's CUDA provider, where there is a GPU.
    """

    name: str
    kind: str
    instances: int
    parameters: Mapping[str, str] = field(default_factory=dict)
    cuda: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ModelSpec:
    """One model, in both variants."""

    name: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    batch_max: int
    batching: Batching
    warmups: tuple[Warmup, ...]
    backends: Mapping[Variant, Backend]


def encoder(dimensions: int) -> ModelSpec:
    """The encoder: token ids and their mask (B, T) to an embedding (B, ``dimensions``).

    Dynamic batching joins requests of one token length only, since nothing here is ragged.
    """
    return ModelSpec(
        name=ENCODER,
        inputs=(
            Tensor(INPUT_IDS, "TYPE_INT64", (-1,)),
            Tensor(ATTENTION_MASK, "TYPE_INT64", (-1,)),
        ),
        outputs=(Tensor(EMBEDDING, "TYPE_FP32", (dimensions,)),),
        batch_max=ENCODER_BATCH_MAX,
        batching=Batching(preferred=(16, 32, 64), delay_us=500, queue_max=512),
        warmups=(Warmup("one_text", 1, (32,)), Warmup("a_batch", 32, (64,))),
        backends={
            # TensorFloat-32 keeps 10 bits of a factor, which is not within 1e-5 of float32.
            "production": Backend("onnxruntime", "KIND_AUTO", 1, cuda={"use_tf32": "0"}),
            "python": Backend("python", "KIND_CPU", 1, {"threads": "0"}),
        },
    )


def ranker(features: int) -> ModelSpec:
    """The ranker: rows of integer features (N, F) as float32 to a score (N, 1) on a dyadic grid."""
    return ModelSpec(
        name=RANKER,
        inputs=(Tensor(RANKER_INPUT, "TYPE_FP32", (features,)),),
        outputs=(Tensor(RANKER_OUTPUT, "TYPE_FP32", (1,)),),
        batch_max=RANKER_ROWS_MAX,
        batching=Batching(preferred=(800, 3_200, 12_800), delay_us=100, queue_max=1_024),
        warmups=(Warmup("one_row", 1, (features,)), Warmup("a_request", 200, (features,))),
        backends={
            "production": Backend("fil", "KIND_AUTO", 1, _FIL),
            "python": Backend("python", "KIND_CPU", 1, {"threads": "0"}),
        },
    )


_FIL = {
    "model_type": "lightgbm",
    # A score, no class. FIL calls this is_classifier since 25.09 and output_class before; each
    # release reads its own name, the newer ones the older name too, with a warning.
    "is_classifier": "false",
    "output_class": "false",
    "predict_proba": "false",
    # Ignored since 25.09, which knows one way to store trees.
    "storage_type": "AUTO",
    # Rows above which a GPU is used where there is one.
    "transfer_threshold": "0",
    # True is faster on CPUs, with "less of a stability guarantee" as its documentation has it.
    "use_experimental_optimizations": "false",
    # -1 is every core.
    "cpu_nthread": "-1",
}


def config(spec: ModelSpec, variant: Variant) -> dict[str, Any]:
    """The model's ``ModelConfig``; names are protobuf's, so ``json.dumps`` gives Triton's JSON."""
    backend = spec.backends[variant]
    message: dict[str, Any] = {
        "name": spec.name,
        "backend": backend.name,
        "max_batch_size": spec.batch_max,
        "input": [_tensor(one) for one in spec.inputs],
        "output": [_tensor(one) for one in spec.outputs],
        # Every version that lies in the folder: a run stays with the one that it was planned with,
        # and rolling back loads nothing. `models unload` takes one away.
        "version_policy": {"all": {}},
        "instance_group": [{"kind": EnumName(backend.kind), "count": backend.instances}],
        "dynamic_batching": _batching(spec.batching),
        "model_warmup": [_warmup(one, spec) for one in spec.warmups],
    }
    if backend.cuda:
        message["optimization"] = _accelerated(backend.cuda)
    if backend.parameters:
        message["parameters"] = Entries(
            {key: {"string_value": value} for key, value in backend.parameters.items()}
        )
    return message


def _tensor(tensor: Tensor) -> dict[str, Any]:
    return {
        "name": tensor.name,
        "data_type": EnumName(tensor.data_type),
        "dims": list(tensor.dims),
    }


def _batching(batching: Batching) -> dict[str, Any]:
    """Whoever waits longer than its deadline is answered without being computed."""
    return {
        "preferred_batch_size": list(batching.preferred),
        "max_queue_delay_microseconds": batching.delay_us,
        "default_queue_policy": {
            "timeout_action": EnumName("REJECT"),
            "allow_timeout_override": True,
            "max_queue_size": batching.queue_max,
        },
    }


def _warmup(warmup: Warmup, spec: ModelSpec) -> dict[str, Any]:
    inputs = {
        one.name: {
            "data_type": EnumName(one.data_type),
            "dims": list(warmup.dims),
            "zero_data": True,
        }
        for one in spec.inputs
    }
    return {"name": warmup.name, "batch_size": warmup.requests, "inputs": Entries(inputs)}


def _accelerated(cuda: Mapping[str, str]) -> dict[str, Any]:
    accelerator = {"name": "cuda", "parameters": Entries(cuda)}
    return {"execution_accelerators": {"gpu_execution_accelerator": [accelerator]}}


def config_text(spec: ModelSpec, variant: Variant) -> str:
    """The text of ``config.pbtxt``."""
    return _HEADER.format(variant=variant, name=spec.name) + pbtxt.render(config(spec, variant))


def differences(text: str, spec: ModelSpec, variant: Variant, where: str) -> list[str]:
    """What an operator's ``config.pbtxt`` says that the engine cannot work with; empty when fine.

    Tensors, backend, the parameters that decide the output, and the largest batch are compared;
    the rest is a matter of tuning.

    Raises:
        InvalidData: when it is no text format.
    """
    got = pbtxt.parse(text, where)
    wanted = pbtxt.parse(config_text(spec, variant))
    found = [
        f"{name} is {_shown(got.get(name))}, expected {_shown(wanted.get(name))}"
        for name in ("name", "backend", "input", "output")
        if got.get(name) != wanted.get(name)
    ]
    batch = got.get("max_batch_size", [0])[0]
    if not isinstance(batch, int) or batch < spec.batch_max:
        found.append(f"max_batch_size is {batch}, expected at least {spec.batch_max}")
    return found + _wrong_parameters(_parameters(got), _parameters(wanted))


_DECISIVE = ("model_type", "is_classifier", "output_class", "predict_proba")


def _wrong_parameters(got: Mapping[str, str], wanted: Mapping[str, str]) -> list[str]:
    return [
        f"parameter {name} is {got.get(name)!r}, expected {wanted[name]!r}"
        for name in _DECISIVE
        if name in wanted and got.get(name) != wanted[name]
    ]


def _parameters(message: Mapping[str, list[Any]]) -> dict[str, str]:
    """The map ``parameters`` as it was read; what is malformed is left out, so it is missed."""
    found = {}
    for entry in message.get("parameters", []):
        if isinstance(entry, dict) and entry.get("key") and entry.get("value"):
            value = entry["value"][-1]
            text = value.get("string_value", [""]) if isinstance(value, dict) else [""]
            found[str(entry["key"][-1])] = str(text[-1])
    return found


def _shown(values: list[Any] | None) -> str:
    if values is None:
        return "missing"
    return ", ".join(_tensor_told(one) if isinstance(one, dict) else str(one) for one in values)


def _tensor_told(fields: Mapping[str, list[Any]]) -> str:
    """``embedding TYPE_FP32 [384]``; other fields of a tensor are named too."""
    told = [str(one) for name in ("name", "data_type") for one in fields.get(name, [])]
    more = [f"{name}: {value}" for name, value in fields.items()
            if name not in ("name", "data_type", "dims")]  # fmt: skip
    return " ".join([*told, str(fields.get("dims", [])), *more])
