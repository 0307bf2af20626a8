"""What can go wrong, by who has to act on it.

Every message is one sentence that names the thing, says what was expected and what to do.
"""


class FlowzooError(Exception):
    """Base of the errors that flowzoo raises on purpose; printed without a traceback."""


class UserError(FlowzooError):
    """Something the user wrote is wrong: a name, an option, a file. Exit code 2."""


class Incompatible(FlowzooError):
    """Parts that are right by themselves do not fit together: the cell is `skipped`."""


class Diverged(FlowzooError):
    """A fit or a solve left the finite numbers: the cell is `diverged`."""


class BadData(UserError):
    """A data file cannot be used: names the file and, where known, the column and the row."""
