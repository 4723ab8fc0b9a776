"""Gradle's files can be parsed. Whether they build the app only Gradle tells, which no package registry has."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.android

DEMO = Path(__file__).resolve().parents[2] / "android_demo"
POM = DEMO / "tools" / "pom" / "ktlint.xml"


def ktlint(folder: Path, *files: Path) -> subprocess.CompletedProcess[str]:
    """ktlint with its one rule that a file has to be Kotlin."""
    maven = shutil.which("mvn")
    assert maven is not None, "install the packages maven and openjdk-17-jdk-headless"
    listed = folder / "classpath"
    command = [
        maven,
        "-q",
        "-B",
        "-f",
        str(POM),
        "dependency:build-classpath",
        "-DincludeScope=runtime",
        f"-Dmdep.outputFile={listed}",
    ]
    subprocess.run(command, check=True, timeout=600)
    (folder / ".editorconfig").write_text(
        "root = true\n[*]\nktlint_standard = disabled\nktlint_standard_final-newline = enabled\n"
    )
    options = ["--log-level=error", f"--editorconfig={folder / '.editorconfig'}"]
    java = ["java", "-cp", listed.read_text(encoding="utf-8"), "com.pinterest.ktlint.Main", *options, *map(str, files)]
    return subprocess.run(java, capture_output=True, text=True, timeout=300, check=False)


def test_gradle_files_are_kotlin(tmp_path: Path) -> None:
    files = sorted(path for path in DEMO.rglob("*.gradle.kts") if "build" not in path.relative_to(DEMO).parts[:-1])
    assert [path.relative_to(DEMO).as_posix() for path in files] == [
        "app/build.gradle.kts",
        "build.gradle.kts",
        "settings.gradle.kts",
    ]
    done = ktlint(tmp_path, *files)
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_is_not_kotlin_is_noticed(tmp_path: Path) -> None:
    broken = tmp_path / "build.gradle.kts"
    broken.write_text("android {\n    compileSdk = = 35\n}\n")
    done = ktlint(tmp_path, broken)
    assert done.returncode != 0
    assert "build.gradle.kts" in done.stdout + done.stderr
