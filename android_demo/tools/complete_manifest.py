"""Write a manifest that aapt2 takes: `python3 complete_manifest.py SOURCE TARGET PACKAGE EXTRACT_NATIVE_LIBS`.

Android's Gradle plugin adds the package's name and whether native libraries are extracted, and warns where the source has them.
"""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

ANDROID = "http://schemas.android.com/apk/res/android"


def complete(text: str, package: str, extract: bool) -> str:
    """The manifest with what the Gradle plugin adds.

    Raises:
        ValueError: it is for another package, or has no application.
    """
    ElementTree.register_namespace("android", ANDROID)
    root = ElementTree.fromstring(text)
    if root.get("package", package) != package:
        raise ValueError(f"the manifest's package is {root.get('package')}, not {package}")
    root.set("package", package)
    application = root.find("application")
    if application is None:
        raise ValueError("the manifest has no application")
    application.set(f"{{{ANDROID}}}extractNativeLibs", str(extract).lower())
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


if __name__ == "__main__":
    source, target, name, extracted = sys.argv[1:]
    Path(target).write_text(complete(Path(source).read_text(encoding="utf-8"), name, extracted == "true"), encoding="utf-8")
