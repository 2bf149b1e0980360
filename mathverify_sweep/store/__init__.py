"""Our own tables: who runs what, how it ended, what stages scored. The only home of SQL; knows no Optuna."""
