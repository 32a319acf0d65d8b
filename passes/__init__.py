"""The passes: pure functions from a convolution to its rewrites."""

from passes.base import Pass
from passes.channel_svd import ChannelSVD
from passes.crop_kernel import CropKernel
from passes.depthwise_pointwise import DepthwisePointwise
from passes.exact_channels import ExactChannels
from passes.exact_spatial import ExactSpatial
from passes.grouped_pointwise import GroupedPointwise
from passes.input_svd import InputSVD
from passes.join_groups import JoinGroups
from passes.pointwise_depthwise import PointwiseDepthwise
from passes.spatial_svd import SpatialSVD
from passes.split_groups import SplitGroups
from passes.stacked import Stacked
from passes.sub_pixel import SubPixelConv
from passes.thin_channels import ThinChannels
from passes.tucker2 import Tucker2
from passes.winograd import WinogradTiles

PASSES: tuple[Pass, ...] = (
    DepthwisePointwise(),
    PointwiseDepthwise(),
    GroupedPointwise(),
    ChannelSVD(),
    SpatialSVD(),
    Tucker2(),
    InputSVD(),
    Stacked(),
    SplitGroups(),
    CropKernel(),
    ExactChannels(),
    ExactSpatial(),
    SubPixelConv(),
    JoinGroups(),
    WinogradTiles(),
)

THINNING: Pass = ThinChannels()
"""Done to whole networks, before what is left is rewritten site by site."""
