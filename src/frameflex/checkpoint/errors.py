"""What can be wrong with a checkpoint."""

from frameflex.addresses import without_secrets


class CheckpointError(Exception):
    """A file that can't be used as a checkpoint; the message names it and says what to do."""

    def __init__(self, message: str = "") -> None:
        super().__init__(without_secrets(message))


class NewerFormatError(CheckpointError):
    """A checkpoint of a frameflex that is newer than this one: whole, but not for us."""
