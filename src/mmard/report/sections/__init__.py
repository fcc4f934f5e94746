"""The sections of the page, each from a subject alone."""
