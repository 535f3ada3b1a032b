"""The root of every error that Driftline raises on purpose."""


class DriftlineError(Exception):
    """What was wanted, what was got, what to do next: the message says all three."""
