"""Runs every method on the same demonstrations and the same episodes; see ``__main__``."""
