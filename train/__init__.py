"""Training: the engine that knows no method, and the tasks that do."""
