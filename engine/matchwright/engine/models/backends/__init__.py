"""What Triton's Python backend runs: each file here becomes ``model.py`` of a served model.

Nothing in matchwright imports them. They run in Triton's own interpreter, which has NumPy, ONNX
Runtime or LightGBM, and Triton's ``triton_python_backend_utils``, and no matchwright.
"""
