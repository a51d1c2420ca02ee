"""Images of what is there and what a model found, drawn with Pillow."""

from typing import TYPE_CHECKING

from ..lazy_names import lazy_names

if TYPE_CHECKING:
    from .architecture import Block as Block, Row as Row, architecture_svg as architecture_svg
    from .attention_maps import Attention as Attention, attention as attention
    from .boxes import draw_boxes as draw_boxes
    from .grids import grid as grid
    from .plots import draw_training as draw_training
    from .segments import draw_segments as draw_segments
    from .slots import QuerySlots as QuerySlots, query_slots as query_slots
    from .vector import objects_svg as objects_svg, segments_svg as segments_svg

__getattr__, __dir__ = lazy_names(__name__)
