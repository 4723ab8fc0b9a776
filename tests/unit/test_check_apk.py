"""android_demo/tools: what the checks of an APK find in broken ones, and what they let pass."""

from __future__ import annotations

import gzip
import importlib
import struct
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.unit.android_files import binary_xml, call, dex, elf, sealed, with_signature_block, write_zip

TOOLS = Path(__file__).parents[2] / "android_demo" / "tools"


def load(name: str) -> Any:
    """A module of the tools, whose scripts import each other by their bare names."""
    sys.path.insert(0, str(TOOLS))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(TOOLS))


check_apk = load("check_apk")
api, dex_module, pages, use_of_api = load("apk.api"), load("apk.dex"), load("apk.pages"), load("apk.use_of_api")
DamagedError = load("apk.faults").DamagedError


class Offered:
    """An Android with a handful of classes."""

    def __init__(self, **classes: tuple[tuple[str, ...], set[str]]) -> None:
        self._classes = {
            name.replace("_", "/"): api.ApiClass(parents, frozenset(members)) for name, (parents, members) in classes.items()
        }

    def find(self, name: str) -> Any:
        return self._classes.get(name)


OLDEST = Offered(java_lang_Object=((), {"toString()Ljava/lang/String;"}), java_lang_Missing=((), {"call()V"}))
BARE = Offered(java_lang_Object=((), set()))

Change = Callable[[dict[str, Any]], None]


def manifest(**changes: Any) -> bytes:
    facts: dict[str, Any] = {
        "package": "dev.pocketvlm.demo", "min": 27, "target": 35, "extract": False, "required": False, "permission": None,
        "other": False, "exported": True, "filter": True,
    } | changes  # fmt: skip
    permissions = [("uses-permission", {"android:name": facts["permission"]}, [])] if facts["permission"] else []
    launcher = [("intent-filter", {}, [])] if facts["filter"] else []
    attributes: dict[str, Any] = {"android:name": ".chat.ChatActivity"}
    if facts["exported"] is not None:
        attributes["android:exported"] = facts["exported"]
    library = [("uses-native-library", {"android:name": "libcdsprpc.so", "android:required": facts["required"]}, [])]
    application = (
        "application",
        {"android:extractNativeLibs": facts["extract"]},
        [
            *([] if facts["required"] is None else library),
            ("activity", attributes, launcher),
            ("provider", {"android:name": "dev.pocketvlm.demo.Files", "android:exported": facts["other"]}, []),
        ],
    )
    sdk = ("uses-sdk", {"android:minSdkVersion": facts["min"], "android:targetSdkVersion": facts["target"]}, [])
    return binary_xml(("manifest", {"package": facts["package"]}, [sdk, *permissions, application]))


@pytest.fixture(autouse=True)
def _small_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_apk, "MIN_CODE_BYTES", 100)


LIBRARIES = {
    f"lib/{abi}/{name}": elf(machine) for abi, machine in (("arm64-v8a", 183), ("x86_64", 62)) for name in check_apk.LIBRARIES
}


def good() -> dict[str, bytes]:
    return {"AndroidManifest.xml": manifest(), "classes.dex": dex(call(1)), "resources.arsc": b"resources", **LIBRARIES}


def faults(
    folder: Path, entries: dict[str, bytes], *, signed: bool = True, oldest: Any = OLDEST, allowances: Any = (), **kind: bool
) -> list[str]:
    loose, apk = folder / "loose.apk", folder / "trial.apk"
    write_zip(loose, entries, stored=[name for name in entries if name.endswith((".so", ".arsc"))])
    pages.align(loose, apk)
    if signed:
        apk.write_bytes(with_signature_block(apk.read_bytes()))
    found: list[str] = check_apk.check_apk(apk, check_apk.Expected(**kind), oldest, OLDEST, list(allowances))
    return found


def test_a_right_apk_passes(tmp_path: Path) -> None:
    assert faults(tmp_path, good()) == []
    without = {name: content for name, content in good().items() if not name.startswith("lib/")}
    assert faults(tmp_path, without, natives=False) == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"package": "com.example"}, "package is 'com.example'"),
        ({"min": 26}, "minSdkVersion is 26"),
        ({"target": 34}, "targetSdkVersion is 34"),
        ({"extract": True}, "extractNativeLibs is True"),
        ({"required": True}, "libcdsprpc.so is not used, or required"),
        ({"required": None}, "libcdsprpc.so is not used, or required"),
        ({"permission": "android.permission.INTERNET"}, "the permission android.permission.INTERNET is asked for"),
        ({"other": True}, "other apps may open dev.pocketvlm.demo.Files"),
        ({"exported": False}, "dev.pocketvlm.demo.chat.ChatActivity is not exported"),
        ({"exported": None}, "does not say whether it is exported"),
    ],
)
def test_manifests(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    found = faults(tmp_path, good() | {"AndroidManifest.xml": manifest(**changes)})
    assert any(said in fault for fault in found), found


def test_npu_libraries_are_files(tmp_path: Path) -> None:
    names = (*check_apk.LIBRARIES, "libQnnHtp.so", "libQnnSystem.so")
    entries = good() | {"AndroidManifest.xml": manifest(extract=True)}
    entries = {name: content for name, content in entries.items() if not name.startswith("lib/")}
    entries |= {f"lib/arm64-v8a/{name}": elf() for name in names}
    # What runs on the NPU's own processor, which is of 32 bits and has other pages.
    entries["lib/arm64-v8a/libQnnHtpV79Skel.so"] = elf(164, 4096, b"\x7fELF\x01\x01")
    assert faults(tmp_path, entries, npu=True) == []
    del entries["lib/arm64-v8a/libQnnHtp.so"]
    assert faults(tmp_path, entries, npu=True) == ["lib/arm64-v8a/libQnnHtp.so is missing"]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("lib/x86_64/libonnxruntime.so", elf(62, 4096), "a segment aligned to 4096"),
        ("lib/x86_64/libonnxruntime.so", elf(183), "not x86_64's"),
        ("lib/arm64-v8a/libonnxruntime.so", b"no library at all, but long enough to be one" * 4, "no 64-bit ELF library"),
        ("lib/arm64-v8a/libonnxruntime.so", elf()[:70], "no ELF library"),
        ("lib/arm64-v8a/libonnxruntime.so", elf(183, 16384, b"\x7fELF\x01\x01"), "no 64-bit ELF library"),
        ("classes.dex", b"dex\n039\0" + bytes(200), "byte order"),
        ("classes.dex", dex(call(1))[:-1], "its header says"),
        ("classes.dex", dex(call(1))[:-1] + b"x", "its checksum is not that of its content"),
        ("classes.dex", dex(b"\x40\x00\x0e\x00"), "unknown instruction 0x40"),
        ("classes.dex", dex(bytes([0xFC, 0, 0, 0, 0, 0])), "uses invoke-custom"),
        ("classes.dex", dex(bytes([0xFA, 0, 0, 0, 0, 0, 0, 0])), "uses invoke-polymorphic"),
        ("classes.dex", dex(call(1), parent="Ljava/lang/Unheard;"), "uses java/lang/Unheard, which the oldest Android lacks"),
        ("AndroidManifest.xml", b"<manifest/>", "no binary XML"),
    ],
)
def test_broken_entries(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    found = faults(tmp_path, good() | {name: content})
    assert any(said in fault for fault in found), found


def test_missing_entries(tmp_path: Path) -> None:
    for name in good():
        entries = good()
        del entries[name]
        assert faults(tmp_path, entries), name


def test_a_second_dex_must_be_the_second(tmp_path: Path) -> None:
    assert any("defined twice" in fault for fault in faults(tmp_path, good() | {"classes2.dex": dex(call(1))}))
    other = dex(call(1), name="Ldev/Other;")
    assert faults(tmp_path, good() | {"classes2.dex": other}) == []
    assert any("there are" in fault for fault in faults(tmp_path, good() | {"classes3.dex": other}))


def test_what_is_called_without_natives_has_none(tmp_path: Path) -> None:
    assert any("native code in what is called without natives" in fault for fault in faults(tmp_path, good(), natives=False))


def test_signatures(tmp_path: Path) -> None:
    assert faults(tmp_path, good(), signed=False) == ["it is not signed by scheme v2, which Android 7 and later ask for"]
    signing = load("apk.signing")
    plain = (tmp_path / "trial.apk").read_bytes()
    assert signing.has_v2_signature(with_signature_block(plain))
    assert not signing.has_v2_signature(with_signature_block(plain, identity=0xF05368C0))
    assert not signing.has_v2_signature(b"")


def test_unaligned_and_compressed_libraries(tmp_path: Path) -> None:
    loose = tmp_path / "loose.apk"
    write_zip(loose, good(), stored=["lib/arm64-v8a/libonnxruntime.so"])
    with zipfile.ZipFile(loose) as archive:
        found = pages.alignment_faults(archive)
    assert any("arm64-v8a/libonnxruntime.so begins" in fault for fault in found)
    assert any("x86_64/libonnxruntime.so is compressed" in fault for fault in found)
    assert any("resources.arsc is compressed" in fault for fault in found)


def test_a_damaged_archive(tmp_path: Path) -> None:
    (tmp_path / "x.apk").write_bytes(b"PK nothing")
    assert check_apk.check_apk(tmp_path / "x.apk", check_apk.Expected(), OLDEST, OLDEST, [])[0].startswith("damaged: ")
    assert check_apk.check_runner(tmp_path / "x.apk", OLDEST, OLDEST, [])[0].startswith("damaged: ")


def test_uses_of_what_android_lacks(tmp_path: Path) -> None:
    found = faults(tmp_path, good(), oldest=BARE)
    assert found == ["dev/Trial uses java/lang/Missing.call()V, which the oldest Android lacks"]
    allowance = use_of_api.Allowance("dev/Trial", ("java/lang/Missing",), 31, "asked on newer ones only")
    assert faults(tmp_path, good(), oldest=BARE, allowances=[allowance]) == []
    other = use_of_api.Allowance("dev/Tri", ("java/lang/Missing",), 31, "of another class")
    assert faults(tmp_path, good(), oldest=BARE, allowances=[other]) == found
    entries = good() | {"classes.dex": dex(call(1), used="Ljava/lang/Nowhere;")}
    invented = use_of_api.Allowance("dev/*", ("java/lang/Nowhere.*",), 99, "a typing error")
    assert "which no Android has" in faults(tmp_path, entries, oldest=BARE, allowances=[invented])[0]


def test_members_are_found_in_parents() -> None:
    android = Offered(a_Base=((), {"run()V"}), a_Face=((), {"show()V"}), a_Child=(("a/Base", "a/Face"), set()))
    assert api.has_member(android, "a/Child", "run()V")
    assert api.has_member(android, "a/Child", "show()V")
    assert not api.has_member(android, "a/Child", "stop()V")
    assert not api.has_member(android, "a/Nobody", "run()V")


def test_dex_is_read() -> None:
    read = dex_module.Dex(dex(call(1)))
    assert (read.version, read.method_count) == (39, 2)
    (found,) = read.classes
    assert (found.name, found.parents, found.members) == ("dev/Trial", ["java/lang/Object"], {"run()V"})
    assert found.uses == {dex_module.Member("java/lang/Missing", "call()V")}
    assert dex_module.types_in("f([Ljava/lang/LL;JLb/C;)La/B;") == {"java/lang/LL", "b/C", "a/B"}
    assert dex_module.types_in("out#Ljava/io/PrintStream;") == {"java/io/PrintStream"}
    assert dex_module.class_name("[[Ljava/lang/String;") == "java/lang/String"
    # A table of a switch is not an instruction, whatever stands in it.
    table = bytes([0x2B, 0, 4, 0, 0, 0, 0x0E, 0]) + struct.pack("<HHIi", 0x0100, 1, 0, 3)
    assert dex_module.Dex(dex(table)).classes[0].handles == set()


def test_tables_that_lead_outside() -> None:
    content = bytearray(dex(call(1)))
    struct.pack_into("<I", content, 0x3C, 1 << 30)
    with pytest.raises(DamagedError, match="outside"):
        dex_module.Dex(sealed(bytes(content)))


def signature_file(path: Path, *, tail: bytes = b"p") -> None:
    """Two classes, as animal-sniffer writes them; the second refers to strings of the first."""

    def text(value: str) -> bytes:
        return b"t" + struct.pack(">H", len(value)) + value.encode()

    described = (
        b"sr" + struct.pack(">H", 5) + b"Clazz" + struct.pack(">QBH", 1, 2, 4)
        + b"L" + struct.pack(">H", 4) + b"name" + text("Ljava/lang/String;")
        + b"L" + struct.pack(">H", 10) + b"signatures" + text("Ljava/util/Set;")
        + b"L" + struct.pack(">H", 10) + b"superClass" + b"q" + struct.pack(">I", 0x7E0001)
        + b"[" + struct.pack(">H", 15) + b"superInterfaces" + text("[Ljava/lang/String;") + b"xp"
    )  # fmt: skip
    # Handles: 0 the class, 1 to 3 its types, 4 the object, 5 its name.
    first = described + text("a/A")
    hash_set = b"sr" + struct.pack(">H", 17) + b"java.util.HashSet" + struct.pack(">QBH", 1, 3, 0) + b"xp"
    first += hash_set + b"w\x0c" + struct.pack(">IfI", 16, 0.75, 1) + text("run()V") + b"x" + b"p" + b"p"
    second = b"sq" + struct.pack(">I", 0x7E0000) + text("a/B")
    # 6 is the set's class.
    second += b"sq" + struct.pack(">I", 0x7E0006) + b"w\x0c" + struct.pack(">IfI", 16, 0.75, 0) + b"x"
    second += b"q" + struct.pack(">I", 0x7E0005) + b"p"
    path.write_bytes(gzip.compress(b"\xac\xed\x00\x05" + first + second + tail))


def test_signatures_of_animal_sniffer(tmp_path: Path) -> None:
    signature_file(tmp_path / "x.signature")
    read = api.SignatureApi(tmp_path / "x.signature")
    assert read.find("a/A") == api.ApiClass((), frozenset({"run()V"}))
    assert api.has_member(read, "a/B", "run()V")
    assert read.find("a/C") is None
    for content in (b"", b"no gzip", gzip.compress(b"no Java"), gzip.compress(b"\xac\xed\x00\x05s")):
        (tmp_path / "bad").write_bytes(content)
        with pytest.raises(DamagedError, match="no signature file"):
            api.SignatureApi(tmp_path / "bad")


def test_allowances_are_complete(tmp_path: Path) -> None:
    assert len(use_of_api.read_allowances(check_apk.ALLOWANCES)) > 3
    (tmp_path / "x.toml").write_text('[[allow]]\nby = "a"\nuses = ["b"]\n')
    with pytest.raises(DamagedError, match="why"):
        use_of_api.read_allowances(tmp_path / "x.toml")


class TestArchives:
    """apk/aar.py: an archive comes from elsewhere."""

    def unpack(self, folder: Path, entries: dict[str, bytes], abis: tuple[str, ...] = ("arm64-v8a",)) -> list[str]:
        archive = folder / "x.aar"
        write_zip(archive, entries)
        written = load("apk.aar").unpack(archive, abis, folder / "out")
        return sorted(path.relative_to(folder / "out").as_posix() for path in written)

    def test_wanted_files(self, tmp_path: Path) -> None:
        entries = {
            "classes.jar": b"jar", "jni/arm64-v8a/liba.so": elf(), "jni/armeabi-v7a/liba.so": b"", "R.txt": b"",
            "jni/arm64-v8a/../../../liba.so": b"", "/jni/arm64-v8a/liba.so": b"", "jni/arm64-v8a/sub/liba.so": b"",
        }  # fmt: skip
        assert self.unpack(tmp_path, entries) == ["classes.jar", "lib/arm64-v8a/liba.so"]
        assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "x.aar"]

    def test_refusals(self, tmp_path: Path) -> None:
        with pytest.raises(DamagedError, match="no library for x86_64"):
            self.unpack(tmp_path, {"jni/arm64-v8a/liba.so": elf()}, ("arm64-v8a", "x86_64"))
        with pytest.raises(DamagedError, match="would be"):
            self.unpack(tmp_path, {"jni/arm64-v8a/liba.so": bytes(50 << 20)})
        (tmp_path / "x.aar").write_bytes(b"nothing")
        with pytest.raises(DamagedError, match="no archive"):
            load("apk.aar").unpack(tmp_path / "x.aar", ("arm64-v8a",), tmp_path / "out")

    def test_a_wrong_checksum(self, tmp_path: Path) -> None:
        write_zip(tmp_path / "x.aar", {"jni/arm64-v8a/liba.so": b"content"}, stored=["jni/arm64-v8a/liba.so"])
        (tmp_path / "x.aar").write_bytes((tmp_path / "x.aar").read_bytes().replace(b"content", b"c0ntent"))
        with pytest.raises(DamagedError, match="damaged"):
            load("apk.aar").unpack(tmp_path / "x.aar", ("arm64-v8a",), tmp_path / "out")


def test_manifests_are_completed() -> None:
    complete = load("complete_manifest").complete
    source = '<manifest xmlns:android="http://schemas.android.com/apk/res/android"><application android:label="x"/></manifest>'
    done = complete(source, "a.b", True)
    assert 'package="a.b"' in done
    assert 'android:extractNativeLibs="true"' in done
    with pytest.raises(ValueError, match=r"not a\.b"):
        complete('<manifest package="c.d"/>', "a.b", True)
    with pytest.raises(ValueError, match="no application"):
        complete("<manifest/>", "a.b", True)


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    faults(tmp_path, good())
    signature_file(tmp_path / "x.signature")
    write_zip(tmp_path / "android.jar", {"x": b""})
    options = ["--signature", str(tmp_path / "x.signature"), "--android-all", str(tmp_path / "android.jar")]
    assert check_apk.main([*options, str(tmp_path / "trial.apk")]) == 4
    assert "error: trial.apk: dev/Trial uses java/lang/Missing.call()V" in capsys.readouterr().err
    assert check_apk.main([*options[:2], "--android-all", str(tmp_path / "none"), str(tmp_path / "trial.apk")]) == 3
    program = tmp_path / "apksigner"
    program.write_text("#!/bin/sh\necho 'DOES NOT VERIFY'\nexit 1\n")
    program.chmod(0o755)
    assert check_apk.signature_faults(tmp_path / "trial.apk", str(program)) == ["apksigner: DOES NOT VERIFY"]
    program.write_text("#!/bin/sh\necho 'Verified using v2 scheme (APK Signature Scheme v2): true'\n")
    assert check_apk.signature_faults(tmp_path / "trial.apk", str(program)) == []
