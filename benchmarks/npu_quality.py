"""What the NPU's graphs cost on text, before they are compiled: their variant `qnn-cpu` beside a float32 bundle.

    pocketvlm export build/smollm2-llava -c export_configs/smollm2-llava.qnn-SM8750.yaml -o build/smollm2-npu
    pocketvlm export build/smollm2-llava --precision fp32 --max-seq-len 2048 -o build/fp32
    python benchmarks/npu_quality.py build/fp32 build/smollm2-npu

Text and figures are those of quality.py. A decoded token takes most of a second, since the CPU unpacks all weights for each.
Before them stand the 16-bit steps of the hidden states between the decoder's parts: where a model has massive activations, they
are wide.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import onnx
from quality import REFERENCE, compare

from pocketvlm.runtime.bundle import Bundle

PROXY = "qnn-cpu"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reference", type=Path, help="a bundle in float32")
    parser.add_argument("bundle", type=Path, help="one with the variant qnn-cpu")
    parser.add_argument("--sequences", type=int, default=2)
    parser.add_argument("--length", type=int, default=1024)
    arguments = parser.parse_args()
    folders = {REFERENCE: arguments.reference, PROXY: arguments.bundle}
    for name, step in hidden_steps(arguments.bundle).items():
        print(f"{name}: a step is {step:.4f}")
    rows = compare(folders, arguments.sequences, arguments.length, {PROXY: PROXY})
    print(f"{rows[PROXY]['tokens']} tokens")
    for name, row in rows.items():
        print(f"{name}: perplexity {row['perplexity']:.3f}, KL {row['kl']:.4f}, top-1 {row['top1']:.1%}")


def hidden_steps(path: Path) -> dict[str, float]:
    """What one step of the hidden state behind each part of the decoder stands for."""
    bundle, found = Bundle.open(path, verify=False), {}
    variant = bundle.variant(PROXY)
    for stage in variant.chain("decode"):
        graph = onnx.load(str(bundle.directory / variant.stages[stage].file), load_external_data=False).graph
        constants = {item.name: item for item in graph.initializer}
        outputs = {output.name for output in graph.output if output.name.startswith("hidden")}
        for node in graph.node:
            if node.output[0] in outputs:
                found[node.output[0]] = float(onnx.numpy_helper.to_array(constants[node.input[1]]))
    return found


if __name__ == "__main__":
    main()
