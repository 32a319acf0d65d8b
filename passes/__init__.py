"""The passes: pure functions from a convolution to its rewrites."""

from passes.base import Pass
from passes.channel_svd import ChannelSVD
from passes.depthwise_pointwise import DepthwisePointwise
from passes.grouped_pointwise import GroupedPointwise
from passes.pointwise_depthwise import PointwiseDepthwise
from passes.spatial_svd import SpatialSVD
from passes.tucker2 import Tucker2
from passes.winograd import WinogradTiles

PASSES: tuple[Pass, ...] = (
    DepthwisePointwise(),
    PointwiseDepthwise(),
    GroupedPointwise(),
    ChannelSVD(),
    SpatialSVD(),
    Tucker2(),
    WinogradTiles(),
)
