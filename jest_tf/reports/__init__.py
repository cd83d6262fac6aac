"""Reports: HTML pages for a run's selection and for a manifest.

Pages have no scripts and load nothing. `charts` draws SVG with matplotlib,
`rendering` fills the Jinja templates in `templates/`, which hold all wording.
"""
