"""The rooms of `training.engine`: many runs over one frozen base model, each with numbers of its own.

`stream` lays rows of several runs end to end, `attention` and `layers` teach a base model to read that, `model` is the
base so taught, `weights` and `optimizer` are one run's, `slot` is a run from start to result, `plan` decides what fits.
"""
