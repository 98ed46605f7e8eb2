"""Write and read bundles: an artifact, its baseline, a model card and the manifest that describes them."""
