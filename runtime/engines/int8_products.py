"""Whether this processor adds up products of bytes exactly."""

from __future__ import annotations

import base64
import functools

import numpy as np
import onnxruntime as ort

# An ONNX graph: MatMulInteger of a uint8 [n, 4] and four int8 weights of 127, giving int32 [n, 1].
PROBE = base64.b64decode(
    "CAU6XgoYCgFhCgF3EgF5Ig1NYXRNdWxJbnRlZ2VyEgVwcm9iZSoPCAQIARADQgF3SgR/f39/WhQKAWESDwoNCAISCQoDEgFuCgII"
    "BGIUCgF5Eg8KDQgGEgkKAxIBbgoCCAFCBAoAEAo="
)


@functools.cache
def saturating() -> bool:
    """Whether ONNX Runtime's products of unsigned and signed bytes saturate here.

    On x86 processors without VNNI, its kernels add pairs of products up in 16 bits, which two large ones exceed. Asked of
    the kernels themselves, in a few milliseconds once per process: what a processor can do is told in as many ways as there
    are systems, and which kernel is taken is the library's affair.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(PROBE, options, providers=["CPUExecutionProvider"])
    # One row and several are computed by different kernels.
    sums = [session.run(None, {"a": np.full((rows, 4), 255, np.uint8)})[0] for rows in (1, 2)]
    return any(bool(np.any(found != 4 * 255 * 127)) for found in sums)
