"""Publish bundles to a store and fetch them from there: digests, signatures, stores, an index page."""
