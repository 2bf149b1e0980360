"""Fine-tuning and evaluation: the only home of torch, transformers, PEFT, TRL and bitsandbytes.

`order.Engine` says what an engine can do; `reference.ReferenceEngine` is the one to compare others with. Knows no SQL,
no Optuna, no W&B.
"""
