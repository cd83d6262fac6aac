"""A parser that collects the elements of a page."""

from html import parser


class Elements(parser.HTMLParser):
    """Collects what the page holds; complains of what is left open."""

    def __init__(self):
        super().__init__()
        self.open, self.images, self.tags = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag == "img":
            self.images.append(dict(attrs))
        elif tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        if self.open.pop() != tag:
            raise AssertionError(f"{tag} closes something else")
