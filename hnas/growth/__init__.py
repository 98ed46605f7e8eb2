"""Growth of a network inside a declared space, by edits that keep its function: ``hnas.growth.edits``.

Jie and Gao, Differentiable NAS with Morphism-based Transformable Backbone Architectures, 2021 (arXiv 2106.07211). The
largest network is declared once, as a space, and begins closed but for a small part. An edit opens a part at weight
zero.
"""
