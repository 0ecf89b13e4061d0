"""The encoder for Triton's Python backend: ``model.onnx`` beside this file, on ONNX Runtime's CPU.

Input ``input_ids`` and ``attention_mask`` int64 (B, T), output ``embedding`` float32 (B, D).
"""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils

INPUTS = ("input_ids", "attention_mask")
OUTPUT = "embedding"


class TritonPythonModel:
    """One instance of one version."""

    def initialize(self, args: dict[str, str]) -> None:
        """Loads the model. Parameter ``threads``: 0 is OMP_NUM_THREADS, else every core."""
        folder = Path(args["model_repository"]) / args["model_version"]
        parameters = json.loads(args["model_config"]).get("parameters", {})
        options = onnxruntime.SessionOptions()
        threads = int(parameters.get("threads", {}).get("string_value", "0"))
        options.intra_op_num_threads = threads or int(os.environ.get("OMP_NUM_THREADS", "0"))
        options.inter_op_num_threads = 1
        # A thread that spins while it waits takes the core that whoever asks would tokenise on.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = onnxruntime.InferenceSession(
            str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"]
        )

    def execute(self, requests: list[Any]) -> list[Any]:
        """One answer for each request; those of one token length go to the model together."""
        answers: list[Any] = [None] * len(requests)
        of_length: dict[int, list[tuple[int, Any, Any]]] = {}
        for at, request in enumerate(requests):
            try:
                ids, mask = _tensors(request)
                of_length.setdefault(ids.shape[1], []).append((at, ids, mask))
            except Exception as error:
                answers[at] = _refusal(error)
        for group in of_length.values():
            for at, answer in self._together(group):
                answers[at] = answer
        return answers

    def _together(self, group: list[tuple[int, Any, Any]]) -> list[tuple[int, Any]]:
        """Runs requests as one batch. When that fails each runs alone, and answers for itself."""
        try:
            ids = np.concatenate([one for _, one, _ in group])
            mask = np.concatenate([one for _, _, one in group])
            rows = self._run(ids, mask)
        except Exception as error:
            if len(group) == 1:
                return [(group[0][0], _refusal(error))]
            return [answer for one in group for answer in self._together([one])]
        ends = np.cumsum([len(one) for _, one, _ in group])[:-1]
        parts = np.split(rows, ends)
        return [(at, _answer(part)) for (at, _, _), part in zip(group, parts)]  # noqa: B905

    def _run(self, ids: Any, mask: Any) -> Any:
        (rows,) = self._session.run([OUTPUT], {"input_ids": ids, "attention_mask": mask})
        if rows.ndim != 2 or len(rows) != len(ids):
            raise ValueError(f"the model answered {rows.shape} to {ids.shape}")
        return np.ascontiguousarray(rows, dtype=np.float32)


def _tensors(request: Any) -> tuple[Any, Any]:
    ids, mask = (pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in INPUTS)
    if ids.ndim != 2 or ids.shape != mask.shape or ids.shape[1] == 0:
        raise ValueError(
            f"input_ids {ids.shape}, attention_mask {mask.shape}: both must be one (B, T), T > 0"
        )
    return ids, mask


def _answer(rows: Any) -> Any:
    tensor = pb_utils.Tensor(OUTPUT, np.ascontiguousarray(rows))
    return pb_utils.InferenceResponse(output_tensors=[tensor])


def _refusal(error: Exception) -> Any:
    return pb_utils.InferenceResponse(
        output_tensors=[], error=pb_utils.TritonError(f"encoder: {error}")
    )
