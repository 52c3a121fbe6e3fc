"""The page of ``frameflex app`` and the service of ``frameflex serve``."""
