"""Networks and algorithms: frozen backbones, the few-step generator, what is trained on them, exported pipelines."""
