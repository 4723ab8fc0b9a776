"""The commands of the `pocketvlm` program. Each module is imported when its command runs."""
