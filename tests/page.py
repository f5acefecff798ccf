"""An HTML page as a test reads it."""

import base64
from html.parser import HTMLParser

# Typography, so that what is looked for can be typed.
PLAIN = str.maketrans(
    {"\N{NO-BREAK SPACE}": " ", "\N{EN DASH}": "-", "\N{MINUS SIGN}": "-", "\N{MULTIPLICATION SIGN}": "x"}
)
VOID = {"meta", "img", "br", "hr", "link", "input", "wbr"}


class Page(HTMLParser):
    """Tags, attributes and visible text of a document; an unbalanced tag is an error. Tags of `apart` end a word."""

    def __init__(self, html, apart=("td", "th")):
        super().__init__()
        self.apart = apart
        self.tags, self.attributes, self.open, self.text = [], [], [], ""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        self.text += " " if tag in self.apart else ""

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += data

    @property
    def words(self):
        return " ".join(self.text.translate(PLAIN).split())

    @property
    def pictures(self):
        return [base64.b64decode(value.partition(",")[2]) for name, value in self.attributes if name == "src"]
