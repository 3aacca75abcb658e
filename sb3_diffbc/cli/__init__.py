"""The command ``sb3-diffbc``."""
