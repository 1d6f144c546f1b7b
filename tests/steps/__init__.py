"""Several steps over one set of parameters."""
