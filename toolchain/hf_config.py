"""Sections of config.json through transformers' own configuration classes, which know every default."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any


def read_section(values: Mapping[str, Any]) -> Any:
    """The `PretrainedConfig` of a section with its `model_type`. Raises whatever transformers does for a bad one.

    Its warnings are left out: what matters is checked here, and said in one error.
    """
    from transformers import AutoConfig
    from transformers.utils import logging as transformers_logging

    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity(logging.CRITICAL)
    try:
        return AutoConfig.for_model(**values)
    finally:
        transformers_logging.set_verbosity(before)
