"""Turns a vision-language checkpoint directory into a phone bundle."""

if not __name__.startswith("pocketvlm."):
    raise ImportError("import this package as pocketvlm.toolchain, not from the repository root")
