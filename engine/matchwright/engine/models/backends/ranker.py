"""The ranker for Triton's Python backend: ``model.txt`` beside this file, on LightGBM.

Input ``input__0`` float32 (N, F), output ``output__0`` float32 (N, 1): the raw score. It lies on a
dyadic grid below 2**24 units, so that float32 holds it exactly, as the FIL backend gives it.
"""

import json
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import triton_python_backend_utils as pb_utils

INPUT, OUTPUT = "input__0", "output__0"


class TritonPythonModel:
    """One instance of one version."""

    def initialize(self, args: dict[str, str]) -> None:
        """Loads the model. Parameter ``threads``: 0 is OMP_NUM_THREADS, else every core."""
        folder = Path(args["model_repository"]) / args["model_version"]
        parameters = json.loads(args["model_config"]).get("parameters", {})
        self._threads = int(parameters.get("threads", {}).get("string_value", "0"))
        self._booster = lightgbm.Booster(model_file=str(folder / "model.txt"))
        self._features = self._booster.num_feature()

    def execute(self, requests: list[Any]) -> list[Any]:
        """One answer for each request; the model is called once for all of them."""
        answers: list[Any] = [None] * len(requests)
        good: list[tuple[int, Any]] = []
        for at, request in enumerate(requests):
            try:
                good.append((at, self._rows(request)))
            except Exception as error:
                answers[at] = _refusal(error)
        for at, answer in self._together(good) if good else ():
            answers[at] = answer
        return answers

    def _rows(self, request: Any) -> Any:
        rows = pb_utils.get_input_tensor_by_name(request, INPUT).as_numpy()
        if rows.ndim != 2 or rows.shape[1] != self._features:
            raise ValueError(f"{INPUT} is {rows.shape}, expected (N, {self._features})")
        if not np.isfinite(rows).all():
            raise ValueError(f"{INPUT} holds NaN or infinity; features are whole numbers")
        return rows

    def _together(self, good: list[tuple[int, Any]]) -> list[tuple[int, Any]]:
        try:
            rows = good[0][1] if len(good) == 1 else np.concatenate([one for _, one in good])
            scores = self._booster.predict(rows, raw_score=True, num_threads=self._threads)
            exact = np.asarray(scores).astype(np.float32).reshape(-1, 1)
        except Exception as error:
            return [(at, _refusal(error)) for at, _ in good]
        ends = np.cumsum([len(one) for _, one in good])[:-1]
        parts = np.split(exact, ends)
        return [(at, _answer(part)) for (at, _), part in zip(good, parts)]  # noqa: B905


def _answer(scores: Any) -> Any:
    tensor = pb_utils.Tensor(OUTPUT, np.ascontiguousarray(scores))
    return pb_utils.InferenceResponse(output_tensors=[tensor])


def _refusal(error: Exception) -> Any:
    return pb_utils.InferenceResponse(
        output_tensors=[], error=pb_utils.TritonError(f"ranker: {error}")
    )
