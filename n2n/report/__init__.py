"""Pictures for people; Pillow and SVG only.

`strip` lays details side by side in one picture; `page` tells all of a burst in one HTML file,
with `pictures` as data and `curve` drawn as SVG; viewer.css and viewer.js go into the page.
"""

from __future__ import annotations

from n2n.report.page import page as page
from n2n.report.page import write_page as write_page
from n2n.report.strip import before_after as before_after
