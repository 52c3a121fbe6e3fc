"""What can be wrong with a checkpoint."""


class CheckpointError(Exception):
    """A file that can't be used as a checkpoint; the message names it and says what to do."""


class NewerFormatError(CheckpointError):
    """A checkpoint of a frameflex that is newer than this one: whole, but not for us."""
