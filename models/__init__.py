"""Networks and algorithms: frozen backbones, the few-step generator, what is trained on them, and the exported pipelines."""
