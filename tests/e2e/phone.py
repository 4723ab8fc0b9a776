"""What makes Debian's adbd look like a phone: properties, files below /sys, services, and a runner that does as it is told."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

from tests.e2e.adbd import AdbDevice

PROPERTIES = {
    "ro.product.model": "Pixel 9",
    "ro.product.manufacturer": "Google",
    "ro.soc.model": "SM8750",
    "ro.soc.manufacturer": "QTI",
    "ro.board.platform": "sun",
    "ro.hardware": "qcom",
    "ro.build.version.release": "15",
    "ro.build.version.sdk": "35",
    "ro.build.fingerprint": "google/tokay/tokay:15/AP3A/1:user/release-keys",
    "ro.product.cpu.abilist": "arm64-v8a,armeabi-v7a",
}
BATTERY = """Current Battery Service state:
  AC powered: false
  USB powered: true
  status: 2
  present: true
  level: 85
  scale: 100
  temperature: 285
"""
THERMAL = """IsStatusOverride: false
Thermal Status: 1
Cached temperatures:
\tTemperature{mValue=30.0, mType=3, mName=skin, mStatus=0}
HAL Ready: true
Current temperatures from HAL:
\tTemperature{mValue=36.9, mType=0, mName=CPU0, mStatus=0}
\tTemperature{mValue=31.5, mType=3, mName=skin, mStatus=1}
Current cooling devices from HAL:
\tCoolingDevice{mValue=0, mType=2, mName=battery}
"""
# How the runner shall end is in /runner/mode, what it shall find in /runner/result.json. Its process stays this script.
RUNNER = """
mkdir -p /runner
echo "$CLASSPATH" > /runner/classpath
for word; do echo "$word"; done > /runner/arguments
while [ $# -gt 0 ]; do
  case $1 in --output) output=$2;; esac
  shift
done
echo 'text: one run to warm up and 2 to measure' >&2
touch /runner/started
case $(cat /runner/mode) in
  result) cp /runner/result.json "$output.part" && mv "$output.part" "$output";;
  truncated) head -c 100 /runner/result.json > "$output";;
  half) head -c 100 /runner/result.json > "$output.part";;
  none) ;;
  crash) echo 'Fatal signal 11' >&2; kill -SEGV $$;;
  killed) kill -KILL $$;;
  error) echo 'a line of somebody else'; cat /runner/error; exit "$(cat /runner/code)";;
  java) echo 'java.lang.ClassNotFoundException: dev.pocketvlm.runner.Main' >&2; exit 1;;
  hang) echo half > "$output.part"; while :; do sleep 0.05; done;;
esac
"""
CPU = "/sys/devices/system/cpu/cpufreq"


def make_phone(device: AdbDevice) -> None:
    """Let a fresh device be a phone with two clusters of cores, whose runner gives a result once one is set."""
    device.properties(PROPERTIES)
    device.write("/services/battery", BATTERY)
    device.write("/services/thermalservice", THERMAL)
    device.program("dumpsys", 'cat "/services/$3"\n')
    device.program("app_process", RUNNER)
    for policy, cores, fastest in ((0, "0 1 2 3 4 5", 3532800), (6, "6 7", 4320000)):
        values = {
            "related_cpus": cores,
            "scaling_governor": "walt",
            "scaling_cur_freq": 1000000,
            "scaling_max_freq": fastest,
            "cpuinfo_max_freq": fastest,
        }
        for name, value in values.items():
            device.write(f"{CPU}/policy{policy}/{name}", f"{value}\n")
    set_mode(device, "result")


def set_mode(device: AdbDevice, mode: str) -> None:
    """How the next runs end."""
    device.write("/runner/mode", mode)


def set_error(device: AdbDevice, code: int, error: dict[str, Any]) -> None:
    """Let the next runs fail as the contract says."""
    set_mode(device, "error")
    device.write("/runner/code", str(code))
    device.write("/runner/error", json.dumps({"error": error}) + "\n")


def fake_runner_files(folder: Path) -> tuple[Path, Path]:
    """A jar and an archive of ONNX Runtime with nothing useful in them, for a runner that is a script."""
    jar, archive = folder / "runner.jar", folder / "onnxruntime-android-1.29.0.aar"
    with zipfile.ZipFile(jar, "w") as opened:
        opened.writestr("classes.dex", b"dex\n035\0")
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as opened:
        for abi in ("arm64-v8a", "x86_64", "armeabi-v7a"):
            for name in ("libonnxruntime.so", "libonnxruntime4j_jni.so"):
                opened.writestr(f"jni/{abi}/{name}", f"\x7fELF {abi} {name}")
    return jar, archive
