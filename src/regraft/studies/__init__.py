"""The shipped studies, as YAML."""
