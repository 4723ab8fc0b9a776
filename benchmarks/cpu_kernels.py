"""Which kernels a call of a stage spends its time in, read from ONNX Runtime's profiler.

    python benchmarks/cpu_kernels.py build/bench/int8-prefill --tokens 128 --depth 768     a chunk of a prompt
    python benchmarks/cpu_kernels.py build/bench/int8-cache --tokens 1 --depth 1536        one decoded token
    python benchmarks/cpu_kernels.py build/bench/int8-cache --tiles 4                      the vision blocks on four tiles

Inputs are random: only their sizes matter. The profiler itself costs about a microsecond per node, so the time of a call
without it is printed, too. A call has to read all weights of the graph, here counted as the bundle stores them, and the
cache up to the depth; bytes and time together say how near it is to what the machine's memory gives.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from measure import table
from numpy.typing import NDArray

from pocketvlm.errors import PocketVLMError
from pocketvlm.runtime.bundle import Bundle
from pocketvlm.runtime.engines.onnxruntime_engine import session_options
from pocketvlm.runtime.kv_cache import KvCache
from pocketvlm.runtime.manifest import StageSpec, VariantSpec
from pocketvlm.toolchain.backends.ort_profile import kernel_events

WARM_UP = 3


def decoder_inputs(variant: VariantSpec, stage: StageSpec, tokens: int, depth: int) -> dict[str, NDArray[Any]]:
    """What `prefill` or `decode` is called with for `tokens` positions behind `depth` others."""
    width = next(tensor.shape[-1] for tensor in stage.inputs if tensor.name == "embeddings")
    rng = np.random.default_rng(0)
    cache = KvCache(variant.kv_cache)
    for array in cache.past().values():
        array[...] = rng.integers(-100, 100, array.shape)
    return {
        "embeddings": rng.standard_normal((1, tokens, int(width)), dtype=np.float32),
        "past_length": np.array([depth], np.int64),
        **cache.past(),
    }


def vision_inputs(stage: StageSpec, tiles: int) -> dict[str, NDArray[Any]]:
    """What `vision_encoder` is called with for a batch of tiles."""
    rng = np.random.default_rng(0)
    return {tensor.name: rng.standard_normal((tiles, *map(int, tensor.shape[1:])), dtype=np.float32) for tensor in stage.inputs}


def profile(path: Path, variant: VariantSpec, arrays: dict[str, NDArray[Any]], threads: int, runs: int) -> dict[str, Any]:
    """Milliseconds of one call of the graph at `path`: median without the profiler, and by kernel with it."""
    values = {name: onnxruntime.OrtValue.ortvalue_from_numpy(array) for name, array in arrays.items()}

    def measure(trace: Path | None) -> tuple[list[float], Any]:
        options = session_options(variant.engine_options, threads)
        if trace is not None:
            options.enable_profiling = True
            options.profile_file_prefix = str(trace)
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        binding = session.io_binding()
        for name, value in values.items():
            binding.bind_ortvalue_input(name, value)
        for output in session.get_outputs():
            cache = values.get(output.name.replace("present", "past"))
            if cache is None:
                binding.bind_output(output.name)
            else:
                binding.bind_ortvalue_output(output.name, cache)
        seconds = []
        for _ in range(WARM_UP + runs):
            start = time.perf_counter()
            session.run_with_iobinding(binding)
            seconds.append(time.perf_counter() - start)
        return seconds[WARM_UP:], session

    plain, _ = measure(None)
    with tempfile.TemporaryDirectory() as scratch:
        profiled, session = measure(Path(scratch) / "trace")
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    totals: dict[str, list[float]] = defaultdict(lambda: [0.0, 0])
    for event in kernel_events(events):
        # What an If runs is listed by itself.
        if event["args"]["op_name"] != "If":
            total = totals[event["args"]["op_name"]]
            total[0] += event["dur"] / 1000 / (WARM_UP + runs)
            total[1] += 1 / (WARM_UP + runs)
    cached = sum(array.nbytes for name, array in arrays.items() if name.startswith("past_") and name != "past_length")
    depth = int(arrays["past_length"][0]) if cached else 0
    megabytes = (_weight_bytes(path) + cached * depth // variant.kv_cache.capacity) / 1e6
    return {
        "ms": statistics.median(plain) * 1000,
        "read_mb": megabytes,
        "read_gb_s": megabytes / 1000 / statistics.median(plain),
        "ms_profiled": statistics.median(profiled) * 1000,
        "kernels": {name: {"ms": ms, "nodes": round(nodes)} for name, (ms, nodes) in totals.items()},
    }


def _weight_bytes(path: Path) -> int:
    """Bytes of a graph's parameters, the rotary tables aside, of which a call reads a few rows."""
    graph = onnx.load(path, load_external_data=False).graph
    found = 0
    for tensor in graph.initializer:
        if not tensor.name.startswith("rotary."):
            external = {entry.key: entry.value for entry in tensor.external_data}
            found += int(external["length"]) if external else len(tensor.raw_data)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--tokens", type=int, default=128, help="positions of a decoder call; 1 is a decoded token")
    parser.add_argument("--depth", type=int, default=768, help="positions in the cache before it")
    parser.add_argument("--tiles", type=int, help="the vision blocks on so many tiles, instead of the decoder")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repetitions", type=int, default=20)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    try:
        bundle = Bundle.open(arguments.bundle)
    except PocketVLMError as error:
        raise SystemExit(f"error: {error}") from None
    variant = bundle.variant()
    capacity = variant.kv_cache.capacity
    if variant.engine != "onnxruntime" or variant.kv_cache.protocol != "in_place":
        raise SystemExit("error: only variants for ONNX Runtime with a cache that is written in place can be profiled")
    if min(arguments.threads, arguments.repetitions) < 1:
        raise SystemExit("error: --threads and --repetitions must be 1 or more")
    if arguments.tiles is not None:
        stage = variant.stages["vision_encoder"]
        if arguments.tiles < 1 or stage.inputs[0].shape[0] not in (arguments.tiles, "batch"):
            raise SystemExit(f"error: {arguments.tiles} tiles, the stage takes {stage.inputs[0].shape[0]}")
        arrays = vision_inputs(stage, arguments.tiles)
    else:
        if arguments.tokens < 1 or arguments.depth < 0 or arguments.tokens + arguments.depth > capacity:
            raise SystemExit(f"error: {arguments.depth} + {arguments.tokens} positions do not fit the bundle's {capacity}")
        stage = variant.stages["decode" if arguments.tokens == 1 else "prefill"]
        arrays = decoder_inputs(variant, stage, arguments.tokens, arguments.depth)
    found = profile(bundle.path(stage.file), variant, arrays, arguments.threads, arguments.repetitions)
    if arguments.json:
        print(json.dumps(found, indent=1))
        return
    print(f"{found['ms']:.2f} ms a call, {found['ms_profiled']:.2f} ms with the profiler")
    print(f"{found['read_mb']:.1f} MB of weights and cache to read, {found['read_gb_s']:.1f} GB/s\n")
    kernels = sorted(found["kernels"].items(), key=lambda item: -item[1]["ms"])
    print(table(["kernel", "ms", "nodes"], [[name, f"{item['ms']:.2f}", str(item["nodes"])] for name, item in kernels]))


if __name__ == "__main__":
    main()
