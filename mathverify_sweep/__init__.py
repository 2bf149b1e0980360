"""mathverify-sweep: hyperparameter sweeps of QLoRA fine-tunes that judge worked solutions to math problems."""

__version__ = "0.1.0"
