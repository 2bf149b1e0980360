"""Faults on purpose: real worker processes on a throw-away study, and an audit of what is in the database afterwards.

`mvsweep chaos` runs them on a user's own set-up; the fault tests and the soak are made of the same parts.
"""
