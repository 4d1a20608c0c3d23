"""How the miniature's parts are trained, each a task on the project's own engine. `make` runs them all."""
