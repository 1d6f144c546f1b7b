"""Random graphs of many operators against torch; see ``python -m tests.compositions --help``."""
