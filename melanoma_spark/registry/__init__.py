"""Registration of models in MLflow: the gate, aliases and their history."""
