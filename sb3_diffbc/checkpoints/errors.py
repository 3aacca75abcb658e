"""The one error that every reader in this package raises for a file it cannot use."""


class CheckpointError(ValueError):
    """A checkpoint, or a part of one, is damaged, foreign, unsafe or does not fit.

    The message names the file or the part, what was found there and what was expected.
    """
