"""Fine-tuning and evaluation: the only home of torch, transformers, PEFT, TRL and bitsandbytes.

`reference.ReferenceEngine` is the way in. Knows no SQL, no Optuna, no W&B.
"""
