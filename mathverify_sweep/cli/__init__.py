"""The command line: parse, call, print, nothing else. Exit code 0 only when the asked work is done.

`app.py` is the table of commands; the other files hold them by purpose, and `shared.py` what they have in common.
Whatever takes long to import is imported by the command that needs it.
"""

from mathverify_sweep.cli.app import app, main

__all__ = ["app", "main"]
