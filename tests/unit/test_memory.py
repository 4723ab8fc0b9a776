"""Pages of mapped files are let go, and nothing that was written is lost."""

from __future__ import annotations

import mmap
import re
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pocketvlm.runtime.memory import drop_mapped_pages
from pocketvlm.toolchain import checkpoint as checkpoint_module
from pocketvlm.toolchain.checkpoint import Checkpoint

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux and Android tell what is mapped, and take advice")
SIZE = 8 << 20


def resident_kb(path: Path) -> int:
    """Resident kilobytes of a file's mappings in this process, from /proc/self/smaps."""
    found, inside = 0, False
    for line in Path("/proc/self/smaps").read_text(encoding="utf-8").splitlines():
        if re.match(r"[0-9a-f]+-", line):
            inside = line.endswith(str(path))
        elif inside and line.startswith("Rss:"):
            found += int(line.split()[1])
    return found


def touched(path: Path, access: int) -> mmap.mmap:
    """A mapping of a new file with all pages read."""
    path.write_bytes(bytes(range(256)) * (SIZE // 256))
    with path.open("r+b") as file:
        mapping = mmap.mmap(file.fileno(), 0, access=access)
    assert sum(mapping[:: mmap.PAGESIZE]) == 0
    return mapping


def test_pages_of_files_in_the_folder_are_let_go_and_read_again_when_needed(tmp_path: Path) -> None:
    inside, outside = tmp_path / "bundle" / "weights of one.data", tmp_path / "other.data"
    inside.parent.mkdir()
    with touched(inside, mmap.ACCESS_COPY) as mapping, touched(outside, mmap.ACCESS_COPY):
        assert resident_kb(inside) == resident_kb(outside) == SIZE >> 10
        assert drop_mapped_pages(inside.parent) == SIZE
        assert resident_kb(inside) == 0
        assert resident_kb(outside) == SIZE >> 10
        assert mapping[:] == inside.read_bytes()


def test_a_private_mapping_that_was_written_to_keeps_what_was_written(tmp_path: Path) -> None:
    with touched(tmp_path / "weights.data", mmap.ACCESS_COPY) as mapping:
        mapping[5 * mmap.PAGESIZE] = 77
        assert drop_mapped_pages(tmp_path) == 0
        assert mapping[5 * mmap.PAGESIZE] == 77


def test_what_was_read_of_a_checkpoint_is_let_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = {f"{number}": torch.full((1 << 20,), float(number)) for number in range(4)}
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_text("{}", encoding="utf-8")
    weights = tmp_path / "model.safetensors"
    save_file(tensors, weights)
    monkeypatch.setattr(checkpoint_module, "_READ_AT_ONCE", 9 << 20)
    with Checkpoint.open(str(tmp_path)) as checkpoint:
        resident = []
        for name, expected in tensors.items():
            assert torch.equal(checkpoint.tensor(name), expected)
            resident.append(resident_kb(weights))
        again = checkpoint.tensor("0")
        assert torch.equal(again, tensors["0"])
    assert resident[1] >= 8 << 10
    assert max(resident) < 16 << 10


def test_a_folder_without_mapped_files_is_no_error(tmp_path: Path) -> None:
    assert drop_mapped_pages(tmp_path) == 0
