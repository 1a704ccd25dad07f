"""Files to arrays and back: depth, orientation, EXIF, ICC, alpha; what counts as a frame.

`reading` opens files, `writing` makes them, `values` maps numbers to display units (1.0 is white),
`rows` reads and writes TIFFs larger than the memory, `frames` chooses files and names outputs,
`shots` reads how a picture was taken and `grouping` tells bursts apart by it, `metadata` carries
EXIF and ICC, `raw` develops RAW to linear light, `colour` says which light that is, `quiet` keeps
decoders off the screen. Arrays are H,W or H,W,C, upright; alpha travels in `Picture.meta`.
"""

from __future__ import annotations

from n2n.images.colour import developed as developed
from n2n.images.frames import frames_in as frames_in
from n2n.images.frames import is_picture as is_picture
from n2n.images.frames import output_path as output_path
from n2n.images.grouping import GAP as GAP
from n2n.images.grouping import groups as groups
from n2n.images.grouping import refuse_bracket as refuse_bracket
from n2n.images.reading import declared_size as declared_size
from n2n.images.reading import read as read
from n2n.images.reading import read_pages as read_pages
from n2n.images.rows import TiffRows as TiffRows
from n2n.images.rows import create as create
from n2n.images.shots import Shot as Shot
from n2n.images.shots import shot as shot
from n2n.images.values import ends as ends
from n2n.images.values import from_float as from_float
from n2n.images.values import settle as settle
from n2n.images.values import to_float as to_float
from n2n.images.writing import dtypes_for as dtypes_for
from n2n.images.writing import refusal as refusal
from n2n.images.writing import replace_file as replace_file
from n2n.images.writing import write as write
