"""One version of everything that is named in several places: Maven's, Gradle's and Python's files, and the checks."""

from __future__ import annotations

import re
import tomllib
import xml.etree.ElementTree as ElementTree
from pathlib import Path

ROOT = Path(__file__).parents[2]
CATALOGUE = tomllib.loads((ROOT / "android_demo/gradle/libs.versions.toml").read_text(encoding="utf-8"))["versions"]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def properties(pom: str) -> dict[str, str]:
    space = {"pom": "http://maven.apache.org/POM/4.0.0"}
    found = ElementTree.parse(ROOT / pom).getroot().find("pom:properties", space)
    assert found is not None
    return {element.tag.split("}")[1]: element.text or "" for element in found}


def test_the_libraries_are_those_that_the_runtime_is_tested_with() -> None:
    runtime, app = properties("runtime/kotlin/pom.xml"), properties("android_demo/pom.xml")
    for name in ("kotlin", "coroutines", "gson", "onnxruntime", "robolectric"):
        assert CATALOGUE[name] == runtime[f"{name}.version"] == app[f"{name}.version"], name
    assert CATALOGUE["junit"] == runtime["junit4.version"]
    for name in ("android.classes", "android.runtime", "android.resources"):
        assert runtime[name] == app[name], name


def test_onnxruntime_is_pythons() -> None:
    assert f"onnxruntime=={CATALOGUE['onnxruntime']}" in PYPROJECT["dependencies"]
    assert PYPROJECT["optional-dependencies"]["qnn"] == [f"onnxruntime-qnn=={CATALOGUE['onnxruntimeQnn']}"]


def test_levels_of_the_sdk() -> None:
    check = (ROOT / "android_demo/tools/check_apk.py").read_text(encoding="utf-8")
    assert f"MIN_SDK, TARGET_SDK = {CATALOGUE['minSdk']}, {CATALOGUE['targetSdk']}" in check
    # Android 15, whose classes the build compiles against, is API 35.
    assert CATALOGUE["compileSdk"] == CATALOGUE["targetSdk"] == "35"
    assert properties("runtime/kotlin/pom.xml")["android.classes"].startswith("15-")
    level = re.search(r"--min-sdk-version (\d+) --target-sdk-version (\d+)", (ROOT / "android_demo/pom.xml").read_text())
    assert level is not None
    assert level.groups() == (CATALOGUE["minSdk"], CATALOGUE["targetSdk"])


def test_the_app_is_of_this_release() -> None:
    version = re.search(r'__version__ = "(.*)"', (ROOT / "src/pocketvlm/__init__.py").read_text(encoding="utf-8"))
    assert version is not None
    assert version[1] == CATALOGUE["versionName"]
    for pom in ("runtime/kotlin/pom.xml", "android_demo/pom.xml"):
        found = ElementTree.parse(ROOT / pom).getroot().find("{http://maven.apache.org/POM/4.0.0}version")
        assert found is not None
        assert found.text == CATALOGUE["versionName"], pom


def test_the_build_names_no_version_itself() -> None:
    script = (ROOT / "android_demo/build_apk.sh").read_text(encoding="utf-8")
    for name in ("kotlin", "coroutines", "gson", "onnxruntime", "robolectric", "onnxruntimeQnn", "qnnRuntime"):
        assert CATALOGUE[name] not in script, name
    gradle = (ROOT / "android_demo/app/build.gradle.kts").read_text(encoding="utf-8")
    assert not re.search(r'"\d+\.\d+', gradle)
    # Names of jars that Maven writes.
    assert set(re.findall(r"pocketvlm-[a-z{},]*-(\d+\.\d+\.\d+)\.jar", script)) == {CATALOGUE["versionName"]}
