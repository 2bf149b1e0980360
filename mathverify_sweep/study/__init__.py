"""The only home of Optuna: studies, their samplers and pruners, and what is promoted."""
