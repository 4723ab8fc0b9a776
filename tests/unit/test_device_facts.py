"""What devices tell about themselves, in the words of real ones, and what is made of it when they tell less."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from pocketvlm.toolchain.devices import properties
from pocketvlm.toolchain.devices.adb import Adb
from pocketvlm.toolchain.devices.adb_program import AdbProgram
from pocketvlm.toolchain.devices.properties import (
    Battery,
    CpuPolicy,
    Thermal,
    free_bytes,
    parse_battery,
    parse_free,
    parse_memory,
    parse_policies,
    parse_properties,
    parse_thermal,
    parse_zones,
    read_condition,
    read_identity,
)

from .scripted_adb import ScriptedAdb, ended, says

PIXEL = """[persist.sys.locale]: [de-DE]
[ro.board.platform]: [zumapro]
[ro.build.description]: [tokay-user 15
second line with ]: [ in it]
[ro.build.fingerprint]: [google/tokay/tokay:15/AP4A.250105.002/12701944:user/release-keys]
[ro.build.version.release]: [15]
[ro.build.version.sdk]: [35]
[ro.hardware]: [tokay]
[ro.product.cpu.abilist]: [arm64-v8a]
[ro.product.manufacturer]: [Google]
[ro.product.model]: [Pixel 9]
[ro.soc.manufacturer]: [Google]
[ro.soc.model]: [Tensor G4]
[vendor.empty]: []
"""
SAMSUNG = """[ro.board.platform]: [sun]
[ro.build.version.release]: [15]
[ro.build.version.sdk]: [35]
[ro.hardware]: [qcom]
[ro.product.cpu.abilist]: [arm64-v8a,armeabi-v7a,armeabi]
[ro.product.manufacturer]: [samsung]
[ro.product.model]: [SM-S938B]
[ro.soc.manufacturer]: [QTI]
[ro.soc.model]: [SM8750]
"""
EMULATOR = """[ro.board.platform]: []
[ro.boot.qemu]: [1]
[ro.build.version.release]: [14]
[ro.build.version.sdk]: [34]
[ro.hardware]: [ranchu]
[ro.product.cpu.abilist]: [x86_64,arm64-v8a]
[ro.product.manufacturer]: [Google]
[ro.product.model]: [sdk_gphone64_x86_64]
[ro.soc.manufacturer]: [unknown]
[ro.soc.model]: [unknown]
"""
MEMORY = "MemTotal:       11768492 kB\nMemFree:          294864 kB\nMemAvailable:    5184360 kB\nHugePages_Total:       0\n"
THERMAL = """IsStatusOverride: false
ThermalEventListeners:
\tcallbacks: 2
\tkilled: false
\tbroadcasts count: -1
Thermal Status: 3
Cached temperatures:
\tTemperature{mValue=99.9, mType=3, mName=skin-old, mStatus=0}
HAL Ready: true
HAL connection:
\tThermalHAL AIDL 2  connected: yes
Current temperatures from HAL:
\tTemperature{mValue=45.5, mType=0, mName=BIG, mStatus=0}
\tTemperature{mValue=41.0, mType=1, mName=G3D, mStatus=0}
\tTemperature{mValue=29.6, mType=2, mName=battery, mStatus=0}
\tTemperature{mValue=33.1, mType=3, mName=VIRTUAL-SKIN, mStatus=0}
\tTemperature{mValue=39.2, mType=9, mName=TPU, mStatus=0}
\tTemperature{mValue=4250.0, mType=6, mName=vbat, mStatus=0}
\tTemperature{mValue=NaN, mType=0, mName=MID, mStatus=0}
\tTemperature{mValue=-274.0, mType=4, mName=usb, mStatus=0}
Current cooling devices from HAL:
\tCoolingDevice{mValue=0, mType=2, mName=battery}
Temperature static thresholds from HAL:
\tTemperatureThreshold{mType=3, mName=VIRTUAL-SKIN, mHotThrottlingThresholds=[NaN, 39.0, 43.0, 45.0, 46.5, 52.0, 55.0]}
"""
CACHED = """Thermal Status: 0
Cached temperatures:
\tTemperature{mValue=31.0, mType=3, mName=skin, mStatus=0}
HAL Ready: true
Current temperatures from HAL:
Current cooling devices from HAL:
"""
BATTERY = """Current Battery Service state:
  AC powered: false
  USB powered: true
  Wireless powered: false
  Dock powered: false
  Max charging current: 500000
  Max charging voltage: 5000000
  Charge counter: 3990000
  status: {status}
  health: 2
  present: true
  level: 43
  scale: 50
  voltage: 4250
  temperature: 291
  technology: Li-ion
"""
UNPLUGGED = BATTERY.replace("USB powered: true", "USB powered: false")
POLICIES = """policy 0
related_cpus 0 1 2 3
scaling_governor sched_pixel
scaling_cur_freq 820000
scaling_max_freq 1500000
cpuinfo_max_freq 1950000
policy 10
related_cpus
scaling_governor
scaling_cur_freq <unknown>
scaling_max_freq
cpuinfo_max_freq 3105000
policy 4
related_cpus 4 5 6
scaling_governor sched_pixel
scaling_cur_freq 1197000
scaling_max_freq 2600000
cpuinfo_max_freq 2600000
"""


@pytest.fixture
def scripted(tmp_path: Path) -> ScriptedAdb:
    return ScriptedAdb.at(tmp_path / "adb")


def device(scripted: ScriptedAdb, serial: str = "R5CT") -> Adb:
    return Adb(AdbProgram(scripted.folder / "adb", None, 41), serial)


def test_properties_with_several_lines_and_brackets() -> None:
    found = parse_properties(PIXEL)
    assert found["ro.build.description"] == "tokay-user 15\nsecond line with ]: [ in it"
    assert (found["ro.soc.model"], found["vendor.empty"]) == ("Tensor G4", "")
    assert len(found) == 13
    assert parse_properties(PIXEL.replace("\n", "\r\n"))["ro.product.model"] == "Pixel 9"
    assert parse_properties("sh: getprop: not found") == {}


def test_phones_and_an_emulator(scripted: ScriptedAdb) -> None:
    scripted.play(("getprop", [ended(PIXEL), ended(SAMSUNG), ended(EMULATOR), ended("")]), ("meminfo", ended(MEMORY)))
    pixel, samsung, emulator, silent = (read_identity(device(scripted)) for _ in range(4))
    assert (pixel.name, pixel.emulator) == ("Google Pixel 9 (R5CT)", False)
    assert pixel.system == "Tensor G4, Android 15 (API 35), arm64-v8a"
    assert pixel.memory_total_bytes == 11768492 * 1024
    assert (samsung.soc_model, samsung.abis) == ("SM8750", ("arm64-v8a", "armeabi-v7a", "armeabi"))
    assert samsung.abi(("x86_64", "armeabi-v7a")) == "armeabi-v7a"
    assert (emulator.emulator, emulator.soc_model, emulator.board_platform) == (True, None, None)
    assert emulator.system == "SoC not known, Android 14 (API 34), x86_64, emulator"
    # What was not told is not known.
    nothing = replace(silent, serial="", abis=None, memory_total_bytes=None)  # type: ignore[arg-type]
    assert {value for value in (getattr(nothing, field) for field in nothing.__slots__) if value != ""} == {None}
    assert (silent.name, silent.abis) == ("R5CT", ())
    assert silent.system == "SoC not known, Android ? (API ?), ABI not known"
    scripted.play(("getprop", ended("")), ("meminfo", ended("")))
    assert read_identity(device(scripted, "emulator-5554")).emulator is True


def test_memory() -> None:
    assert parse_memory(MEMORY) == {"MemTotal": 11768492 << 10, "MemFree": 294864 << 10, "MemAvailable": 5184360 << 10}


def test_clocks_of_clusters() -> None:
    assert parse_policies(POLICIES) == (
        CpuPolicy(0, (0, 1, 2, 3), "sched_pixel", 820000, 1500000, 1950000),
        CpuPolicy(4, (4, 5, 6), "sched_pixel", 1197000, 2600000, 2600000),
        CpuPolicy(10, (), None, None, None, 3105000),
    )
    assert parse_policies("") == ()


def test_heat() -> None:
    # Neither voltages, nor what is no number, nor what no sensor can mean; and not the older values.
    wanted = {"BIG": 45.5, "G3D": 41.0, "battery": 29.6, "VIRTUAL-SKIN": 33.1, "TPU": 39.2}
    assert parse_thermal(THERMAL) == Thermal("severe", wanted)
    assert parse_thermal(CACHED) == Thermal("none", {"skin": 31.0})
    assert parse_thermal(CACHED.replace("Status: 0", "Status: 9")).status is None
    assert parse_thermal("Can't find service: thermalservice\n") == Thermal(None, {})
    zones = "48200 cpu-0-0\n-40 off\n0 idle\n35 tenths?\n25000 pm8550 tz\n999000 broken\n cpu\n31000\n"
    assert parse_zones(zones) == {"cpu-0-0": 48.2, "pm8550 tz": 25.0}


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (BATTERY.format(status=2), Battery(86.0, True, True, 29.1)),
        (UNPLUGGED.format(status=3), Battery(86.0, False, False, 29.1)),
        (BATTERY.format(status=4), Battery(86.0, False, True, 29.1)),
        (BATTERY.format(status=5), Battery(86.0, False, True, 29.1)),
        (BATTERY.format(status=1), Battery(86.0, None, True, 29.1)),
        (BATTERY.format(status=2).replace("present: true", "present: false"), Battery(None, None, None, None)),
        (BATTERY.format(status=2).replace("scale: 50", "scale: 0"), Battery(None, True, True, 29.1)),
        ("", Battery(None, None, None, None)),
        ("Can't find service: battery\n", Battery(None, None, None, None)),
    ],
)
def test_batteries(text: str, wanted: Battery) -> None:
    assert parse_battery(text) == wanted


@pytest.mark.parametrize(
    ("text", "free"),
    [
        (
            "Filesystem      1024-blocks     Used Available Capacity Mounted on\n"
            "/dev/block/dm-53  112345678 4567 98765432   1% /data\n",
            98765432 << 10,
        ),
        ("Filesystem     1024-blocks Used Available Capacity Mounted on\ntmpfs 20480 20480 0 100% /data/local/tmp\n", 0),
        ("df: /data: No such file or directory\n", None),
        ("", None),
    ],
)
def test_free_space(text: str, free: int | None) -> None:
    assert parse_free(text) == free


def test_free_space_of_a_folder_that_is_not_there_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a real shell: that of the nearest folder that is there, whatever the name."""

    class Here(Adb):
        def shell(self, script: str, *arguments: object, **options: object) -> object:  # type: ignore[override]
            class Answer:
                out = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True, timeout=10).stdout

            return Answer

    found = free_bytes(Here(AdbProgram(Path("adb"), None, 41), "x"), f"{tmp_path}/not/a 'folder'; yet")
    assert found is not None
    assert abs(found - shutil.disk_usage(tmp_path).free) < 1 << 30


def test_a_condition_and_its_words(scripted: ScriptedAdb) -> None:
    scripted.play(
        ("dumpsys .*thermalservice", ended(THERMAL)), ("dumpsys .*battery", ended(BATTERY.format(status=2))),
        ("cpufreq", ended(POLICIES)), ("meminfo", ended(MEMORY)),
    )  # fmt: skip
    found = read_condition(device(scripted))
    assert str(found) == "governor sched_pixel, thermal status severe, battery 86%, charging"
    assert found.memory_available_bytes == 5184360 << 10
    assert not scripted.was_called("thermal_zone")


def test_services_that_hang_leave_the_rest_known(scripted: ScriptedAdb, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(properties, "_SERVICE_S", 0.3)
    scripted.play(
        ("dumpsys", says(seconds=60)), ("thermal_zone", ended("48200 cpu-0-0\n")),
        ("cpufreq", ended("")), ("meminfo", ended(MEMORY)),
    )  # fmt: skip
    found = read_condition(device(scripted))
    assert found.thermal == Thermal(None, {"cpu-0-0": 48.2})
    assert found.battery == Battery(None, None, None, None)
    assert str(found) == "governor not known, thermal status not known, battery not known"
