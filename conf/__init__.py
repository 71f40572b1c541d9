"""Every choice, as YAML: Hydra needs a package here to find it."""
