"""A parser that checks the pages of `jest_tf.reports`."""

from html import parser


class Elements(parser.HTMLParser):
    """Collects tags and images; refuses elements that are closed wrongly.

    Attributes:
        open: tags that have not been closed.
        images: the attributes of every `img`.
        tags: of all elements.
    """

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
            raise AssertionError(f"{tag} closes another element")


def parse(text):
    """The elements of a page, all of them closed."""
    found = Elements()
    found.feed(text)
    if found.open:
        raise AssertionError(f"not closed: {found.open}")
    return found
