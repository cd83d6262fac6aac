"""Reports: HTML pages of runs, manifests, evaluations and advice.

Pages have no scripts and load nothing. `charts` draws SVG with matplotlib,
`rendering` fills the Jinja templates in `templates/`, which hold all wording.
"""
