"""The Qualcomm SoCs that binaries can be compiled for. A new one is one more row.

Ids are those of `QnnTypes.h` (QNN_SOC_MODEL_*); architectures and on-chip memory as in Qualcomm's table of supported Snapdragon
devices, which ExecuTorch's `backends/qualcomm/serialization/qc_schema.py` repeats.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Soc:
    """One chip.

    Attributes:
        name: as Android's `ro.soc.model` gives it.
        chip: name that it is sold under.
        model: Qualcomm's number for it.
        architecture: version of its Hexagon tensor processor.
        vtcm_mb: on-chip memory, in MiB.
        estimated_as: number of the chip whose simulated times stand for it: the compiler estimates times for some automotive
            chips only. The nearest architecture is taken.
    """

    name: str
    chip: str
    model: int
    architecture: int
    vtcm_mb: int
    estimated_as: int


_SA8255, _SA8797 = 52, 72
# The chips that the compiler simulates, by number.
SIMULATED = {_SA8255: "SA8255, v73", _SA8797: "SA8797, v81"}

SOCS = {
    soc.name: soc
    for soc in (
        Soc("SM8550", "Snapdragon 8 Gen 2", 43, 73, 8, _SA8255),
        Soc("SM8650", "Snapdragon 8 Gen 3", 57, 75, 8, _SA8255),
        Soc("SM8750", "Snapdragon 8 Elite", 69, 79, 8, _SA8797),
        Soc("SM8850", "Snapdragon 8 Elite Gen 5", 87, 81, 8, _SA8797),
    )
}
