"""Reports: one HTML file each for a run's selection and for a manifest.

Pages have no scripts and load nothing. `charts` draws SVG with matplotlib,
`rendering` fills the Jinja templates in `templates/`. Nothing imports this room
but the commands; change wording and looks in the templates alone.
"""
