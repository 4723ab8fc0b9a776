"""What an Android device tells about itself: what it is, and how it is doing. What it does not tell is None, never a guess."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from shlex import quote

from pocketvlm.errors import EnvironmentFault
from pocketvlm.toolchain.devices.adb import Adb

# Seconds that a service of the device gets to describe itself.
_SERVICE_S = 10.0
_PROPERTY = re.compile(r"^\[([^\]]+)\]: \[(.*?)\]\r?$", re.MULTILINE | re.DOTALL)
_EMULATORS = ("goldfish", "ranchu", "cutf_cvm")
# PowerManager.THERMAL_STATUS_*, and Temperature.TYPE_* of what is a temperature.
_THERMAL_STATUS = ("none", "light", "moderate", "severe", "critical", "emergency", "shutdown")
_TEMPERATURE_TYPES = (0, 1, 2, 3, 9)
_TEMPERATURE = re.compile(r"Temperature\{mValue=(-?[\d.]+), mType=(-?\d+), mName=([^,}]+), mStatus=\d+\}")
_PLAUSIBLE_C = (-40.0, 150.0)
# BatteryManager.BATTERY_STATUS_*
_CHARGING, _DISCHARGING, _NOT_CHARGING, _FULL = 2, 3, 4, 5
_POLICIES = """
for policy in /sys/devices/system/cpu/cpufreq/policy*; do
  [ -d "$policy" ] || continue
  echo "policy ${policy##*/policy}"
  for file in related_cpus scaling_governor scaling_cur_freq scaling_max_freq cpuinfo_max_freq; do
    echo "$file $(cat "$policy/$file" 2>/dev/null)"
  done
done
"""
_ZONES = """
for zone in /sys/class/thermal/thermal_zone*; do
  [ -d "$zone" ] || continue
  echo "$(cat "$zone/temp" 2>/dev/null) $(cat "$zone/type" 2>/dev/null)"
done
"""


@dataclass(frozen=True, slots=True)
class Identity:
    """What does not change while a device runs.

    Attributes:
        soc_model: as targets name it ("SM8750").
        abis: instruction sets, the preferred one first.
        fingerprint: of the system image.
    """

    serial: str
    model: str | None
    manufacturer: str | None
    soc_model: str | None
    soc_manufacturer: str | None
    board_platform: str | None
    android_version: str | None
    api_level: int | None
    fingerprint: str | None
    abis: tuple[str, ...]
    emulator: bool | None
    memory_total_bytes: int | None

    @property
    def name(self) -> str:
        """What to call it: "Google Pixel 9 (R5CT)"."""
        parts = [self.manufacturer, self.model]
        if self.model and self.manufacturer and self.model.casefold().startswith(self.manufacturer.casefold()):
            parts = [self.model]
        told = " ".join(filter(None, parts))
        return f"{told} ({self.serial})" if told else self.serial

    def abi(self, known: Sequence[str]) -> str | None:
        """The instruction set that it prefers among some."""
        return next((abi for abi in self.abis if abi in known), None)

    @property
    def system(self) -> str:
        """Chip and system: "SM8750, Android 15 (API 35), arm64-v8a"."""
        parts = [
            self.soc_model or self.board_platform or "SoC not known",
            f"Android {self.android_version or '?'} (API {self.api_level or '?'})",
            self.abis[0] if self.abis else "ABI not known",
        ]
        return ", ".join(parts) + (", emulator" if self.emulator else "")


@dataclass(frozen=True, slots=True)
class CpuPolicy:
    """Cores that share one clock.

    Attributes:
        limit_khz: highest frequency that they may have now; below `max_khz` when the device holds them back.
        max_khz: highest frequency that they can have.
    """

    policy: int
    cpus: tuple[int, ...]
    governor: str | None
    current_khz: int | None
    limit_khz: int | None
    max_khz: int | None


@dataclass(frozen=True, slots=True)
class Thermal:
    """Heat.

    Attributes:
        status: "none" to "shutdown", as Android's thermal service judges it.
        temperatures_c: degrees Celsius by the name of the sensor.
    """

    status: str | None
    temperatures_c: dict[str, float]


@dataclass(frozen=True, slots=True)
class Battery:
    """The battery.

    Attributes:
        charging: whether it is being charged; a full one is not.
        plugged: whether the device has power from outside.
    """

    level_percent: float | None
    charging: bool | None
    plugged: bool | None
    temperature_c: float | None


@dataclass(frozen=True, slots=True)
class Condition:
    """What changes while a device works."""

    cpu: tuple[CpuPolicy, ...]
    thermal: Thermal
    battery: Battery
    memory_available_bytes: int | None

    def __str__(self) -> str:
        governors = ", ".join(dict.fromkeys(item.governor for item in self.cpu if item.governor)) or "not known"
        level = "not known" if self.battery.level_percent is None else f"{self.battery.level_percent:.0f}%"
        charging = {True: ", charging", False: ", not charging", None: ""}[self.battery.charging]
        return f"governor {governors}, thermal status {self.thermal.status or 'not known'}, battery {level}{charging}"


def read_identity(adb: Adb) -> Identity:
    """Who the device is.

    Raises:
        EnvironmentFault: it has gone, or gives no answer.
    """
    properties = parse_properties(adb.shell("getprop", "its properties").out)
    memory = parse_memory(adb.shell("cat /proc/meminfo", "its memory").out)

    def first(*names: str) -> str | None:
        # Some devices say "unknown" where they do not know.
        values = (properties.get(name, "").strip() for name in names)
        return next((value for value in values if value and value.casefold() != "unknown"), None)

    abis = first("ro.product.cpu.abilist", "ro.product.cpu.abi") or ""
    return Identity(
        serial=adb.serial,
        model=first("ro.product.model"),
        manufacturer=first("ro.product.manufacturer"),
        soc_model=first("ro.soc.model"),
        soc_manufacturer=first("ro.soc.manufacturer"),
        board_platform=first("ro.board.platform"),
        android_version=first("ro.build.version.release"),
        api_level=_number(first("ro.build.version.sdk")),
        fingerprint=first("ro.build.fingerprint"),
        abis=tuple(item.strip() for item in abis.split(",") if item.strip()),
        emulator=_is_emulator(adb.serial, properties),
        memory_total_bytes=memory.get("MemTotal"),
    )


def read_condition(adb: Adb) -> Condition:
    """How the device is doing.

    Raises:
        EnvironmentFault: it has gone, or gives no answer.
    """
    service = _service(adb, "thermalservice")
    thermal = parse_thermal(service)
    if not thermal.temperatures_c:
        zones = parse_zones(adb.shell(_ZONES, "its temperatures").out)
        thermal = Thermal(thermal.status, zones)
    return Condition(
        cpu=parse_policies(adb.shell(_POLICIES, "its frequencies").out),
        thermal=thermal,
        battery=parse_battery(_service(adb, "battery")),
        memory_available_bytes=parse_memory(adb.shell("cat /proc/meminfo", "its memory").out).get("MemAvailable"),
    )


def free_bytes(adb: Adb, directory: str) -> int | None:
    """Space for files in a directory, or in the nearest one above it that is there.

    Raises:
        EnvironmentFault: the device has gone, or gives no answer.
    """
    script = f'd={quote(directory)}; while [ ! -d "$d" ]; do d=$(dirname "$d"); done; df -kP "$d"'
    return parse_free(adb.shell(script, "its free space").out)


def parse_properties(text: str) -> dict[str, str]:
    """The output of `getprop`; a value may have several lines."""
    return {match[1]: match[2] for match in _PROPERTY.finditer(text)}


def parse_memory(text: str) -> dict[str, int]:
    """Sizes in `/proc/meminfo`, in bytes."""
    return {match[1]: int(match[2]) * 1024 for match in re.finditer(r"^(\w+): +(\d+) kB", text, re.MULTILINE)}


def parse_policies(text: str) -> tuple[CpuPolicy, ...]:
    """What `_POLICIES` prints, by the number of the first core."""

    def policies() -> Iterator[CpuPolicy]:
        for block in re.split(r"^policy ", text, flags=re.MULTILINE)[1:]:
            number, *lines = block.splitlines()
            values = {name: value.strip() for name, _, value in (line.partition(" ") for line in lines)}
            if number.strip().isdigit():
                yield CpuPolicy(
                    policy=int(number),
                    cpus=tuple(int(item) for item in values.get("related_cpus", "").split() if item.isdigit()),
                    governor=values.get("scaling_governor") or None,
                    current_khz=_number(values.get("scaling_cur_freq")),
                    limit_khz=_number(values.get("scaling_max_freq")),
                    max_khz=_number(values.get("cpuinfo_max_freq")),
                )

    return tuple(sorted(policies(), key=lambda item: item.policy))


def parse_thermal(text: str) -> Thermal:
    """The output of `dumpsys thermalservice`: what the sensors say now, or what they last said."""
    status = re.search(r"^\s*Thermal Status: (\d+)", text, re.MULTILINE)
    number = int(status[1]) if status else -1
    name = _THERMAL_STATUS[number] if 0 <= number < len(_THERMAL_STATUS) else None
    _, current, rest = text.partition("Current temperatures from HAL:")
    now = rest.partition("cooling devices")[0] if current else ""
    found = _temperatures(now) or _temperatures(text.partition("Current temperatures from HAL:")[0])
    return Thermal(name, found)


def parse_zones(text: str) -> dict[str, float]:
    """What `_ZONES` prints: thousandths of a degree, and the sensor's name. What no sensor can mean is left out."""
    found = {}
    for line in text.splitlines():
        match = re.fullmatch(r"(-?\d+) (\S.*)", line.strip())
        # Less than a degree either way: a sensor that is off, or one with a unit of its own.
        if match and abs(int(match[1])) >= 1000 and _PLAUSIBLE_C[0] <= int(match[1]) / 1000 <= _PLAUSIBLE_C[1]:
            found[match[2]] = int(match[1]) / 1000
    return found


def parse_battery(text: str) -> Battery:
    """The output of `dumpsys battery`."""
    values = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in text.splitlines())}
    if values.get("present") == "false":
        return Battery(None, None, None, None)
    level, scale = _number(values.get("level")), _number(values.get("scale"))
    status, tenths = _number(values.get("status")), _number(values.get("temperature"))
    powered = [value for name, value in values.items() if name.endswith(" powered") and value in ("true", "false")]
    return Battery(
        level_percent=None if level is None or not scale else 100 * level / scale,
        charging={_CHARGING: True, _DISCHARGING: False, _NOT_CHARGING: False, _FULL: False}.get(status or 0),
        plugged="true" in powered if powered else None,
        temperature_c=None if tenths is None else tenths / 10,
    )


def parse_free(text: str) -> int | None:
    """Available bytes in the output of `df -kP`."""
    match = re.search(r"\s\d+\s+\d+\s+(\d+)\s+\d+%\s", text)
    return int(match[1]) * 1024 if match else None


def _temperatures(text: str) -> dict[str, float]:
    return {
        match[3]: float(match[1])
        for match in _TEMPERATURE.finditer(text)
        if int(match[2]) in _TEMPERATURE_TYPES and re.fullmatch(r"-?\d+(\.\d+)?", match[1])
        and _PLAUSIBLE_C[0] <= float(match[1]) <= _PLAUSIBLE_C[1]
    }  # fmt: skip


def _is_emulator(serial: str, properties: Mapping[str, str]) -> bool | None:
    if serial.startswith("emulator-") or "1" in (properties.get("ro.kernel.qemu"), properties.get("ro.boot.qemu")):
        return True
    hardware = properties.get("ro.hardware")
    return hardware in _EMULATORS if hardware else None


def _service(adb: Adb, name: str) -> str:
    """What a service of the device says of itself; nothing where it does not answer in time."""
    try:
        answer = adb.shell(f"dumpsys -t {max(1, int(_SERVICE_S) - 2)} {name} 2>/dev/null", f"its {name}", limit=_SERVICE_S)
    except EnvironmentFault:
        # A service that hangs is no reason to give up; a device that has gone shows in the next question.
        return ""
    return answer.out


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and re.fullmatch(r"-?\d{1,18}", text) else None
